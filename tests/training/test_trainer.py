"""The training step and its checkpoints, on a network of two numbers."""

import gc
import shutil
import threading
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cmjax
from cmjax.models import compute_in
from cmjax.training import checkpointing, losses, trainer
from cmjax.training.checkpointing import CLEANING, Checkpoints
from cmjax.training.losses.weighting import with_level_weight

SCHEDULER = cmjax.CMStochasticIterativeScheduler()
DENOISING = losses.Denoising(SCHEDULER)
OPTIMIZER = optax.adam(1e-2)
# Far from zero: the bias can learn it.
BATCH = {"data": np.linspace(0.8, 1, 64, dtype=np.float32).reshape(32, 2)}


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's Adam itself mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def network(params, x, t):
    return params["gain"] * x + params["bias"][None]


def by_name(name, **options):
    return losses.make(name, SCHEDULER, total_steps=100, **options)


def start(train_step, size=2):
    params = {"gain": jnp.float32(0), "bias": jnp.zeros(size)}
    return train_step.init(jax.random.key(0), params)


def make(loss=DENOISING, **options):
    train_step = trainer.make_train_step(loss, network, OPTIMIZER, **options)
    return train_step, start(train_step)


def run(train_step, state, steps):
    history = []
    for _ in range(steps):
        state, metrics = train_step(state, BATCH)
        history.append(float(metrics["loss"]))
    return state, history


def test_training_lowers_the_loss_and_averages_follow():
    state, history = run(*make(), 300)
    assert np.mean(history[-50:]) < 0.8 * np.mean(history[:50])
    assert int(state.step) == 300 and state.target is None
    gap = abs(float(state.ema[0]["gain"] - state.params["gain"]))
    assert 0 < gap < abs(float(state.params["gain"]))


def test_a_step_is_compiled_once():
    traces = []

    def counting(*args):
        traces.append(1)
        return DENOISING(*args)

    run(*make(counting), 3)
    assert len(traces) == 1


def test_a_step_is_freed_with_its_last_reference():
    # Not only by the garbage collector: it holds the teacher's parameters on the devices.
    train_step, state = make()
    run(train_step, state, 1)
    freed = weakref.ref(train_step)
    gc.disable()
    try:
        del train_step
        assert freed() is None
    finally:
        gc.enable()


def test_strict_promotion_is_not_asked_of_the_optimizer():
    with jax.numpy_dtype_promotion("strict"):
        run(*make(), 1)


def test_averages_follow_their_ramps():
    train_step, state = make(ema_decays=(0.5, 0.15))
    expected = [0.0, 0.0]
    for step in range(20):
        state, _ = train_step(state, BATCH)
        for i, decay in enumerate((0.5, 0.15)):
            ramped = min(decay, (1 + step) / (10 + step))
            expected[i] = ramped * expected[i] + (1 - ramped) * float(state.params["gain"])
            assert float(state.ema[i]["gain"]) == pytest.approx(expected[i], rel=1e-5)


def test_averages_of_frozen_parameters_stay_as_they_are():
    def mean_gain(params, x, t):
        return params.mean() * x

    frozen = optax.set_to_zero()
    train_step = trainer.make_train_step(
        DENOISING, mean_gain, frozen, ema_decays=(0.9, 0.1)
    )
    gains = jax.random.normal(jax.random.key(3), (1000,))
    state, _ = run(train_step, train_step.init(jax.random.key(0), gains), 3)
    for average in state.ema:
        chex.assert_trees_all_equal(average, gains)


def test_a_moving_target_is_what_the_loss_compares_with():
    class Steady(losses.ConsistencyTraining):
        def target_decay_at(self, step):
            return jnp.float32(0.75)

    train_step, state = make(Steady(SCHEDULER, total_steps=100))
    expected = 0.0
    for _ in range(5):
        state, _ = train_step(state, BATCH)
        expected = 0.75 * expected + 0.25 * float(state.params["gain"])
        assert float(state.target["gain"]) == pytest.approx(expected, rel=1e-5)


def test_accumulation_takes_the_mean_over_parts_of_the_batch():
    """With a loss that draws nothing, the parts' mean is the whole's."""

    def loss(key, apply_fn, params, frozen, batch, step):
        value = jnp.mean(jnp.square(params["gain"] - batch["data"]))
        value += jnp.sum(jnp.square(params["bias"] - 1))
        return value, {"loss": value}

    whole, whole_metrics = run(*make(loss), 3)
    parts, parts_metrics = run(*make(loss, accumulate=4), 3)
    chex.assert_trees_all_close(parts.params, whole.params, rtol=1e-5)
    np.testing.assert_allclose(parts_metrics, whole_metrics, rtol=1e-6)


def test_the_parts_of_a_batch_draw_noise_of_their_own():
    def loss(key, apply_fn, params, frozen, batch, step):
        value = jax.random.uniform(key) + 0 * jnp.sum(params["bias"])
        return value, {"loss": value}

    train_step, state = make(loss, accumulate=2)
    key = jax.random.fold_in(jax.random.key(0), 0)
    expected = np.mean([jax.random.uniform(jax.random.fold_in(key, i)) for i in (0, 1)])
    assert float(train_step(state, BATCH)[1]["loss"]) == pytest.approx(expected)


