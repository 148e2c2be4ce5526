"""Shortcut models: a `DiT`, out of the authors' training states as their code computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.models import DiTConfig
from tests.support import flax_files, flax_networks

GOLDEN = np.load(flax_networks.GOLDEN / "shortcut.npz")
CONFIG = DiTConfig(
    sample_size=6,
    in_channels=4,
    out_channels=4,
    patch_size=2,
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    num_class_embeds=5,
    null_class=True,
    time_scale=0.001,
    second_time="log_steps",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The authors' toy network, out of a pickle as they write it."""
    path = tmp_path_factory.mktemp("shortcut") / "celeba100001"
    return cmjax.load(flax_files.write_pickle(path, "shortcut"), config=CONFIG)


def reference_inputs(name):
    """The times that steps of length 2**-k begin and end at, from 1000 (noise) to 0."""
    t = 1 - GOLDEN[f"{name}/t"]
    r = t - 0.5 ** GOLDEN[f"{name}/k"]
    return jnp.asarray(1000 * t), jnp.asarray(1000 * r, jnp.float32)


def test_output_of_the_authors_code(model):
    times = reference_inputs("toy")
    x = jnp.asarray(GOLDEN["toy/x"])
    labels = jnp.asarray(GOLDEN["toy/y"])
    assert 5 in labels  # the class that stands for none
    assert len(set(GOLDEN["toy/k"])) == 6
    apply_fn = jax.jit(model.apply_fn)
    u = apply_fn(model.params, x, *times, class_labels=labels)
    expected = -GOLDEN["toy/v"]  # towards the noise
    np.testing.assert_allclose(u, expected, atol=1e-4 * expected.std())

    # Everything that it is given matters; of a step's length the logarithm, rounded down.
    def difference(t, r, labels):
        other = apply_fn(model.params, x, t, r, class_labels=labels)
        return np.abs(other - u).max(axis=(1, 2, 3))

    t, r = times
    assert difference(t + 20, r + 20, labels).min() > 1e-3
    assert difference(t, r, (labels + 1) % 6).min() > 1e-3
    twice = difference(t, t - 2 * (t - r), labels)
    assert twice[0] == 0 and twice[1:].min() > 1e-3  # no step is longer than 1
    assert difference(t, t - 0.6 * (t - r), labels).max() == 0
    shorter = difference(t, t - 0.4 * (t - r), labels)
    assert shorter[5] == 0 and shorter[:5].min() > 1e-3  # none is shorter than 1 / 128


@pytest.mark.parametrize("calls", [1, 2, 4])
def test_samples_of_the_authors_code(model, calls):
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


@pytest.mark.thorough
def test_output_of_the_authors_code_at_the_smallest_released_size(tmp_path):
    path = flax_files.write_pickle(tmp_path / "x", "shortcut", "Shortcut-B/2", ("params",))
    model = cmjax.load(path)
    x = 1.5 * np.random.RandomState(0).standard_normal((2, 32, 32, 4))
    x = jnp.asarray(x.astype(np.float32))
    labels = jnp.asarray(GOLDEN["released/y"])
    u = jax.jit(model.apply_fn)(
        model.params, x, *reference_inputs("released"), class_labels=labels
    )
    expected = -GOLDEN["released/v"]
    atol = 1e-4 * float(GOLDEN["released/std"])
    np.testing.assert_allclose(u[:, 3::8, 5::8], expected, atol=atol)
