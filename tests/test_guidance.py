"""Guidance: the guided ODE in closed form, where it changes nothing, and misuse."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import cmjax
from cmjax.conditioning import with_null
from cmjax.guidance import adaptive_projection, autoguidance, classifier_free
from cmjax.models import compute_in
from cmjax.networks import is_guided, num_classes
from cmjax.parametrization import adapt, edm_denoiser
from tests.support import mixtures
from tests.support.mixtures import NULL

KEY = jax.random.key(0)
B = 6
LABELS = jnp.array([0, 1, 0, 1, 0, 1])
NOISE = jax.random.normal(jax.random.key(1), (B, 2))
EDM = cmjax.EDMHeunScheduler(sigma_max=20.0)
PATH = EDM.parametrization
NETWORK = mixtures.network(PATH)
TIMES = PATH.time(jnp.array([0.1, 0.5, 1.0, 2.0, 5.0, 10.0]))


def counted(network):
    """A network, and the list that grows by the batch of each call that is traced or made."""
    calls = []

    def counting(params, x, t, **cond):
        calls.append(len(x))
        return network(params, x, t, **cond)

    return counting, calls


def guided_samples(scheduler, network, scale, init, steps, **options):
    path = scheduler.parametrization
    guided = classifier_free(network, scale, null=NULL, parametrization=path, **options)
    cond = {"class_labels": LABELS}
    return cmjax.sample(KEY, guided, None, scheduler, (B, 2), init=init, cond=cond, **steps)


@pytest.mark.parametrize(
    ("scheduler", "steps"),
    [
        (EDM, {"num_inference_steps": 200}),
        (
            cmjax.EDMDPMSolverMultistepScheduler(sigma_max=20.0),
            {"num_inference_steps": 240},
        ),
        (
            cmjax.DPMSolverMultistepScheduler(prediction_type="v_prediction"),
            {"num_inference_steps": 200},
        ),
        pytest.param(
            cmjax.FlowMatchHeunDiscreteScheduler(),
            {"num_inference_steps": 200},
            marks=pytest.mark.thorough,
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_samples_are_those_of_the_guided_ode(scheduler, steps):
    path = scheduler.parametrization
    state = scheduler.set_timesteps(**steps)
    alpha, sigma = path.path(state.timesteps[:1])
    if alpha[0] == 0:  # flow matching starts from noise alone
        state = scheduler.set_timesteps(timesteps=np.unique(state.timesteps)[-2::-1])
        alpha, sigma = path.path(state.timesteps[:1])
    ratio = float(sigma[0] / alpha[0])
    samples = guided_samples(
        scheduler, mixtures.network(path), 3.0, sigma[0] * NOISE, {"state": state}
    )
    wanted = mixtures.guided_ends(ratio * NOISE, ratio, LABELS, 3.0)
    np.testing.assert_allclose(samples, wanted, atol=1e-3)
    plain = mixtures.guided_ends(ratio * NOISE, ratio, LABELS, 1.0, steps=400)
    assert abs(wanted - plain).max() > 0.3


def test_a_scale_of_one_is_the_network_itself():
    for one in (1, 1.0, np.float32(1), jnp.float32(1), np.ones(B), jnp.ones(B)):
        assert classifier_free(NETWORK, one, null=NULL) is NETWORK
        made = adaptive_projection(NETWORK, one, null=NULL, parametrization=PATH)
        assert made is NETWORK
    assert classifier_free(NETWORK, 1, null=NULL, doubled=True, rescale=0.5) is NETWORK

    # Of a pair, the first alone is called.
    network, calls = counted(lambda params, x, t: params * x)
    alone = autoguidance(network, 1)((0.3, 0.1), NOISE, TIMES)
    np.testing.assert_array_equal(alone, network(0.3, NOISE, TIMES))
    assert len(calls) == 2
    assert not is_guided(autoguidance(network, 1))


def test_a_traced_scale_of_one_is_bit_equal():
    def of(scale, **options):
        guided = classifier_free(NETWORK, scale, null=NULL, **options)
        return guided(None, NOISE, TIMES, class_labels=LABELS)

    plain = NETWORK(None, NOISE, TIMES, class_labels=LABELS)
    for options in ({}, {"rescale": 0.7}):
        np.testing.assert_array_equal(of(jax.jit(lambda one: one)(1.0), **options), plain)
        traced = jax.jit(lambda one, o=options: of(one, **o))(1.0)
        np.testing.assert_allclose(traced, plain, rtol=1e-6)


@pytest.mark.parametrize("doubled", [False, True])
def test_calls_of_the_network(doubled):
    network, calls = counted(NETWORK)
    guided = classifier_free(network, 3.0, null=NULL, doubled=doubled)
    assert num_classes(guided) is None
    assert is_guided(guided)
    made = guided(None, NOISE, TIMES, class_labels=LABELS)
    assert calls == ([2 * B] if doubled else [B, B])

    # By hand.
    output = NETWORK(None, NOISE, TIMES, class_labels=LABELS)
    without = NETWORK(None, NOISE, TIMES, class_labels=jnp.full(B, 2))
    np.testing.assert_allclose(made, without + 3 * (output - without), atol=1e-5)


def test_an_interval_that_no_level_meets_is_no_guidance():
    steps = {"num_inference_steps": 4}
    runs = []
    for interval in (None, (30.0, 40.0), (0.0, 1e-4)):
        for doubled in (False, True):
            options = {"interval": interval, "doubled": doubled}
            scale = 1.0 if interval is None else 5.0
            runs.append(guided_samples(EDM, NETWORK, scale, 20 * NOISE, steps, **options))
    for run in runs[1:]:
        np.testing.assert_allclose(run, runs[0], atol=1e-6)


@pytest.mark.parametrize("doubled", [False, True])
def test_an_interval_holds_for_each_sample_and_both_ends(doubled):
    options = {"null": NULL, "parametrization": PATH, "doubled": doubled}
    guided = classifier_free(NETWORK, 4.0, interval=(0.5, 5.0), **options)
    always = classifier_free(NETWORK, 4.0, **options)
    made = guided(None, NOISE, TIMES, class_labels=LABELS)
    plain = NETWORK(None, NOISE, TIMES, class_labels=LABELS)
    everywhere = always(None, NOISE, TIMES, class_labels=LABELS)
    inside = jnp.array([0, 1, 1, 1, 1, 0], bool)[:, None]
    np.testing.assert_allclose(made, jnp.where(inside, everywhere, plain), rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda scale: classifier_free(NETWORK, scale, null=NULL, rescale=0.5),
        lambda scale: adaptive_projection(
            NETWORK, scale, null=NULL, parametrization=PATH, norm_threshold=0.5
        ),
    ],
    ids=["rescaled", "projected"],
)
def test_a_scale_per_sample_is_a_loop(make):
    scales = jnp.linspace(0, 4, B)
    together = make(scales)(None, NOISE, TIMES, class_labels=LABELS)
    for i in (0, 2, 5):
        one = make(float(scales[i]))(
            None, NOISE[i : i + 1], TIMES[i : i + 1], class_labels=LABELS[i : i + 1]
        )
        np.testing.assert_allclose(together[i], one[0], atol=1e-5)

    # The same of a trace, whose scale is data.
    def at(scale, x, time, label):
        return make(scale)(None, x[None], time[None], class_labels=label[None])[0]

    mapped = jax.vmap(at)(scales, NOISE, TIMES, LABELS)
    np.testing.assert_allclose(mapped, together, atol=1e-5)


def test_a_schedule_over_the_levels_of_a_flow():
    # It begins with noise alone, of which sigma / (1 + sigma) was NaN.
    path = cmjax.FlowMatchEulerDiscreteScheduler().parametrization
    times = path.time(jnp.array([jnp.inf, 3.0, 1.0, 0.5, 0.25, 0.0]))
    guided = autoguidance(
        lambda params, x, t: params * x,
        lambda sigma: sigma / (1 + sigma),
        parametrization=path,
    )
    made = guided((1.0, 0.0), jnp.ones((B, 1)), times)
    np.testing.assert_allclose(made[:, 0], [1, 3 / 4, 1 / 2, 1 / 3, 1 / 5, 0], atol=1e-5)


def test_a_schedule_over_levels():
    def schedule(sigma):
        return jnp.where(sigma < 1.5, 2.0, 3.0)

    guided = classifier_free(NETWORK, schedule, null=NULL, parametrization=PATH)
    scales = jnp.array([2.0, 2.0, 2.0, 3.0, 3.0, 3.0])
    fixed = classifier_free(NETWORK, scales, null=NULL)
    cond = {"class_labels": LABELS}
    np.testing.assert_array_equal(
        guided(None, NOISE, TIMES, **cond), fixed(None, NOISE, TIMES, **cond)
    )


@pytest.mark.parametrize(
    "scheduler",
    [
        cmjax.DDIMScheduler(),
        cmjax.EulerDiscreteScheduler(prediction_type="v_prediction"),
        cmjax.FlowMatchEulerDiscreteScheduler(),
        cmjax.KarrasVeScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_levels_are_those_of_edm_whatever_the_network_is_told(scheduler):
    # All of the levels between two calls of a run: those calls alone are guided.
    state = scheduler.set_timesteps(6)
    path = scheduler.parametrization
    alpha, sigma = path.path(state.timesteps)
    levels = np.asarray(sigma / alpha)
    guided = classifier_free(
        lambda params, x, t, class_labels: class_labels[:, None].astype(x.dtype) + 0 * x,
        2.0,
        null=NULL,
        interval=(levels[4], levels[2]),
        parametrization=path,
    )
    ones = jnp.ones(len(levels), int)
    made = guided(None, jnp.zeros((len(levels), 1)), state.timesteps, class_labels=ones)
    wanted = (levels >= levels[4]) & (levels <= levels[2])
    assert wanted.sum() == 3
    np.testing.assert_array_equal(made[:, 0], np.where(wanted, 0.0, 1.0))


def rescaled_by_lin(output, other, scale, share):
    """Lin et al. 2024, algorithm 2, in NumPy."""
    guided = other + scale * (output - other)
    axes = tuple(range(1, output.ndim))
    ratio = output.std(axes, keepdims=True) / guided.std(axes, keepdims=True)
    return share * guided * ratio + (1 - share) * guided


def test_rescaling_brings_back_the_spread_of_each_sample():
    x = jax.random.normal(KEY, (2, 4, 4, 3))
    tables = jax.random.normal(jax.random.key(2), (3, 4, 4, 3))
    labels = jnp.array([0, 1])

    def network(params, x, t, class_labels):
        return x + params[class_labels]

    guided = classifier_free(network, 5.0, null=NULL, rescale=0.7)
    made = guided(tables, x, jnp.zeros(2), class_labels=labels)
    output = np.asarray(x + tables[labels], np.float64)
    other = np.asarray(x + tables[2:], np.float64)
    np.testing.assert_allclose(made, rescaled_by_lin(output, other, 5.0, 0.7), rtol=2e-5)


def projected_by_sadat(denoised, other, scale, eta, bound):
    """Sadat et al. 2024, algorithm 1, in NumPy, without momentum."""
    made = []
    for mine, away in zip(denoised, other, strict=True):
        change = mine - away
        change = change * min(1, bound / np.linalg.norm(change))
        direction = mine / np.linalg.norm(mine)
        parallel = (change * direction).sum() * direction
        made.append(mine + (scale - 1) * (change - parallel + eta * parallel))
    return np.stack(made)


@pytest.mark.parametrize(
    "path",
    [
        cmjax.CMStochasticIterativeScheduler().parametrization,
        cmjax.DDIMScheduler().parametrization,
        cmjax.FlowMatchEulerDiscreteScheduler().parametrization,
    ],
    ids=lambda path: type(path).__name__,
)
def test_projection_acts_on_the_denoised_samples(path):
    network = mixtures.network(path.without_boundary())
    guided = adaptive_projection(
        network, 4.0, null=NULL, parametrization=path, eta=0.3, norm_threshold=0.5
    )
    times = jnp.round(path.time(jnp.array([0.2, 0.5, 1.0, 2.0, 4.0, 8.0])))
    alpha, sigma = path.path(times)
    c_in, c_skip, c_out = path.without_boundary().scalings(alpha, sigma)
    wide = [np.broadcast_to(np.asarray(c), (B,))[:, None] for c in (c_in, c_skip, c_out)]

    def denoised(network, labels):
        output = network(None, NOISE, times, class_labels=labels)
        return np.asarray(wide[1] * NOISE / wide[0] + wide[2] * output, np.float64)

    wanted = projected_by_sadat(
        denoised(network, LABELS), denoised(network, jnp.full(B, 2)), 4.0, 0.3, 0.5
    )
    np.testing.assert_allclose(denoised(guided, LABELS), wanted, rtol=1e-4, atol=1e-4)


def test_projection_with_the_parallel_part_is_classifier_free():
    options = {"null": NULL, "interval": (0.3, 3.0), "parametrization": PATH}
    projected = adaptive_projection(NETWORK, 4.0, eta=1.0, **options)
    plain = classifier_free(NETWORK, 4.0, **options)
    cond = {"class_labels": LABELS}
    np.testing.assert_allclose(
        projected(None, NOISE, TIMES, **cond), plain(None, NOISE, TIMES, **cond), atol=1e-5
    )


def test_guidance_of_a_denoiser_for_training():
    # A teacher: the losses call it at levels of their own.
    scheduler = cmjax.CMStochasticIterativeScheduler()
    network = mixtures.network(scheduler.parametrization.without_boundary())
    guided = classifier_free(network, 3.0, null=NULL)
    sigma = jnp.linspace(0.2, 4.0, B)

    def of(network, labels):
        return edm_denoiser(network, None, scheduler, NOISE, sigma, class_labels=labels)

    mine = of(network, LABELS)
    without = of(network, jnp.full(B, 2))
    np.testing.assert_allclose(
        of(guided, LABELS), without + 3 * (mine - without), atol=1e-5
    )


@pytest.mark.parametrize(
    ("null", "wanted"),
    [
        ({"text": 0}, np.zeros((2, 3))),
        ({"text": [1, 2, 3]}, np.array([[1.0, 2, 3], [1, 2, 3]])),
        ({"text": np.ones(3, np.float16)}, np.ones((2, 3))),
        ({"text": jnp.arange(6.0).reshape(2, 3)}, np.arange(6.0).reshape(2, 3)),
    ],
)
@pytest.mark.parametrize("doubled", [False, True])
def test_the_null_of_any_conditioning(null, wanted, doubled):
    def network(params, x, t, text, extra):
        return text

    guided = classifier_free(network, 0.0, null=null, doubled=doubled)
    options = {"text": jnp.full((2, 3), 7.0), "extra": jnp.ones(2)}
    made = guided(None, jnp.zeros((2, 3)), jnp.zeros(2), **options)
    np.testing.assert_array_equal(made, wanted)


@pytest.mark.parametrize("null", [5, {"a": 5, "b": [1, 2]}])
def test_the_null_of_a_pytree(null):
    def network(params, x, t, text):
        return text["a"]

    guided = classifier_free(network, 0.0, null={"text": null})
    text = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 2))}
    made = guided(None, jnp.zeros((2, 3)), jnp.zeros(2), text=text)
    np.testing.assert_array_equal(made, np.full((2, 3), 5.0))


def test_conditioning_that_is_left_out():
    def network(params, x, t, text=None):
        return jnp.zeros_like(x) if text is None else text

    guided = classifier_free(network, 3.0, null={"text": None})
    made = guided(None, jnp.zeros((2, 3)), jnp.zeros(2), text=jnp.ones((2, 3)))
    np.testing.assert_array_equal(made, np.full((2, 3), 3.0))


@pytest.mark.parametrize(
    ("axis", "doubled"),
    [
        (AxisType.Explicit, True),
        pytest.param(AxisType.Explicit, False, marks=pytest.mark.thorough),
        pytest.param(AxisType.Auto, True, marks=pytest.mark.thorough),
    ],
)
def test_on_meshes(axis, doubled):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(axis,))
    divided = NamedSharding(mesh, PartitionSpec("data"))
    options = {"interval": (0.3, 3.0), "parametrization": PATH, "doubled": doubled}
    guided = classifier_free(NETWORK, np.linspace(0, 4, B), null=NULL, **options)

    def draw(init, labels):
        cond = {"class_labels": labels}
        run = (KEY, guided, None, EDM, (B, 2))
        return cmjax.sample(*run, init=init, cond=cond, num_inference_steps=1)

    plain = draw(20 * NOISE, LABELS)
    with jax.set_mesh(mesh):
        made = jax.jit(draw)(*jax.device_put((20 * NOISE, LABELS), divided))
    np.testing.assert_allclose(np.asarray(made), plain, atol=1e-5)


@pytest.mark.parametrize("doubled", [False, True])
def test_a_learned_variance_is_that_of_the_network_alone(doubled):
    def network(params, x, t, class_labels):
        shift = class_labels[:, None].astype(x.dtype)
        return jnp.concatenate([x + shift, x - shift], axis=-1)

    guided = classifier_free(network, 3.0, null=NULL, doubled=doubled)
    made = guided(None, NOISE, TIMES, class_labels=LABELS)
    labels = np.asarray(LABELS, np.float32)[:, None]
    np.testing.assert_allclose(made[:, :2], NOISE + 2 + 3 * (labels - 2), atol=1e-5)
    np.testing.assert_allclose(made[:, 2:], NOISE - labels, atol=1e-6)

    # Its sampler takes it.
    scheduler = cmjax.DDPMScheduler(variance_type="learned_range")
    state = scheduler.set_timesteps(2)
    output = scheduler.predict(guided, None, state, NOISE, class_labels=LABELS)
    assert output.shape == (B, 4)


def test_dtypes():
    x = NOISE.astype(jnp.bfloat16)
    for make in (classifier_free, adaptive_projection):
        guided = make(NETWORK, 3.0, null=NULL, parametrization=PATH)
        assert guided(None, x, TIMES, class_labels=LABELS).dtype == jnp.bfloat16
        with jax.enable_x64(True):
            wide = jnp.asarray(np.asarray(NOISE, np.float64))
            assert guided(None, wide, TIMES, class_labels=LABELS).dtype == jnp.float64


def test_equal_guidance_is_one_function_and_compiles_once():
    one = classifier_free(NETWORK, 3, null={"class_labels": 2})
    assert one is classifier_free(NETWORK, jnp.float32(3), null=NULL)
    assert one is not classifier_free(NETWORK, 4, null=NULL)
    per_sample = classifier_free(NETWORK, [3, 2.5], null=NULL)
    assert per_sample is classifier_free(NETWORK, jnp.array([3, 2.5]), null=NULL)
    assert per_sample is not classifier_free(NETWORK, [3, 2.25], null=NULL)


def test_guidance_by_equal_arrays_is_one_function():
    # It was another one for each call, so that `cmjax.sample` compiled each time.
    def made(scale, null):
        return classifier_free(NETWORK, scale, null={"class_labels": null})

    one = made(np.arange(B), np.full(B, 2))
    assert one is made(jnp.arange(B), np.full(B, 2))
    assert one is not made(np.arange(B) + 1, np.full(B, 2))
    assert one is not made(np.arange(B), np.full(B, 1))

    # It keeps numbers of its own.
    null = np.full(B, 2)
    kept = made(3.0, null)
    before = kept(None, NOISE, TIMES, class_labels=LABELS)
    null[:] = 1
    np.testing.assert_array_equal(kept(None, NOISE, TIMES, class_labels=LABELS), before)


def test_equal_numbers_of_other_types_are_other_guidance():
    # One function was kept for 2.0 and 2, which then was no class either.
    with pytest.raises(ValueError, match=r"null\['class_labels'\] must be int32"):
        classifier_free(NETWORK, 5.0, null={"class_labels": 2.0})(
            None, NOISE, TIMES, class_labels=LABELS
        )
    guided = classifier_free(NETWORK, 5.0, null={"class_labels": 2})
    assert guided(None, NOISE, TIMES, class_labels=LABELS).shape == NOISE.shape


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (jnp.uint8, 256),
        (jnp.uint8, -1),
        (jnp.int32, 2**40),
        (jnp.int32, [2**33, 1, 1, 1, 1, 1]),
        (jnp.float16, 1e6),
        (jnp.float32, 1e300),
        (jnp.float32, 1j),
    ],
)
def test_a_null_that_its_place_cannot_hold_is_refused(dtype, value):
    # 256 as an integer of 8 bits was class 0.
    cond = {"text": jnp.zeros(B, dtype)}
    with pytest.raises(ValueError, match=r"null\['text'\] must be"):
        with_null(cond, {"text": value})


def test_editing_by_the_posterior_is_guided_as_sampling_is():
    scheduler = cmjax.CMStochasticIterativeScheduler()
    network = mixtures.network(scheduler.parametrization)
    guided = classifier_free(network, 2.0, null=NULL)
    known = cmjax.editing.inpaint(jnp.array([0.5, 0.0]), jnp.array([1.0, 0.0]))

    def run(apply_fn, sigmas):
        cond = {"class_labels": LABELS}
        arguments = (KEY, apply_fn, None, scheduler, known, (B, 2))
        return cmjax.editing.edit(*arguments, method="posterior", sigmas=sigmas, cond=cond)

    def extrapolated(params, x, t, class_labels):
        null = jnp.full_like(class_labels, NULL["class_labels"])
        without = network(params, x, t, class_labels=null)
        return 2.0 * network(params, x, t, class_labels=class_labels) - without

    # Refused and warned of as in `cmjax.sample`, and otherwise the network that it says it is.
    with pytest.raises(ValueError, match="single call throws samples far from the data"):
        run(guided, [5.0])
    with pytest.warns(UserWarning, match="only an approximation of guidance"):
        made = run(guided, [5.0, 1.0])
    np.testing.assert_allclose(made, run(extrapolated, [5.0, 1.0]), atol=1e-4)
    assert np.all(made[:, 0] == 0.5)


def test_a_weaker_network_of_another_dtype_and_without_a_variance():
    # With an interval both were errors of `jax.lax.cond`, or of broadcasting.
    def network(params, x, t):
        made = params * x.astype(params.dtype)
        return jnp.concatenate([made, made], axis=-1) if params.dtype == "float32" else made

    good = jnp.float32(0.5)
    weak = jnp.asarray(0.25, jnp.bfloat16)
    for interval in (None, (0.0, 100.0), (50.0, 100.0)):
        guided = autoguidance(network, 3.0, interval=interval, parametrization=PATH)
        made = guided((good, weak), NOISE, TIMES)
        factor = 0.5 if interval == (50.0, 100.0) else 0.25 + 3 * 0.25
        np.testing.assert_allclose(made[:, :2], factor * NOISE, rtol=0.02)
        np.testing.assert_array_equal(made[:, 2:], 0.5 * NOISE)
        np.testing.assert_allclose(
            guided((weak, good), NOISE, TIMES).astype(jnp.float32),
            (0.25 if interval == (50.0, 100.0) else 0.5 - 3 * 0.25) * NOISE,
            rtol=0.02,
        )


def test_rescaling_leaves_what_does_not_vary_within_a_sample():
    # The rounding of its mean was taken for a spread, and gradients were NaN.
    def network(params, x, t, class_labels):
        return params[class_labels][:, None] + 0 * x

    guided = classifier_free(network, 3.0, null=NULL, rescale=0.7)
    x = jnp.zeros((B, 784))

    def first(params):
        return guided(params, x, TIMES, class_labels=LABELS)[0, 0]

    value, slope = jax.value_and_grad(first)(jnp.array([1.1, 0.7, 0.3]))
    np.testing.assert_allclose(value, 2.7, rtol=1e-6)
    np.testing.assert_allclose(slope, [3, 0, -2], rtol=1e-6)


def test_guided_networks_are_exported_for_any_batch():
    (batch,) = jax.export.symbolic_shape("b")
    samples = jax.ShapeDtypeStruct((batch, 2), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    for guided in (
        classifier_free(NETWORK, 3.0, null=NULL, rescale=0.7, doubled=True),
        adaptive_projection(
            NETWORK, 3.0, null=NULL, parametrization=PATH, norm_threshold=1.0
        ),
    ):

        def of_one_time(x, labels, guided=guided):
            return guided(None, x, jnp.ones(x.shape[:1]), class_labels=labels)

        exported = jax.export.export(jax.jit(of_one_time))(samples, labels)
        wanted = of_one_time(NOISE, LABELS)
        np.testing.assert_allclose(exported.call(NOISE, LABELS), wanted, rtol=1e-5)


def test_times_that_are_integers_or_missing():
    guided = classifier_free(
        NETWORK, 3.0, null=NULL, interval=(0.5, 2.0), parametrization=PATH
    )
    wanted = guided(None, NOISE, jnp.ones(B), class_labels=LABELS)
    made = guided(None, NOISE, [1] * B, class_labels=LABELS)
    np.testing.assert_array_equal(made, wanted)
    with pytest.raises(TypeError, match="positional argument: 't'"):
        guided(None, NOISE, class_labels=LABELS)


def test_consistency_functions_are_not_guided():
    scheduler = cmjax.CMStochasticIterativeScheduler()
    guided = classifier_free(mixtures.network(scheduler.parametrization), 2.0, null=NULL)
    run = (KEY, guided, None, scheduler, (B, 2))
    cond = {"class_labels": LABELS}
    with pytest.raises(ValueError, match="single call throws samples far from the data"):
        cmjax.sample(*run, cond=cond)
    with pytest.warns(UserWarning, match="only an approximation of guidance"):
        cmjax.sample(*run, cond=cond, sigmas=[5.0, 1.0])
    with pytest.raises(ValueError, match="apply_fn is guided"):
        cmjax.editing.denoise(guided, None, scheduler, NOISE, 1.0, cond=cond)


def test_a_guided_network_is_known_within_others():
    consistency = cmjax.CMStochasticIterativeScheduler()
    guided = classifier_free(mixtures.network(PATH), 2.0, null=NULL)
    adapted = adapt(guided, EDM, consistency, edm_denoiser)
    for network in (adapted, compute_in(adapted, jnp.bfloat16)):
        with pytest.raises(ValueError, match="apply_fn is guided"):
            cmjax.sample(
                KEY, network, {}, consistency, (B, 2), cond={"class_labels": LABELS}
            )


def test_misuse():
    def refused(message, *args, function=classifier_free, **options):
        options = {"null": NULL, **options}
        if function is autoguidance:
            del options["null"]
        with pytest.raises(ValueError, match=message):
            function(NETWORK, *args, **options)

    for function in (classifier_free, autoguidance):
        for scale in (np.nan, np.inf, [1.0, np.nan]):
            refused("scale must be finite", scale, function=function)
        for scale in (True, 1j, None, "3"):
            refused("scale must be", scale, function=function)
        refused("scale must be a number or one per", np.ones((2, 2)), function=function)
        for interval in ((2, 1), (1,), (-1, 2), (np.nan, 1), "ab", (True, False), 3.0):
            options = {"interval": interval, "parametrization": PATH}
            refused("interval must be", 2.0, function=function, **options)
        refused("parametrization is missing", 2.0, function=function, interval=(1, 2))
        refused("parametrization is missing", jnp.sqrt, function=function)
        refused("parametrization must be", 2.0, function=function, parametrization=EDM)
        for share in (-0.1, 1.1, np.nan, None, True):
            refused("rescale must be", 2.0, function=function, rescale=share)
    refused("eta must be", 2.0, function=adaptive_projection, parametrization=PATH, eta=-1)
    for null in (None, {}, 10, {1: 2}):
        refused("null must map names", 2.0, null=null)
    refused(r"null\['a'\] must be finite", 2.0, null={"a": np.nan})
    refused("doubled must be True or False", 2.0, doubled=1)
    refused("doubled=True needs", 2.0, null={"a": None}, doubled=True)

    # At the call.
    def fails(message, null: Any = NULL, scale: Any = 2.0, **cond):
        cond = cond or {"class_labels": LABELS}
        with pytest.raises(ValueError, match=message):
            classifier_free(NETWORK, scale, null=null)(None, NOISE, TIMES, **cond)

    fails("null has 'class_label', but cond has", null={"class_label": 2})
    fails(r"null\['class_labels'\] must be int32", null={"class_labels": 0.5})
    fails(r"must have the shape \(\) or \(6,\)", null={"class_labels": [1, 2]})
    fails("must be numbers", null={"class_labels": {"a": 1, "b": 2}})
    tree = {"a": jnp.ones(B)}
    fails("must be a pytree like", null={"text": {"b": 1}}, text=tree, class_labels=LABELS)
    fails(r"scale must be a number or one per sample \(6,\)", scale=[1.0, 2.0])
    at_levels = classifier_free(
        NETWORK, lambda sigma: np.nan, null=NULL, parametrization=PATH
    )
    with pytest.raises(ValueError, match="scale must be finite, got nan"):
        at_levels(None, NOISE, TIMES, class_labels=LABELS)
