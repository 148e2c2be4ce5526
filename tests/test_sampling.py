"""The loop: truth on Gaussian data, invariance, conditioning, keys, misuse."""

import threading
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import cmjax
from cmjax import testing
from cmjax.random import level_noise, sample_keys
from cmjax.schedulers import SCHEDULERS
from tests.support.draws import draws
from tests.support.tiers import every_scheduler

SCHEDULER = cmjax.CMStochasticIterativeScheduler(clip_denoised=False)
KEY = jax.random.key(0)


def network(params, x, t, bias=None):
    """Depends on everything; `bias` [B] is conditioning."""
    per_sample = (-1, *[1] * (x.ndim - 1))
    out = jnp.asarray(params).astype(x.dtype) * jnp.tanh(x)
    out += 1e-4 * t.reshape(per_sample).astype(x.dtype)
    return out if bias is None else out + bias.reshape(per_sample)


PARAMS = jnp.float32(0.5)
draw = partial(cmjax.sample, KEY, network, PARAMS, SCHEDULER)


@pytest.mark.parametrize("n", [1, 2, 4, 8])
@settings(max_examples=draws(5))
@given(mean=st.floats(-3, 3), std=st.floats(0.05, 2))
def test_gaussian_data_get_the_right_moments(n, mean, std):
    testing.assert_gaussian_moments(SCHEDULER, mean, std, num_inference_steps=n)


def test_gaussian_data_of_any_mean_and_std_per_dimension():
    mean = np.linspace(-1, 1, 6).reshape(2, 3)
    std = np.linspace(0.1, 1, 6).reshape(2, 3)
    testing.assert_gaussian_moments(SCHEDULER, mean, std, num_inference_steps=4)
    # Of data that do not vary, noise of sigma_min is left.
    testing.assert_gaussian_moments(SCHEDULER, 0.3, 0.0, num_inference_steps=4)


def test_the_closed_form_model_is_the_consistency_function():
    apply_fn, params = testing.gaussian_consistency_model(SCHEDULER, 0.3, 0.7)
    testing.assert_boundary_condition(apply_fn, params, SCHEDULER, (5, 2))
    # Along one trajectory of the ODE f must give its end everywhere.
    u = jax.random.normal(KEY, (5,))
    for sigma in (0.002, 0.01, 1.0, 80.0):
        x = 0.3 + np.hypot(0.7, sigma) * u
        f = cmjax.parametrization.consistency_function(
            apply_fn, params, SCHEDULER, x, jnp.full(5, sigma)
        )
        np.testing.assert_allclose(f, 0.3 + np.hypot(0.7, 0.002) * u, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 16), (4, 3, 2, 1), (2, 2, 2, 2, 2)])
def test_any_rank(shape):
    assert draw(shape, num_inference_steps=2).shape == shape
    testing.assert_batch_invariant(network, PARAMS, SCHEDULER, shape, num_inference_steps=2)


def test_default_is_one_step_from_noise_at_sigma_max():
    x = level_noise(sample_keys(KEY, 3), 0, (3, 2)) * 80
    state = SCHEDULER.set_timesteps(1)
    expected = SCHEDULER.denoise(state, SCHEDULER.predict(network, PARAMS, state, x), x)
    np.testing.assert_allclose(draw((3, 2)), expected, rtol=1e-6)


def test_sample_i_draws_from_the_key_folded_with_its_index():
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(5, 9))
    expected = cmjax.sample(keys, network, PARAMS, SCHEDULER, (4, 2), num_inference_steps=2)
    chex.assert_trees_all_equal(
        draw((4, 2), num_inference_steps=2, first_index=5), expected
    )


def test_raw_keys_equal_new_style_keys():
    chex.assert_trees_all_equal(
        cmjax.sample(jax.random.PRNGKey(0), network, PARAMS, SCHEDULER, (4, 2)),
        cmjax.sample(jax.random.key(0), network, PARAMS, SCHEDULER, (4, 2)),
    )
    raw = jax.random.key_data(sample_keys(KEY, 4))
    chex.assert_trees_all_equal(
        cmjax.sample(raw, network, PARAMS, SCHEDULER, (4, 2)), draw((4, 2))
    )


