"""Adapters of Flax modules: pure whatever the module does, and trained by its parameters alone."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import cmjax
from cmjax.models import compute_in
from cmjax.models.registry import ARCHITECTURES
from cmjax.training import losses, trainer

CM = cmjax.CMStochasticIterativeScheduler()
KEY = jax.random.key(0)
X = np.linspace(-1, 1, 48, dtype=np.float32).reshape(16, 3)
T = np.ones(16, np.float32)


class Net(nnx.Module):
    """A dense layer, then whatever layer is given."""

    def __init__(self, layer=lambda x: x, seed=0):
        self.dense = nnx.Linear(3, 3, rngs=nnx.Rngs(seed))
        self.scale = nnx.Variable(jnp.ones(()))
        self.layer = layer

    def __call__(self, x, t):
        return self.scale[...] * self.layer(self.dense(x)) + 1e-3 * t[:, None]


class Counting(nnx.Module):
    """Counts its calls, which changes what it returns."""

    def __init__(self):
        self.count = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.count[...] += 1
        return x + self.count[...].astype(x.dtype)


LAYERS = {
    "dropout": lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(0)),
    "dropout of its own stream": lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=1)),
    "batch norm": lambda: nnx.BatchNorm(3, rngs=nnx.Rngs(0)),
    "counting": Counting,
}


def test_parameters_of_another_module_are_named():
    apply_fn, params = cmjax.from_nnx(Net())
    # Of one channel, biases would be broadcast.
    narrow = jax.tree.map(lambda leaf: leaf[..., :1], params)
    for others in (None, narrow):
        with pytest.raises(
            ValueError, match="params must be the parameters that came with apply_fn"
        ):
            apply_fn(others, X, T)


def test_a_network_in_a_dtype_is_one_function():
    # `cmjax.sample` keeps its program by the network.
    one = compute_in(jnp.add, jnp.bfloat16)
    assert one is compute_in(jnp.add, "bfloat16") and one is not compute_in(
        jnp.add, "float32"
    )


def values(module):
    """All variables of a module, as NumPy arrays."""

    def value(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(leaf) if is_key else leaf)

    return [value(leaf) for leaf in jax.tree.leaves(nnx.state(module))]


@pytest.mark.parametrize("name", LAYERS)
def test_a_module_in_training_mode_is_evaluated_and_left_alone(name):
    module = Net(LAYERS[name]())
    apply_fn, params = cmjax.from_nnx(module)
    before = values(module)
    first = apply_fn(params, X, T)
    np.testing.assert_array_equal(apply_fn(params, X, T), first)
    np.testing.assert_allclose(jax.jit(apply_fn)(params, X, T), first, rtol=1e-6)
    chex.assert_trees_all_equal(values(module), before)

    # The module itself keeps its mode: only the copy is evaluated.
    assert not getattr(module.layer, "deterministic", False)
    assert not getattr(module.layer, "use_running_average", False)


def test_what_happens_to_the_module_afterwards_does_not_matter():
    module = Net()
    apply_fn, params = cmjax.from_nnx(module)
    jitted = jax.jit(apply_fn)
    before = np.asarray(jitted(params, X, T))

    # A constant changes, then the parameters, in a step that donates the module's arrays.
    module.scale[...] = jnp.float32(7)
    optimizer = nnx.Optimizer(module, optax.sgd(1.0), wrt=nnx.Param)
    gradient = nnx.grad(lambda module: module(X, T).sum())(module)
    optimizer.update(module, gradient)
    for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)):
        leaf.delete()
    np.testing.assert_allclose(apply_fn(params, X, T), before, rtol=1e-6)
    np.testing.assert_array_equal(jitted(params, X, T), before)


def train(apply_fn, params, name="denoising", steps=20, **options):
    """Returns the trained parameters, and the last loss."""
    loss = losses.make(name, CM, total_steps=steps)
    with jax.numpy_dtype_promotion("standard"):  # Adam mixes dtypes
        step = trainer.make_train_step(loss, apply_fn, optax.adam(1e-2), **options)
        state = step.init(KEY, params)
        for _ in range(steps):
            state, metrics = step(state, {"data": X})
    return state.params, float(metrics["loss"])


class LinenNet(linen.Module):
    """With statistics of a batch normalisation, and an integer variable."""

    @linen.compact
    def __call__(self, x, t, train: bool = False):
        self.variable("state", "calls", lambda: jnp.zeros((), jnp.int32))
        x = linen.BatchNorm(use_running_average=True)(linen.Dense(8)(x))
        return linen.Dense(3)(linen.Dropout(0.5, deterministic=not train)(x))


@pytest.fixture(scope="module")
def variables():
    return LinenNet().init(KEY, X, T)


def test_linen_trains_its_parameters_and_nothing_else(variables):
    apply_fn, params = cmjax.from_linen(LinenNet(), variables)
    chex.assert_trees_all_equal(params, variables["params"])
    trained, _ = train(apply_fn, params, steps=3)
    assert jax.tree.structure(trained) == jax.tree.structure(variables["params"])
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), trained, variables["params"])
    assert moved["Dense_0"]["kernel"] and moved["BatchNorm_0"]["scale"]


def both(variables):
    """A network with dropout, of either library."""
    return {
        "nnx": cmjax.from_nnx(Net(LAYERS["dropout"]())),
        "linen": cmjax.from_linen(LinenNet(), variables),
    }


@pytest.mark.parametrize("library", ["nnx", "linen"])
def test_a_dropout_key_says_which_units_are_dropped(library, variables):
    apply_fn, params = both(variables)[library]
    plain = apply_fn(params, X, T)
    one, again, other = (
        apply_fn(params, X, T, dropout_key=jax.random.key(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3 < np.abs(one - plain).max()
    jitted = jax.jit(lambda key: apply_fn(params, X, T, dropout_key=key))
    np.testing.assert_allclose(jitted(jax.random.key(1)), one, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(apply_fn(params, X, T), plain)


def watched(apply_fn, seen):
    """The network, which notes the keys that it is called with."""

    def called(params, x, t, dropout_key=None):
        jax.debug.callback(
            lambda *key: seen.append(key and tuple(key[0].tolist())),
            *([] if dropout_key is None else [jax.random.key_data(dropout_key)]),
        )
        return apply_fn(params, x, t, dropout_key=dropout_key)

    return called


@pytest.mark.parametrize("name", ["ict", "ect", "cd", "scd"])
def test_student_and_target_drop_the_same_units_in_a_step_and_teachers_none(name):
    seen = []
    apply_fn, params = cmjax.from_nnx(Net(LAYERS["dropout"]()))
    loss = losses.make(name, CM, total_steps=9)
    frozen = losses.Frozen(params, params if loss.needs_teacher else None)
    trained = loss.prepare_params(params)
    frozen = frozen._replace(target=trained)
    network = losses.WithDropout(watched(apply_fn, seen), KEY)
    loss(KEY, network, trained, frozen, {"data": X}, jnp.int32(1))
    jax.effects_barrier()
    keys = [key for key in seen if key]
    assert len(keys) >= 2 and len(set(keys)) == 1
    assert (len(keys) < len(seen)) == loss.needs_teacher


def test_every_step_drops_units_of_its_own():
    seen = []
    apply_fn, params = cmjax.from_nnx(Net(LAYERS["dropout"]()))
    train(watched(apply_fn, seen), params, "ect", steps=3, dropout=True)
    jax.effects_barrier()
    assert len(set(seen)) == 3 and () not in seen


def test_modules_of_the_other_library_are_refused(variables):
    with pytest.raises(ValueError, match=r"LinenNet.* Linen module; use from_linen\("):
        cmjax.from_nnx(LinenNet())
    with pytest.raises(ValueError, match=r"Net.* NNX module; use from_nnx\(module\)"):
        cmjax.from_linen(Net(), variables)


@pytest.mark.parametrize("module", [Net, None, lambda x, t: x, nnx.Module()])
def test_what_is_no_module(module, variables):
    with pytest.raises(ValueError, match="module must be an NNX module with a __call__"):
        cmjax.from_nnx(module)
    if not isinstance(module, nnx.Module):
        with pytest.raises(ValueError, match="module must be a Linen module, got"):
            cmjax.from_linen(module, variables)


def test_variables_without_their_collections(variables):
    for wrong in (variables["params"], None, [1]):
        with pytest.raises(ValueError, match="variables must have the collection 'params'"):
            cmjax.from_linen(LinenNet(), wrong)


@dataclasses.dataclass(frozen=True)
class DroppingConfig:
    """Has nothing to choose."""

    sample_shape = (3,)


class Dropping(Net):
    """A network of one's own with dropout, made of its config."""

    def __init__(self, config: DroppingConfig, *, rngs: nnx.Rngs):
        super().__init__(nnx.Dropout(0.5, rngs=rngs))
        self.scale = nnx.Param(jnp.ones(()))
        self.config = config


def test_a_network_with_dropout_is_saved_and_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "dropping", (Dropping, DroppingConfig))
    config = DroppingConfig()
    apply_fn, params = cmjax.from_nnx(Dropping(config, rngs=nnx.Rngs(0)))
    cmjax.save(tmp_path / "model", cmjax.Model(apply_fn, params, CM, config))
    model = cmjax.load(tmp_path / "model")
    for cond in ({}, {"dropout_key": KEY}):
        expected = apply_fn(params, X, T, **cond)
        np.testing.assert_allclose(model.apply_fn(model.params, X, T, **cond), expected)


class Normalising(linen.Module):
    """Updates its statistics where it trains, as Flax's examples do."""

    @linen.compact
    def __call__(self, x, t, train=False):
        return linen.BatchNorm(use_running_average=not train)(linen.Dense(3)(x))


def test_linen_modules_that_would_update_statistics():
    module = Normalising()
    apply_fn, params = cmjax.from_linen(module, module.init(KEY, X, T))
    assert apply_fn(params, X, T).shape == X.shape
    with pytest.raises(ValueError, match="Normalising must not update.*running averages"):
        apply_fn(params, X, T, dropout_key=KEY)
