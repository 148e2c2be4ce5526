"""MeanFlow: a `DiT` of two times, out of the authors' checkpoints as their code computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.models import DiTConfig
from tests.support import flax_files, flax_networks

GOLDEN = np.load(flax_networks.GOLDEN / "mean_flow.npz")
CONFIG = DiTConfig(
    sample_size=12,
    in_channels=4,
    out_channels=4,
    patch_size=4,
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    num_class_embeds=5,
    null_class=True,
    time_scale=0.001,
    second_time="span",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The authors' toy network, out of a file as Flax writes it."""
    path = tmp_path_factory.mktemp("mean_flow") / "checkpoint_3"
    flax_files.write_msgpack(path, flax_files.state("mean_flow"))
    return cmjax.load(path, config=CONFIG)


def reference_inputs(name):
    """What the authors' network was given, as cmjax's takes it."""
    t = GOLDEN[f"{name}/t"]
    times = (1000 * t, 1000 * (t - GOLDEN[f"{name}/h"]))
    return [jnp.asarray(time) for time in times], jnp.asarray(GOLDEN[f"{name}/y"])


def test_output_of_the_authors_code(model):
    times, labels = reference_inputs("toy")
    assert 5 in labels  # the class that stands for none
    apply_fn = jax.jit(model.apply_fn)
    u = apply_fn(model.params, jnp.asarray(GOLDEN["toy/x"]), *times, class_labels=labels)
    expected = GOLDEN["toy/u"]
    np.testing.assert_allclose(u, expected, atol=1e-4 * expected.std())

    # Everything that it is given matters.
    def difference(times=times, labels=labels):
        other = apply_fn(model.params, GOLDEN["toy/x"], *times, class_labels=labels)
        return np.abs(other - u).max(axis=(1, 2, 3)).min()

    assert difference(times=(times[0] + 20, times[1] + 20)) > 1e-3
    assert difference(times=(times[0], times[1] - 20)) > 1e-3
    assert difference(labels=(labels + 1) % 6) > 1e-3


@pytest.mark.parametrize("calls", [1, 2, 4])
def test_samples_of_the_authors_code(model, calls):
    x = cmjax.sample(
        jax.random.key(0),
        model.apply_fn,
        model.params,
        model.scheduler,
        (3, 12, 12, 4),
        num_inference_steps=calls,
        cond={"class_labels": GOLDEN["samples/y"]},
        init=GOLDEN["samples/noise"],
    )
    expected = GOLDEN[f"samples/{calls}"]
    np.testing.assert_allclose(x, expected, atol=1e-4 * expected.std())


@pytest.mark.thorough
def test_output_of_the_authors_code_at_the_released_size(tmp_path):
    state = flax_files.state("mean_flow", "MF-B/4", parts=("ema_params",))
    model = cmjax.load(flax_files.write_msgpack(tmp_path / "checkpoint", state))
    times, labels = reference_inputs("released")
    x = 1.5 * np.random.RandomState(0).standard_normal((2, 32, 32, 4))
    x = jnp.asarray(x.astype(np.float32))
    u = jax.jit(model.apply_fn)(model.params, x, *times, class_labels=labels)
    expected = GOLDEN["released/u"]
    atol = 1e-4 * float(GOLDEN["released/std"])
    np.testing.assert_allclose(u[:, 3::8, 5::8], expected, atol=atol)