def test_steps_draw_different_noise_and_keys_different_samples():
    state = SCHEDULER.set_timesteps(3)
    noise = np.stack(
        [level_noise(sample_keys(KEY, 200), level, (200, 50)) for level in range(4)]
    )
    correlation = np.corrcoef(noise.reshape(4, -1))
    assert (
        np.abs(correlation - np.eye(4)).max() < 0.05
    )  # 5 standard errors of 1/sqrt(10,000)
    first, second = np.asarray(draw((2, 3), state=state))
    assert np.abs(first - second).min() > 0


def test_conditioning_reaches_its_own_sample():
    bias = jnp.arange(4, dtype=jnp.float32)
    together = draw((4, 3), cond={"bias": bias})
    for i in range(4):
        alone = draw((1, 3), cond={"bias": bias[i : i + 1]}, first_index=i)
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-5, atol=1e-5)
    assert (
        np.abs(np.asarray(together - draw((4, 3), cond={"bias": 0 * bias})))[1:].min() > 0.1
    )


def test_init_is_taken_at_the_first_level():
    x = 3 * jnp.ones((2, 3))
    given_init = draw((2, 3), sigmas=[5.0], init=x)
    state = SCHEDULER.set_timesteps(sigmas=[5.0])
    output = SCHEDULER.predict(network, PARAMS, state, x)
    np.testing.assert_allclose(given_init, SCHEDULER.denoise(state, output, x), rtol=1e-6)


def test_levels_that_start_low_start_from_noise_of_that_level():
    # diffusers starts timesteps=[22, 5] at sigma 38.3 from noise of 80.
    state = SCHEDULER.set_timesteps(timesteps=[22, 5])
    noise = level_noise(sample_keys(KEY, 2), 0, (2, 3))
    start = SCHEDULER.init_sample(state, noise)
    np.testing.assert_allclose(start, noise * state.sigmas[0], rtol=1e-6)
    assert 38 < state.sigmas[0] < 39


def test_constrain_applies_to_every_estimate():
    x, trajectory = draw(
        (2, 3),
        num_inference_steps=3,
        constrain=lambda x0: x0.at[:, 0].set(0.25),
        return_trajectory=True,
    )
    chex.assert_shape(trajectory, (3, 2, 3))
    assert np.all(np.asarray(trajectory.denoised)[:, :, 0] == 0.25)
    assert np.all(np.asarray(x)[:, 0] == 0.25)


def test_trajectory_ends_in_the_sample_and_callback_sees_the_same():
    seen = {}

    def callback(i, output):
        seen[int(i)] = jax.tree.map(np.asarray, output)

    @jax.jit
    def run():
        options = {"return_trajectory": True, "callback": callback}
        return draw((2, 3), num_inference_steps=3, **options)

    x, trajectory = run()
    jax.effects_barrier()
    chex.assert_trees_all_equal(trajectory.prev_sample[-1], x)
    assert sorted(seen) == [0, 1, 2]
    for i, output in seen.items():
        row = jax.tree.map(lambda steps, i=i: np.asarray(steps[i]), trajectory)
        chex.assert_trees_all_equal(output, row)


def test_jit_equals_eager_and_compiles_once_for_other_levels_keys_and_params():
    traces = []

    @jax.jit
    def run(key, params, sigmas):
        traces.append(1)
        return cmjax.sample(key, network, params, SCHEDULER, (4, 3), sigmas=sigmas)

    for seed, levels in enumerate([[80.0, 1.0], [40.0, 0.5], [80.0, 2.0]]):
        key, params = jax.random.key(seed), PARAMS + seed
        eager = cmjax.sample(key, network, params, SCHEDULER, (4, 3), sigmas=levels)
        np.testing.assert_allclose(
            run(key, params, jnp.array(levels)), eager, rtol=1e-5, atol=1e-6
        )
    assert len(traces) == 1


def test_traced_timesteps_equal_concrete_ones():
    run = jax.jit(lambda timesteps: draw((4, 3), timesteps=timesteps))
    np.testing.assert_allclose(
        run(jnp.array([22, 0])), draw((4, 3), timesteps=[22, 0]), rtol=1e-5
    )


