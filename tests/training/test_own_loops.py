"""Training steps in loops, precisions and with optimizers that other libraries make usual."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cmjax.training import losses, trainer
from cmjax.training.checkpointing import Checkpoints
from tests.support.training import EDM, KEY

DATA = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)
BATCHES = {"data": np.stack([DATA, DATA / 2, DATA / 5])}
PARAMS = {"gain": jnp.float32(0.5), "bias": jnp.zeros(3)}
DENOISING = losses.Denoising(EDM)


def network(params, x, t):
    return params["gain"].astype(x.dtype) * x + params["bias"].astype(x.dtype)[None]


def make(optimizer=None, loss: losses.Loss = DENOISING, **options):
    optimizer = optax.sgd(1e-2) if optimizer is None else optimizer
    return trainer.make_train_step(loss, network, optimizer, **options)


def in_turn(train_step, params=PARAMS):
    """Returns the state after the three batches, and the metrics of the last."""
    state = train_step.init(KEY, params)
    metrics = {}
    for data in BATCHES["data"]:
        state, metrics = train_step(state, {"data": data})
    return state, metrics


def scanned(train_step, params=PARAMS):
    """Returns the same, by a caller's program of all three steps."""
    program = jax.jit(lambda state: jax.lax.scan(train_step, state, BATCHES))
    state, metrics = program(train_step.init(KEY, params))
    return state, jax.tree.map(lambda values: values[-1], metrics)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_programs_of_many_steps_on_a_mesh(kind):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    train_step = make(mesh=mesh)
    found, _ = scanned(train_step)
    expected, _ = in_turn(train_step)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_programs_keep_no_teacher_that_is_traced():
    loss = losses.ConsistencyDistillation(EDM)
    mesh = trainer.data_mesh(jax.devices()[:2])
    train_step = make(loss=loss, mesh=mesh, teacher=PARAMS)
    found, _ = scanned(train_step)
    expected, _ = in_turn(train_step)
    np.testing.assert_allclose(found.params["gain"], expected.params["gain"], rtol=1e-5)


def test_batches_that_a_program_divides():
    train_step = make(mesh=trainer.data_mesh(jax.devices()[:2]))
    state = train_step.init(KEY, PARAMS)
    with pytest.raises(ValueError, match="has 7 samples, which 2 devices x"):
        jax.eval_shape(train_step, state, {"data": DATA[:7]})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_states_keep_their_dtypes(dtype, accumulate):
    """A loop of JAX's takes no others, and another dtype would compile the step again."""
    with jax.enable_x64(dtype == "float64"):
        params = {"gain": jnp.asarray(0.5, dtype), "bias": jnp.zeros(3)}
        train_step = make(optax.adam(1e-2), accumulate=accumulate)
        state = train_step.init(KEY, params)
        after, metrics = jax.eval_shape(train_step, state, {"data": DATA})
        expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == expected
        assert metrics["grad_norm"].dtype == metrics["loss"].dtype == jnp.float32


