"""Improved mean flows: as the authors' code computes, given everything in another way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.models import IMPROVED_MEAN_FLOWS, ImprovedMeanFlowConfig
from cmjax.models.token_layers import sequence_angles
from tests.support import flax_files, flax_networks

GOLDEN = np.load(flax_networks.GOLDEN / "improved_mean_flow.npz")
CONFIG = ImprovedMeanFlowConfig(
    sample_size=6,
    num_layers=3,
    num_attention_heads=2,
    attention_head_dim=16,
    mlp_channels=85,
    num_class_embeds=5,
    guidance_scale=3.0,
    guidance_interval=(0.2, 0.6),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The authors' toy network, out of a file as Flax writes it."""
    path = tmp_path_factory.mktemp("imf") / "checkpoint_3"
    flax_files.write_msgpack(path, flax_files.state("improved_mean_flow"))
    loaded = cmjax.load(path, config=CONFIG)
    return dataclasses.replace(loaded, apply_fn=jax.jit(loaded.apply_fn))


def reference_inputs(name):
    """What the authors' network was given, as cmjax's takes it."""
    stored = {
        key: GOLDEN[f"{name}/{key}"] for key in ("t", "h", "w", "t_min", "t_max", "y")
    }
    times = (1000 * stored["t"], 1000 * (stored["t"] - stored["h"]))
    cond = {
        "class_labels": stored["y"],
        "guidance_scale": stored["w"],
        "guidance_interval": np.stack([stored["t_min"], stored["t_max"]], axis=1),
    }
    return jax.tree.map(jnp.asarray, (times, cond))


def test_output_of_the_authors_code(model):
    times, cond = reference_inputs("toy")
    x = jnp.asarray(GOLDEN["toy/x"])
    assert 5 in cond["class_labels"]  # the class that stands for none
    u = model.apply_fn(model.params, x, *times, **cond)
    expected = GOLDEN["toy/u"]
    np.testing.assert_allclose(u, expected, atol=1e-4 * expected.std())

    # Everything that it is given matters.
    def difference(times=times, **changes):
        other = model.apply_fn(model.params, x, *times, **(cond | changes))
        return np.abs(other - u).max(axis=(1, 2, 3)).min()

    assert difference(times=(times[0], times[1] - 200)) > 1e-3
    assert difference(class_labels=(cond["class_labels"] + 1) % 6) > 1e-3
    assert difference(guidance_scale=2 * cond["guidance_scale"]) > 1e-3
    for change in ([0.1, 0], [0, 0.1]):
        interval = cond["guidance_interval"] + jnp.asarray(change)[None]
        assert difference(guidance_interval=interval) > 1e-4


@pytest.mark.parametrize("calls", [1, 2, 4])
def test_samples_of_the_authors_code(model, calls):
    # Labels alone: scale and interval are the config's.
    x = cmjax.sample(
        jax.random.key(0),
        model.apply_fn,
        model.params,
        model.scheduler,
        (3, 6, 6, 4),
        num_inference_steps=calls,
        cond={"class_labels": GOLDEN["samples/y"]},
        init=GOLDEN["samples/noise"],
    )
    expected = GOLDEN[f"samples/{calls}"]
    np.testing.assert_allclose(x, expected, atol=1e-4 * expected.std())


def test_an_untrained_network_has_no_velocity(model):
    times, cond = reference_inputs("toy")
    zeros = jax.tree.map(jnp.zeros_like, model.params)
    x = jnp.asarray(GOLDEN["toy/x"]).astype(jnp.bfloat16)
    u = model.apply_fn(zeros, x, *times, **cond)
    assert u.dtype == jnp.bfloat16 and not u.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 5}, "patch_size 5 does not divide sample_size 6"),
        ({"attention_head_dim": 5}, "attention_head_dim 5 must be even"),
        ({"context_tokens": (8, 4)}, "context_tokens must have 5 entries, got 2"),
        ({"guidance_interval": (0.1, 0.2, 0.3)}, "guidance_interval must have 2 entries"),
        ({"guidance_scale": 0.0}, "guidance_scale must be"),
    ],
)
def test_configs_that_make_no_network(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_positions_in_a_sequence():
    angles = sequence_angles(4, 4)
    np.testing.assert_allclose(angles[3], [3, 0.03], rtol=1e-6)


def test_the_released_sizes():
    widths = [preset.width for preset in IMPROVED_MEAN_FLOWS.values()]
    assert widths == [768, 768, 1024, 1024]
    assert {preset.num_tokens for preset in IMPROVED_MEAN_FLOWS.values()} == {256 + 20}


@pytest.mark.thorough
def test_output_of_the_authors_code_at_the_smallest_released_size(tmp_path):
    state = flax_files.state("improved_mean_flow", "iMF-B/2", parts=("ema_params",))
    model = cmjax.load(flax_files.write_msgpack(tmp_path / "checkpoint", state))
    times, cond = reference_inputs("released")
    x = 1.5 * np.random.RandomState(0).standard_normal((2, 32, 32, 4))
    x = jnp.asarray(x.astype(np.float32))
    u = jax.jit(model.apply_fn)(model.params, x, *times, **cond)
    expected = GOLDEN["released/u"]
    atol = 1e-4 * float(GOLDEN["released/std"])
    np.testing.assert_allclose(u[:, 3::8, 5::8], expected, atol=atol)