def test_vmap_over_keys_and_scan_over_batches():
    keys = jax.random.split(KEY, 3)
    one = partial(
        cmjax.sample, apply_fn=network, params=PARAMS, scheduler=SCHEDULER, shape=(2, 3)
    )
    expected = jnp.stack([one(key) for key in keys])
    np.testing.assert_allclose(jax.vmap(one)(keys), expected, rtol=1e-5)

    def next_batch(first, _):
        return first + 2, draw((2, 3), first_index=first)

    _, scanned = jax.lax.scan(next_batch, 0, length=2)
    np.testing.assert_allclose(scanned.reshape(4, 3), draw((4, 3)), rtol=1e-5)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_a_sample_does_not_change_with_the_number_of_devices(devices):
    expected = draw((8, 5), num_inference_steps=3)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("batch",))
    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    keys = jax.device_put(sample_keys(KEY, 8), sharding)

    @partial(jax.jit, out_shardings=(sharding, sharding))
    def run(keys):
        noise = level_noise(keys, 1, (8, 5))
        return cmjax.sample(
            keys, network, PARAMS, SCHEDULER, (8, 5), num_inference_steps=3
        ), noise

    x, noise = run(keys)
    assert len(x.sharding.device_set) == devices
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(noise, level_noise(sample_keys(KEY, 8), 1, (8, 5)))


def test_donated_inputs():
    run = jax.jit(lambda init: draw((4, 3), init=init), donate_argnums=0)
    init = jax.random.normal(KEY, (4, 3))
    expected = draw((4, 3), init=init)
    np.testing.assert_allclose(run(init), expected, rtol=1e-5)


def test_threads_share_a_scheduler():
    results = {}

    def work(n):
        results[n] = np.asarray(draw((4, 3), num_inference_steps=n))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, x in results.items():
        np.testing.assert_array_equal(x, draw((4, 3), num_inference_steps=n))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_samples_have_the_dtype_asked_for_and_networks_see_it(dtype):
    def spy(params, x, t):
        chex.assert_type([x, t], [dtype, jnp.float32])
        return jnp.tanh(x)

    options = {"num_inference_steps": 3, "return_trajectory": True}
    x, trajectory = cmjax.sample(KEY, spy, None, SCHEDULER, (4, 3), dtype=dtype, **options)
    chex.assert_type([x, trajectory.denoised], [dtype, dtype])

    def plain(params, x, t):
        return jnp.tanh(x)

    full = cmjax.sample(KEY, plain, None, SCHEDULER, (4, 3), num_inference_steps=3)
    np.testing.assert_allclose(np.asarray(x, np.float32), full, rtol=0.05, atol=0.05)


def test_works_under_x64():
    with jax.enable_x64():
        testing.assert_scheduler_contract(cmjax.CMStochasticIterativeScheduler(), 2)
        x64 = draw((4, 3), num_inference_steps=3, dtype=jnp.float64)
        chex.assert_type(x64, jnp.float64)
        x32 = draw((4, 3), num_inference_steps=3)
        chex.assert_type(x32, jnp.float32)
    np.testing.assert_allclose(
        x64, draw((4, 3), num_inference_steps=3), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(x32, draw((4, 3), num_inference_steps=3))


def test_gradient_through_the_loop_matches_finite_differences():
    def total(params, dtype=jnp.float64):
        options = {"num_inference_steps": 3, "dtype": dtype}
        return cmjax.sample(KEY, network, params, SCHEDULER, (4, 3), **options).sum()

    with jax.enable_x64():
        chex.assert_numerical_grads(total, (jnp.float64(0.5),), order=1, atol=1e-3)
    assert np.isfinite(jax.grad(partial(total, dtype=jnp.float32))(PARAMS))


MISUSE = {
    "steps and timesteps": (dict(num_inference_steps=2, timesteps=[22, 0]), "at most one"),
    "steps and state": (
        dict(num_inference_steps=2, state=SCHEDULER.set_timesteps(1)),
        r"\['num_inference_steps', 'state'\]",
    ),
    "used state": (
        dict(state=SCHEDULER.set_timesteps(2).replace(step_index=jnp.int32(1))),
        "step 1.*set_timesteps",
    ),
    "init of another shape": (dict(init=jnp.zeros((2, 4))), r"init.*\(2, 4\).*\(2, 3\)"),
    "cond without batch": (dict(cond={"bias": jnp.zeros(5)}), r"cond\['bias'\].*2"),
    "scalar cond": (dict(cond={"bias": 1.0}), r"cond\['bias'\]"),
    "constraint changing the shape": (
        dict(constrain=lambda x: x[:, :1]),
        "the constraint must return x0 in the shape",
    ),
}


@pytest.mark.parametrize("name", MISUSE)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_misuse(name, wrap):
    options, message = MISUSE[name]
    with pytest.raises(ValueError, match=message):
        wrap(lambda: draw((2, 3), **options))()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, r"key must be a JAX PRNG key.*jax.random.key\(0\)"),
        (None, "key.*None"),
        (jnp.zeros(2), "key.*Array"),
        (jax.random.split(KEY, 3), "3 keys for a batch of 2"),
        (jax.random.split(KEY, (2, 2)), "one per sample"),
        (jax.random.key(0, impl="rbg"), "rbg.*threefry"),
        (nnx.Rngs(0), r"key must be.*jax.random.key\(0\)"),
        (nnx.Rngs(0).default.key, r"key must be.*jax.random.key\(0\)"),
    ],
)
def test_wrong_keys(key, message):
    with pytest.raises(ValueError, match=message):
        cmjax.sample(key, network, PARAMS, SCHEDULER, (2, 3))


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 0)])
def test_wrong_shapes(shape):
    with pytest.raises(ValueError, match="shape must be"):
        draw(shape)