def test_averages_of_half_precision_move():
    """A thousandth of a small change is below what bfloat16 resolves."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    train_step = make(optax.sgd(0.1), losses.ConsistencyTraining(EDM, 100))
    late = dataclasses.replace(train_step.init(KEY, params), step=jnp.int32(100_000))
    after, _ = train_step(late, {"data": DATA})
    assert after.params["gain"].dtype == jnp.bfloat16
    for average in (*after.ema, after.target):
        share = (average["gain"] - 0.5) / (after.params["gain"].astype(jnp.float32) - 0.5)
        assert average["gain"].dtype == jnp.float32 and 0 < share < 0.02


def test_numbers_as_parameters_compile_one_program():
    calls = []

    def counted(params, x, t):
        calls.append(1)
        return params["gain"] * x

    train_step = trainer.make_train_step(DENOISING, counted, optax.adam(1e-2))
    state, _ = in_turn(train_step, {"gain": 0.5})
    assert len(calls) == 1 and not state.params["gain"].weak_type


def test_gradients_of_several_steps_by_multi_steps():
    """Two steps with a half of the gradient each are one with their mean."""
    state, _ = in_turn(make(optax.MultiSteps(optax.sgd(1e-2), 2)))
    assert int(state.opt_state.gradient_step) == 1 and int(state.step) == 3
    assert float(state.params["gain"]) != 0.5


@pytest.mark.parametrize("accumulate", [1, 2])
def test_optimizers_may_follow_the_loss(accumulate):
    def follow(updates, state, params=None, **further):
        return jax.tree.map(jnp.zeros_like, updates), further["value"]

    optimizer = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), follow)
    state, metrics = in_turn(make(optimizer, accumulate=accumulate))
    assert float(state.opt_state) == pytest.approx(float(metrics["loss"]), rel=1e-6)
    plateau = optax.chain(optax.sgd(1e-2), optax.contrib.reduce_on_plateau())
    in_turn(make(plateau))
    in_turn(make(optax.MultiSteps(plateau, 2)))


def test_optimizers_that_call_the_loss_themselves():
    with pytest.raises(ValueError, match="optimizer must need no arguments but.*value_fn"):
        in_turn(make(optax.lbfgs()))


def test_optimizers_with_keys_of_their_own(tmp_path):
    """Their states have typed keys, which come back as they were, and the run goes on the same."""
    noisy = optax.add_noise(0.1, 0.5, jax.random.key(0))
    train_step = make(optax.chain(noisy, optax.sgd(1e-2)))
    state, _ = in_turn(train_step)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
        found = checkpoints.restore(train_step.init(KEY, PARAMS))
    after, _ = train_step(state, {"data": DATA})
    resumed, _ = train_step(found, {"data": DATA})
    chex.assert_trees_all_equal(resumed.params, after.params)


def test_parameters_that_are_divided_stay_so_without_a_mesh():
    """Arrays keep their devices: a mesh of the step would put all of them on each."""
    mesh = trainer.data_mesh()
    over_devices = NamedSharding(mesh, PartitionSpec("data"))
    params = {"gain": jnp.float32(0.5), "bias": jnp.zeros(8)}

    def tall(params, x, t):
        return params["gain"] * x + params["bias"][None, :3]

    train_step = trainer.make_train_step(DENOISING, tall, optax.adam(1e-2))
    expected, _ = train_step(train_step.init(KEY, params), {"data": DATA})
    gain = jax.device_put(params["gain"], NamedSharding(mesh, PartitionSpec()))
    bias = jax.device_put(params["bias"], over_devices)
    state = train_step.init(KEY, {"gain": gain, "bias": bias})
    state, _ = train_step(state, {"data": jax.device_put(DATA, over_devices)})
    for tree in (state.params, state.ema[0], state.opt_state[0].mu):
        assert tree["bias"].sharding.spec == PartitionSpec("data")
    np.testing.assert_allclose(state.params["bias"], expected.params["bias"], rtol=1e-5)


def test_seeds_on_devices_train_each_by_itself():
    train_step = make()
    keys = jax.random.split(KEY, 4)

    def trained(key):
        state = train_step.init(key, PARAMS)
        for data in BATCHES["data"]:
            state, _ = train_step(state, {"data": data})
        return state.params

    expected = [trained(key) for key in keys]
    mesh = jax.make_mesh((4,), ("seed",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("seed")

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
    def all_at_once(keys):
        return jax.tree.map(lambda leaf: leaf[None], trained(keys[0]))

    found = all_at_once(keys)
    for name in PARAMS:
        one_by_one = jnp.stack([params[name] for params in expected])
        np.testing.assert_allclose(found[name], one_by_one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (
            optax.lookahead(optax.sgd(0.01), 3, 0.5),
            "optimizer must need no arguments but .* 'fast'; take another one",
        ),
        (
            optax.partition({"a": optax.sgd(0.01)}, {"gain": "a", "bias": "b"}),
            "optimizer cannot begin with parameters such as these: Some parameters .*; take",
        ),
        (
            optax.contrib.sophia(1e-3),
            "optimizer must need no arguments but .*obj_fn must be provided",
        ),
    ],
    ids=["lookahead", "partition", "sophia"],
)
def test_optimizers_that_need_more(optimizer, message):
    with pytest.raises(ValueError, match=message):
        in_turn(make(optimizer))
