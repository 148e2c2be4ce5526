"""JAX's settings do not leak in: the same seed makes the same samples under all of them."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from click.testing import CliRunner

import cmjax
from cmjax import editing, testing
from cmjax.cli.main import main
from cmjax.generation import Request
from cmjax.generation.batches import BatchSampler
from cmjax.random import key_of_seed
from cmjax.training import losses, trainer
from tests.support.cli import succeeded
from tests.support.networks import tiny_model
from tests.support.training import TINY_TOML

CM = cmjax.CMStochasticIterativeScheduler()
CHURNING = cmjax.EDMHeunScheduler(s_churn=2.0)
PARAMS = jnp.float32(0.5)
DATA = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 3, 2)


@contextlib.contextmanager
def updated(name, value):
    """Sets one of JAX's options that has no context manager of its own."""
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


SETTINGS = {
    "rbg": lambda: jax.default_prng_impl("rbg"),
    "unsafe_rbg": lambda: jax.default_prng_impl("unsafe_rbg"),
    "seed offset": lambda: updated("jax_random_seed_offset", 7),
    "not partitionable": lambda: jax.threefry_partitionable(False),
    "x64": lambda: jax.enable_x64(True),
    "standard promotion": lambda: jax.numpy_dtype_promotion("standard"),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "no rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "key reuse": lambda: jax.debug_key_reuse(True),
    "debug NaNs": lambda: jax.debug_nans(True),
    "no jit": lambda: jax.disable_jit(),
}
under_every_setting = pytest.mark.parametrize("name", SETTINGS)


def network(params, x, t):
    return params * jnp.tanh(x) + 1e-4 * t[:, None, None].astype(x.dtype)


def draw(scheduler):
    options = {"num_inference_steps": 3, "return_trajectory": True}
    return cmjax.sample(
        key_of_seed(1), network, PARAMS, scheduler, DATA.shape, first_index=5, **options
    )


def edited():
    constraint = editing.inpaint(DATA, DATA > 0)
    return editing.edit(
        key_of_seed(1), network, PARAMS, CM, constraint, DATA.shape, num_inference_steps=2
    )


def gradients(name):
    loss = losses.make(name, CM, total_steps=9)
    frozen = losses.Frozen(PARAMS, PARAMS if loss.needs_teacher else None)

    def objective(params):
        value, _ = loss(
            key_of_seed(2), network, params, frozen, {"data": DATA}, jnp.int32(4)
        )
        return value

    return jax.value_and_grad(objective)(PARAMS)


def trained():
    loss = losses.make("ect", CM, total_steps=9)
    step = trainer.make_train_step(loss, network, optax.sgd(1e-3), accumulate=2)
    state, metrics = step(step.init(key_of_seed(3), PARAMS), {"data": DATA})
    return state.params, metrics


@pytest.fixture(scope="module")
def expected():
    """What is drawn under JAX's own settings."""
    return {
        "samples": [draw(CM), draw(CHURNING)],
        "edited": edited(),
        "gradients": [gradients("ct"), gradients("ict")],
        "trained": trained(),
    }


@under_every_setting
def test_the_same_seed_makes_the_same_numbers(name, expected):
    with SETTINGS[name]():
        drawn = {
            "samples": [draw(CM), draw(CHURNING)],
            "edited": edited(),
            "gradients": [gradients("ct"), gradients("ict")],
            "trained": trained(),
        }
    for what, leaf in jax.tree_util.tree_flatten_with_path(drawn)[0]:
        assert leaf.dtype != jnp.float64, what
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5),
        drawn,
        expected,
    )


# Without jit nothing is compiled, so that compilations cannot be counted.
@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "no jit"])
def test_the_contract_holds(name):
    with SETTINGS[name]():
        testing.assert_scheduler_contract(CM, 2)


@pytest.fixture(scope="module")
def model():
    return tiny_model(num_classes=3)


def made(model):
    sampler = BatchSampler(model, Request(seed=4), batch_size=1)
    return next(sampler.batches([np.arange(8, dtype=np.uint32)]))


@pytest.fixture(scope="module")
def pixels(model):
    return made(model)


@under_every_setting
def test_generated_pictures_are_the_same(name, model, pixels):
    with SETTINGS[name]():
        np.testing.assert_array_equal(made(model), pixels)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("settings")
    cmjax.save(path / "model", model)
    return path


COMMANDS = {
    "sample": ["sample", "--num", "2"],
    "interpolate": ["edit", "interpolate", "--num", "2", "--labels", "1"],
}


@pytest.mark.parametrize("name", ["rbg", "not partitionable", "key reuse", "no jit"])
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_make_the_same_pictures(command, name, folder):
    def picture(out):
        arguments = [*COMMANDS[command], "--model", str(folder / "model"), "--out", str(out)]
        succeeded(CliRunner().invoke(main, [*arguments, "--quiet"]))
        return out.read_bytes()

    expected = picture(folder / "expected.png")
    with SETTINGS[name]():
        assert picture(folder / "found.png") == expected


def test_a_run_trains_and_shows_pictures_with_another_generator(tmp_path):
    data = np.random.default_rng(0).integers(0, 255, (32, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x_train=data, y_train=np.arange(32) % 3)
    settings = f'[data]\nsource = "{tmp_path}/data.npz"\n[run]\nsteps = 2\nbatch_size = 8\n'
    settings += "sample_every = 2\n"
    (tmp_path / "run.toml").write_text(TINY_TOML + settings)
    losses_of = {}
    for name in ("rbg", "not partitionable"):
        out = tmp_path / name.replace(" ", "_")
        with SETTINGS[name]():
            arguments = ["train", str(tmp_path / "run.toml"), "--out", str(out), "--quiet"]
            succeeded(CliRunner().invoke(main, arguments))
        losses_of[name] = (out / "metrics.csv").read_text()
        assert list((out / "samples").glob("*.png"))
    first, second = losses_of.values()
    assert first.splitlines()[-1].split(",")[1] == second.splitlines()[-1].split(",")[1]


def test_raw_keys_are_of_one_generator_whatever_the_default():
    raw = jax.random.key_data(key_of_seed(0))
    expected = cmjax.sample(key_of_seed(0), network, PARAMS, CM, DATA.shape)
    with jax.default_prng_impl("rbg"):
        found = cmjax.sample(raw, network, PARAMS, CM, DATA.shape)
        with pytest.raises(ValueError, match="generator 'rbg'"):
            cmjax.sample(jax.random.PRNGKey(0), network, PARAMS, CM, DATA.shape)
    np.testing.assert_array_equal(found, expected)


def test_a_model_loads_where_reused_keys_are_found():
    with jax.debug_key_reuse(True):
        assert cmjax.load().sample_shape == (28, 28, 1)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, np.int64(5)])
def test_the_key_of_a_seed_is_that_of_jax(seed):
    key = jax.random.key(np.uint32(seed), impl="threefry2x32")
    np.testing.assert_array_equal(
        jax.random.key_data(key_of_seed(seed)), jax.random.key_data(key)
    )


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, "1"])
def test_seeds_that_are_none(seed):
    with pytest.raises(ValueError, match="seed must be an integer from 0 to 2"):
        key_of_seed(seed)