def test_a_network_of_the_wrong_output_shape():
    with pytest.raises(ValueError, match=r"model_output \(2, 6\)"):
        cmjax.sample(
            KEY, lambda p, x, t: jnp.concatenate([x, x], 1), None, SCHEDULER, (2, 3)
        )


@every_scheduler
def test_a_deterministic_sampler_leaves_its_noise_alone_and_others_use_it(name):
    scheduler = SCHEDULERS[name]()
    state, x = scheduler.init(KEY, scheduler.set_timesteps(3), (2, 3))
    _, next_sample = scheduler.advance(state, x, x / 2, jnp.full_like(x, jnp.nan))
    assert bool(jnp.isnan(next_sample).all()) == (state.weights.noise is not None)


def test_conditioning_is_any_tree_of_arrays():
    observation = {"left": jnp.arange(2.0), "right": (jnp.ones((2, 3)), None)}
    seen = []

    def conditioned(params, x, t, observation, labels, nothing):
        seen.append((jax.tree.structure(observation), labels.shape, nothing))
        return (
            network(params, x, t) + observation["left"][:, None] * observation["right"][0]
        )

    cond = {"observation": observation, "labels": [3, 1], "nothing": None}
    made = cmjax.sample(KEY, conditioned, PARAMS, SCHEDULER, (2, 3), cond=cond)
    plain = cmjax.sample(KEY, network, PARAMS, SCHEDULER, (2, 3))
    assert seen[0] == (jax.tree.structure(observation), (2,), None)
    np.testing.assert_array_equal(made[0], plain[0])
    assert not np.array_equal(made[1], plain[1])


def test_conditioning_in_a_list_is_an_array_whatever_holds_its_numbers():
    # Under jit the numbers of a list are traced, and were taken for leaves without a batch.
    def conditioned(params, x, t, weight):
        return network(params, x, t) + weight[:, None]

    def made(weight):
        cond = {"weight": weight}
        return cmjax.sample(KEY, conditioned, PARAMS, SCHEDULER, (2, 3), cond=cond)

    wanted = made(jnp.array([0.5, 2.0]))
    np.testing.assert_array_equal(made([jnp.float32(0.5), np.float32(2.0)]), wanted)
    np.testing.assert_allclose(jax.jit(made)([0.5, 2.0]), wanted, rtol=1e-6)


def test_a_pair_whose_length_is_the_batch_is_no_array():
    pair = (jnp.ones(3), jnp.ones(3))
    with pytest.raises(
        ValueError, match=r"cond\['pair'\] must have the leading axis.*2, got \(3,\)"
    ):
        cmjax.sample(KEY, network, PARAMS, SCHEDULER, (2, 3), cond={"pair": pair})


@pytest.mark.parametrize("index", [-1, 2**32, 2.7, np.nan, "3", True, [1]])
def test_first_index_is_an_integer_of_32_bits(index):
    with pytest.raises(ValueError, match="first_index must be"):
        cmjax.sample(KEY, network, PARAMS, SCHEDULER, (2, 3), first_index=index)


