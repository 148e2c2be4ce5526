"""JAX's settings do not leak in: the same seed makes the same samples under all of them."""

import contextlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

import cmjax
from cmjax import editing, testing
from cmjax.cli import main
from cmjax.random import gumbel, key_of_seed
from cmjax.training import losses, setup, trainer
from cmjax.training.config import read_config
from tests.support.cli import succeeded
from tests.support.networks import tiny_model
from tests.support.tiers import thorough
from tests.support.training import TINY_TOML

CM = cmjax.CMStochasticIterativeScheduler()
CHURNING = cmjax.EDMHeunScheduler(s_churn=2.0)
PARAMS = jnp.float32(0.5)
SHAPE = (4, 3, 2)
DATA = np.linspace(-1, 1, 24, dtype=np.float32).reshape(SHAPE)


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


def network(params, x, t):
    return params * jnp.tanh(x) + 1e-4 * t[:, None, None].astype(x.dtype)


def draw():
    """Samples, an edited sample, and losses: all kinds of draws in one program."""

    def run(data):
        options = {"num_inference_steps": 3, "return_trajectory": True}
        return {
            "stochastic": cmjax.sample(
                key_of_seed(1), network, PARAMS, CM, SHAPE, **options
            ),
            "churning": cmjax.sample(
                key_of_seed(1), network, PARAMS, CHURNING, SHAPE, first_index=5, **options
            ),
            "edited": editing.edit(
                key_of_seed(1),
                network,
                PARAMS,
                CM,
                editing.inpaint(data, data > 0),
                SHAPE,
                num_inference_steps=2,
            ),
            "losses": [gradient(data, name) for name in ("ict", "sct")],
        }

    return jax.jit(run)(DATA)


def gradient(data, name):
    """The value of a loss and its gradient."""
    loss = losses.make(name, CM, total_steps=9)

    def objective(params):
        frozen = losses.Frozen(params)
        batch = {"data": data}
        return loss(key_of_seed(2), network, params, frozen, batch, jnp.int32(4))[0]

    return jax.value_and_grad(objective)(PARAMS)


def case(name):
    """A test's case of a setting; those that users set rarely, or that take long, are CI's."""
    often = ("x64", "strict promotion", "seed offset")
    return name if name in often else thorough(name)


@pytest.fixture(scope="module")
def expected():
    """What is drawn under JAX's own settings."""
    return draw()


@pytest.mark.parametrize("name", [case(name) for name in SETTINGS])
def test_the_same_seed_makes_the_same_numbers(name, expected):
    with SETTINGS[name]():
        drawn = draw()
    for what, leaf in jax.tree_util.tree_flatten_with_path(drawn)[0]:
        assert leaf.dtype == jnp.float32, what
    chex.assert_trees_all_close(drawn, expected, rtol=2e-5, atol=1e-5)


@contextlib.contextmanager
def all_at_once():
    """All settings but the one without jit."""
    with contextlib.ExitStack() as stack:
        for name in ("unsafe_rbg", "not partitionable", "x64", "key reuse", "debug NaNs"):
            stack.enter_context(SETTINGS[name]())
        yield


def test_the_contract_holds_under_all_settings_at_once():
    with all_at_once():
        testing.assert_scheduler_contract(CM, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("settings")
    cmjax.save(path / "model", tiny_model(num_classes=3))
    return path


COMMANDS = {
    "sample": ["sample", "--num", "2"],
    "interpolate": ["edit", "interpolate", "--num", "2", "--labels", "1"],
}


def pictures(folder, commands=tuple(COMMANDS)):
    found = {}
    for name in commands:
        out = folder / f"{name}.png"
        options = ["--model", str(folder / "model"), "--out", str(out), "--quiet"]
        succeeded(CliRunner().invoke(main, COMMANDS[name] + options))
        found[name] = out.read_bytes()
    return found


@pytest.fixture(scope="module")
def expected_pictures(folder):
    return pictures(folder)


OF_COMMANDS = [
    "rbg",
    "not partitionable",
    "x64",
    "strict promotion",
    "key reuse",
    "debug NaNs",
]


@pytest.mark.parametrize("name", [case(name) for name in OF_COMMANDS])
def test_commands_make_the_same_pictures(name, folder, expected_pictures):
    with SETTINGS[name]():
        assert pictures(folder) == expected_pictures


def test_a_command_samples_without_jit(folder, expected_pictures):
    with jax.disable_jit():
        found = pictures(folder, ["sample"])
    assert found["sample"] == expected_pictures["sample"]


@pytest.mark.thorough
def test_a_run_trains_and_shows_its_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "data_mesh", lambda: trainer.data_mesh(jax.devices()[:1]))
    data = np.random.default_rng(0).integers(0, 255, (32, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=data, labels=np.arange(32) % 3)
    source = f'[data]\nsource = "{tmp_path}/data.npz"\n'
    (tmp_path / "run.toml").write_text(TINY_TOML + source)

    # Adam mixes dtypes, which the tests' own strict promotion would refuse.
    settings = ("run.steps=2", "run.sample_every=2", 'loss.name="ect"')
    changes = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path / "run"
    arguments = ["train", str(tmp_path / "run.toml"), "--out", str(out), "--quiet"]
    with all_at_once(), jax.numpy_dtype_promotion("standard"):
        succeeded(CliRunner().invoke(main, arguments + changes))
    assert (out / "samples_000002.png").exists()


def test_a_run_starts_from_the_same_parameters(tmp_path):
    np.savez(
        tmp_path / "data.npz", images=np.zeros((3, 8, 8), np.uint8), labels=np.arange(3)
    )
    (tmp_path / "run.toml").write_text(TINY_TOML)
    config = read_config(
        str(tmp_path / "run.toml"), [("data.source", str(tmp_path / "data.npz"))]
    )

    def first():
        return setup.make_run(config).model.params

    expected = first()
    with SETTINGS["rbg"](), SETTINGS["not partitionable"]():
        chex.assert_trees_all_equal(first(), expected)


def test_raw_keys_are_of_one_generator_whatever_the_default():
    raw = jax.random.key_data(key_of_seed(0))
    expected = cmjax.sample(key_of_seed(0), network, PARAMS, CM, SHAPE)
    with jax.default_prng_impl("rbg"):
        found = cmjax.sample(raw, network, PARAMS, CM, SHAPE)
        with pytest.raises(ValueError, match="generator 'rbg'"):
            cmjax.sample(jax.random.PRNGKey(0), network, PARAMS, CM, SHAPE)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("guard", [jax.transfer_guard, jax.transfer_guard_host_to_device])
def test_samples_take_no_transfer_that_is_not_explicit(guard):
    model = tiny_model(num_classes=3)
    key = key_of_seed(0)
    options = {"labels": [2, 0], "first_index": 5, "sigmas": [80.0, 1.0]}
    expected = model.sample(key, 3, **options)
    with guard("disallow"):
        found = model.sample(key, 3, **options)
    np.testing.assert_array_equal(found, expected)


def test_samples_put_nothing_on_a_device_where_no_guard_asks_for_it(monkeypatch):
    model = tiny_model(num_classes=3)
    model.sample(key_of_seed(0), 3, sigmas=[80.0, 1.0])

    # It takes as long as the program of a small network.
    monkeypatch.setattr(jax, "device_put", None)
    model.sample(key_of_seed(0), 3, sigmas=[80.0, 1.0])


def test_gumbel_noise_has_one_mode():
    expected = gumbel(key_of_seed(0), (4,))
    with updated("jax_high_dynamic_range_gumbel", True):
        np.testing.assert_array_equal(gumbel(key_of_seed(0), (4,)), expected)


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