@pytest.mark.parametrize(
    "name, counts", [("denoising", (1, 2, 8)), ("ect", (8,)), ("sct", (2,))]
)
def test_any_number_of_devices_gives_the_same_losses(name, counts):
    loss = by_name(name)
    _, expected = run(*make(loss, accumulate=2), 5)
    for count in counts:
        mesh = trainer.data_mesh(jax.devices()[:count])
        state, history = run(*make(loss, mesh=mesh, accumulate=2), 5)
        assert len(jax.tree.leaves(state)[0].devices()) == count
        np.testing.assert_allclose(history, expected, rtol=1e-5)


def test_trees_of_conditioning_are_divided_too():
    def conditioned(params, x, t, observed):
        return network(params, x, t) + observed["place"] + observed["angle"][:, None]

    batch = {
        "observed": {"place": BATCH["data"], "angle": np.ones(32, np.float32)},
        **BATCH,
    }
    steps = []
    for mesh in (None, jax.make_mesh((2,), ("data",))):
        train_step = trainer.make_train_step(
            DENOISING, conditioned, OPTIMIZER, accumulate=4, mesh=mesh
        )
        steps.append(float(train_step(start(train_step), batch)[1]["loss"]))
    assert steps[0] == pytest.approx(steps[1], rel=1e-5)


def test_bfloat16_is_the_networks_alone():
    seen = []

    def spy(params, x, t):
        seen.append((x.dtype, t.dtype))
        return x * params["gain"].astype(x.dtype)

    fixed = compute_in(spy, jnp.bfloat16)
    train_step = trainer.make_train_step(DENOISING, fixed, OPTIMIZER)
    state, metrics = train_step(
        train_step.init(jax.random.key(0), {"gain": jnp.float32(1)}), BATCH
    )
    assert seen[0] == (jnp.bfloat16, jnp.float32)
    assert state.params["gain"].dtype == metrics["loss"].dtype == jnp.float32


def test_adaptive_weights_are_trained_with_the_network():
    loss = losses.SimplifiedConsistencyTraining(SCHEDULER, adaptive_weight=True)
    state, _ = run(*make(loss), 3)
    assert isinstance(state.params, losses.WeightedParams)
    assert np.all(np.isfinite(state.params.level_weight))
    assert np.any(state.params.level_weight != 0)


def test_a_function_may_take_a_teacher():
    def loss(key, apply_fn, params, frozen, batch, step):
        value = jnp.sum(jnp.square(params["bias"] - frozen.teacher))
        return value, {"loss": value}

    train_step, state = make(loss, teacher=jnp.array([1.0, 2.0]))
    assert float(train_step(state, BATCH)[1]["loss"]) == 5


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"loss": by_name("cd")},
            "loss ConsistencyDistillation needs a teacher: pass teacher",
        ),
        (
            {"loss": by_name("ct"), "teacher": {}},
            "loss ConsistencyTraining takes no teacher",
        ),
        (
            {"loss": "ct"},
            r"loss must be an instance of a Loss or a function, got 'ct'",
        ),
        ({"ema_decays": (1.0,)}, r"ema_decays must be numbers in \[0, 1\).*got \(1.0,\)"),
        ({"accumulate": 0}, "accumulate must be an integer of at least 1, got 0"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_batches_must_divide():
    train_step, state = make(mesh=trainer.data_mesh(jax.devices()[:3]))
    with pytest.raises(
        ValueError, match=r"batch\['data'\] has 32 samples, which 3 devices x accumulate=1"
    ):
        train_step(state, BATCH)


@pytest.mark.parametrize("name", ["ct", "sct"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, name):
    train_step, _ = make(by_name(name), ema_decays=(0.9, 0.1))
    straight, history = run(train_step, start(train_step), 10)
    state, first = run(train_step, start(train_step), 4)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    with Checkpoints(tmp_path) as checkpoints:
        state, second = run(train_step, checkpoints.restore(start(train_step)), 6)
    assert first + second == history
    chex.assert_trees_all_equal(state, straight)


def test_the_newest_checkpoints_are_kept_and_none_is_a_fresh_start(tmp_path):
    train_step, state = make()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert int(checkpoints.restore(state).step) == 0
        for _ in range(3):
            state, _ = train_step(state, BATCH)
            checkpoints.save(state)
        checkpoints.wait()
        assert int(checkpoints.restore(make()[1]).step) == 3
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_what_is_saved_is_the_state_of_its_step_although_training_goes_on(tmp_path):
    """The state is donated to the next step while it is being written."""
    train_step, state = make()
    with Checkpoints(tmp_path, keep=100) as checkpoints:
        gains = []
        for _ in range(5):
            state, _ = train_step(state, BATCH)
            gains.append(float(state.params["gain"]))
            checkpoints.save(state)
        checkpoints.wait()
    # The newest is what is restored: they are taken away one by one.
    for step in range(len(gains), 0, -1):
        with Checkpoints(tmp_path, keep=100) as checkpoints:
            assert (
                float(checkpoints.restore(start(train_step)).params["gain"])
                == gains[step - 1]
            )
        shutil.rmtree(tmp_path / "checkpoints" / str(step))


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    train_step, state = make(by_name("ct"))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
        other = start(train_step, size=3)
        with pytest.raises(
            ValueError,
            match=r"another run, or damaged: ema/0/bias is float32\(2,\) .*is float32\(3,\)",
        ):
            checkpoints.restore(other)
        with pytest.raises(
            ValueError,
            match="another run, or damaged: target/bias is float32.* and is missing in this one",
        ):
            checkpoints.restore(make(by_name("ict"))[1])
        assert checkpoints.latest() == 0


def test_a_learned_weighting_is_float32_also_where_jax_computes_in_float64():
    with jax.enable_x64(True):
        assert with_level_weight(None).level_weight.dtype == jnp.float32


def test_a_checkpoint_of_another_dtype_is_not_called_damaged(tmp_path):
    train_step, state = make()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.params)
        other = train_step.init(jax.random.key(0), params)
        with pytest.raises(
            ValueError, match=r"float32\(2,\) there, and is bfloat16\(2,\) in"
        ):
            checkpoints.restore(other)
        assert int(checkpoints.restore(state).step) == 0


def test_a_path_that_checkpoints_cannot_have_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="letters that are not UTF-8"):
        Checkpoints(tmp_path / "r\udce9")