def test_first_index_has_its_whole_range():
    last = 2**32 - 1
    made = cmjax.sample(KEY, network, PARAMS, SCHEDULER, (1, 3), first_index=last)
    expected = cmjax.sample(
        jax.random.fold_in(KEY, last)[None], network, PARAMS, SCHEDULER, (1, 3)
    )
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("made", [(1, 2), {"x": 1}, None])
def test_a_network_that_returns_no_array(made):
    with pytest.raises(ValueError, match="apply_fn must return one array"):
        cmjax.sample(KEY, lambda params, x, t: made, PARAMS, SCHEDULER, (2, 3))


def test_a_network_that_cannot_be_hashed_is_called_all_the_same():
    class Callable:
        __hash__ = None

        def __call__(self, params, x, t):
            return network(params, x, t)

    made = cmjax.sample(KEY, Callable(), PARAMS, SCHEDULER, (2, 3))
    np.testing.assert_array_equal(
        made, cmjax.sample(KEY, network, PARAMS, SCHEDULER, (2, 3))
    )


def test_nothing_of_a_trace_is_kept():
    with jax.checking_leaks():

        @jax.jit
        def run(scale):
            return cmjax.sample(
                KEY,
                lambda params, x, t: scale * network(params, x, t),
                PARAMS,
                SCHEDULER,
                (2, 3),
            )

        run(jnp.float32(2)).block_until_ready()


def test_levels_of_other_kinds_are_not_taken_for_those_that_are_kept():
    draw((2, 3), timesteps=[22, 0])
    with pytest.raises(ValueError, match="timesteps must be a list of integers"):
        draw((2, 3), timesteps=[22.0, 0.0])


def test_a_constraint_does_not_change_the_dtype():
    def constrain(x0):
        return x0.astype(jnp.float32)

    assert draw((2, 3), constrain=constrain, dtype=jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize("cond", [{"a": "text"}, {"a": [[1, 2], [3]]}, [jnp.ones(2)], "ab"])
def test_conditioning_that_is_no_array(cond):
    with pytest.raises(ValueError, match="cond"):
        draw((2, 3), cond=cond)


@pytest.mark.parametrize("name", ["state", "sample", "sigma", "key", "scheduler"])
def test_conditioning_may_have_any_name(name):
    def conditioned(params, x, t, **cond):
        return network(params, x, t) + cond[name][:, None]

    made = cmjax.sample(
        KEY, conditioned, PARAMS, SCHEDULER, (2, 3), cond={name: jnp.arange(2.0)}
    )
    np.testing.assert_array_equal(made[0], draw((2, 3))[0])


def test_a_state_of_another_scheduler_is_refused():
    state = SCHEDULERS["EDMHeunScheduler"]().set_timesteps(2)
    with pytest.raises(
        ValueError, match="state was made by a EDMHeunScheduler, but this is a CM"
    ):
        draw((2, 3), state=state)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64])
def test_samples_are_floating_point_numbers(dtype):
    with pytest.raises(ValueError, match="dtype must be a floating-point dtype"):
        draw((2, 3), dtype=dtype)


@pytest.mark.parametrize("scheduler", [cmjax.CMStochasticIterativeScheduler, "CM", None])
def test_what_is_no_scheduler(scheduler):
    with pytest.raises(ValueError, match="scheduler must be a scheduler, such as"):
        cmjax.sample(KEY, network, PARAMS, scheduler, (2, 3))


def test_levels_in_bfloat16_are_levels():
    levels = jnp.array([80, 2.0], jnp.bfloat16)
    chex.assert_trees_all_equal(
        draw((2, 3), sigmas=levels), draw((2, 3), sigmas=[80.0, 2.0])
    )


def test_a_solver_warns_of_the_one_step_that_is_the_default():
    solver = cmjax.EDMHeunScheduler()
    run = (KEY, network, PARAMS, solver, (2, 3))
    with pytest.warns(
        UserWarning, match="EDMHeunScheduler is a solver, and takes one step"
    ):
        one = cmjax.sample(*run)
    np.testing.assert_array_equal(cmjax.sample(*run, num_inference_steps=1), one)
    assert draw((2, 3)).shape == (2, 3)  # what consistency functions are for