def test_metrics_may_be_numbers_of_python():
    def loss(key, apply_fn, params, frozen, batch, step):
        value = jnp.square(params["gain"] - 1)
        return value, {"loss": value, "scale": 2.0, "count": 3}

    for accumulate in (1, 2):
        train_step, state = make(loss, accumulate=accumulate)
        _, metrics = train_step(state, BATCH)
        assert float(metrics["scale"]) == 2 and float(metrics["count"]) == 3


def test_conditioning_beyond_32_bits_is_refused():
    def conditioned(params, x, t, index):
        return params["gain"] * x + params["bias"][None]

    train_step = trainer.make_train_step(DENOISING, conditioned, OPTIMIZER)
    batch = BATCH | {"index": np.full(32, 2**32 + 1)}
    with pytest.raises(ValueError, match=r"batch\['index'\] has numbers beyond int32"):
        train_step(start(train_step), batch)


def test_parameters_of_two_precisions_under_strict_promotion():
    def wide_and_narrow(params, x, t):
        return params["wide"].astype(x.dtype) * x + params["narrow"].astype(x.dtype)

    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        train_step = trainer.make_train_step(DENOISING, wide_and_narrow, OPTIMIZER)
        params = {"wide": jnp.float64(0.5), "narrow": jnp.float32(0.5)}
        state, metrics = train_step(train_step.init(jax.random.key(0), params), BATCH)
        assert metrics["grad_norm"].dtype == jnp.float32
        assert state.params["wide"].dtype == jnp.float64


def test_an_optimizer_that_does_not_take_the_value():
    sam = optax.contrib.sam(optax.sgd(1e-2), optax.sgd(1e-3))
    train_step = trainer.make_train_step(DENOISING, network, sam)
    state, metrics = train_step(start(train_step), BATCH)
    assert np.isfinite(metrics["loss"]) and float(state.params["gain"]) != 0


@pytest.mark.parametrize("name", ["ct", "ict", "ect", "scd", "sct"])
def test_losses_take_the_step_as_a_number(name):
    is_trigflow = name in ("scd", "sct")
    scheduler = cmjax.SCMScheduler() if is_trigflow else SCHEDULER
    loss = losses.make(name, scheduler, total_steps=9)
    params = jnp.float32(0.3)
    frozen = losses.Frozen(params, params)
    batch = {"data": jnp.ones((4, 2))}
    made, _ = loss(jax.random.key(0), lambda p, x, t: p * x, params, frozen, batch, 0)
    assert np.isfinite(made)


def test_many_levels_do_not_overflow():
    loss = losses.ConsistencyTraining(SCHEDULER, total_steps=10, final_levels=1_000_000)
    run(*make(loss), 1)


def test_no_thread_that_cleans_up_outlives_the_checkpoints(tmp_path):
    # It would fail while the interpreter ends, with pages of tracebacks.
    _, state = make()
    for number in range(4):
        with Checkpoints(tmp_path / str(number)) as checkpoints:
            checkpoints.restore(state)
        assert not [t.name for t in threading.enumerate() if CLEANING in t.name]


def test_a_thread_of_orbax_does_not_hide_the_error_of_a_run(tmp_path, monkeypatch):
    # Orbax's own `join` raises what the thread raised, or TimeoutError.
    class Failing(threading.Thread):
        def join(self, timeout=None):
            raise TimeoutError

    ended = threading.Event()
    thread = Failing(target=ended.wait, name=f"Thread-9 ({CLEANING})")
    monkeypatch.setattr(checkpointing, "LONGEST_CLEANING", 0.01)
    thread.start()
    try:
        with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path):
            1 / 0  # noqa: B018
    finally:
        ended.set()
