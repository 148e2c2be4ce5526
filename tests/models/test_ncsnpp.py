"""NCSN++: as its reference computes, from the network to samples."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.models import NCSNppConfig, extend
from cmjax.parametrization import consistency_function, edm_denoiser
from cmjax.training import losses
from tests.support import ncsnpp as reference
from tests.support.networks import network
from tests.support.tiers import thorough
from tests.support.training import EDM, KEY, value

GOLDEN = np.load(reference.GOLDEN / "ncsnpp.npz")
TINY = NCSNppConfig(
    sample_size=4,
    base_channels=4,
    block_out_channels=(4, 8),
    layers_per_block=1,
    attention_resolutions=(),
)


@functools.cache
def model(which, dtype=None):
    """A network of the reference, out of a file as the reference writes it."""
    with tempfile.TemporaryDirectory() as folder:
        kind = None if which == "cifar10" else "cd"
        path = reference.save(Path(folder) / "checkpoint_80", kind, which)
        loaded = cmjax.load(path, config=reference.CONFIGS[which], dtype=dtype)
    return dataclasses.replace(loaded, apply_fn=jax.jit(loaded.apply_fn))


def compare(found, which, name, step):
    """Each sample to 1e-4 of its own standard deviation."""
    expected = GOLDEN[f"{which}/{name}"]
    off = np.abs(np.asarray(found)[:, ::step, ::step] - expected).max(axis=(1, 2, 3))
    assert np.all(off < 1e-4 * GOLDEN[f"{which}/{name}/std"]), off


@pytest.mark.parametrize("which", ["plain", *map(thorough, ["toy", "cifar10"])])
def test_outputs_of_the_reference(which):
    it = model(which)
    step = 4 if which == "cifar10" else 1  # of its pixels every fourth is stored
    sigma = GOLDEN[f"{which}/sigma"]
    spread = np.sqrt(0.25 + sigma**2)[:, None, None, None]
    shape = (len(sigma), *it.sample_shape)
    x = (np.random.RandomState(0).standard_normal(shape) * spread).astype(np.float32)
    network = (it.apply_fn, it.params, it.scheduler)
    output = it.apply_fn(it.params, jnp.asarray(x / spread), it.scheduler.sigma_to_t(sigma))
    compare(output, which, "F", step)
    compare(consistency_function(*network, x, sigma), which, "f", step)
    compare(edm_denoiser(*network, x, sigma), which, "D", step)


def test_one_and_two_calls_of_the_reference():
    # Step by step, with the reference's noise in between; it clips, as its pictures are.
    it = model("toy")
    sigma = GOLDEN["samples/two/sigma"]
    for indices, levels, name in (([0], [80], "one"), ([11, 0], [80, sigma], "two")):
        state = it.scheduler.set_timesteps(timesteps=indices)
        np.testing.assert_allclose(state.sigmas, [*levels, 0.002], rtol=1e-6)
        x = 80 * jnp.asarray(GOLDEN["samples/noise"])
        for noise in (GOLDEN["samples/two/noise"], np.zeros_like(x))[-len(indices) :]:
            output = it.scheduler.predict(it.apply_fn, it.params, state, x)
            denoised = it.scheduler.denoise(state, output, x)
            state, x = it.scheduler.advance(state, x, denoised, noise)
        expected = np.clip(GOLDEN[f"samples/{name}"], -1, 1)
        np.testing.assert_allclose(x, expected, atol=1e-4 * expected.std())


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "scheduler", "options"),
    [
        ("heun", cmjax.EDMHeunScheduler(), {"num_inference_steps": 5}),
        # Progressive distillation from 80 to 0.002 in 4 steps, of 5 levels.
        ("halved", cmjax.EDMEulerScheduler(final_sigmas_type="sigma_min"), {}),
    ],
)
def test_solvers_of_the_reference(name, scheduler, options):
    if not options:
        ramp = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 5)[:-1]
        options = {"sigmas": (ramp**7).tolist()}
    solved = model("toy").with_scheduler(scheduler)
    found = solved.sample(KEY, 3, init=80 * GOLDEN["samples/noise"], **options)
    expected = GOLDEN[f"samples/{name}"]
    np.testing.assert_allclose(found, expected, atol=2e-4 * expected.std())


def test_the_frequencies_are_kept_in_float32():
    # In bfloat16 the phase of a time would be off by up to half a radian.
    half = model("toy", jnp.bfloat16)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(half.params)}
    assert kinds == {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)}
    frequencies = model("toy").params["time_frequencies"]
    np.testing.assert_array_equal(half.params["time_frequencies"], frequencies)


@pytest.mark.thorough
def test_bfloat16_in_bfloat16_out():
    it = model("toy")
    x = jnp.asarray(GOLDEN["toy/x"])[:1] / 80
    t = jnp.full(1, 1000.0)
    half = model("toy", jnp.bfloat16)
    found = it.apply_fn(half.params, x.astype(jnp.bfloat16), t)
    exact = np.asarray(it.apply_fn(it.params, x, t))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), exact, atol=0.2 * exact.std())


@pytest.mark.thorough
def test_classes_and_what_it_is_extended_by():
    config = dataclasses.replace(TINY, num_class_embeds=2, null_class=True)
    apply_fn, params = network(config)
    x = jax.random.normal(KEY, (2, 4, 4, 3))
    t = jnp.array([900.0, 400.0])
    labels = jnp.array([0, 2])
    expected = apply_fn(params, x, t, class_labels=labels)
    other = apply_fn(params, x, t, class_labels=labels[::-1])
    assert np.abs(expected - other).max((1, 2, 3)).min() > 1e-3

    # A second time and a scale have no effect before they are trained.
    more, extended, _ = extend(config, params, second_time="span", guidance_embeds=True)
    scale = jnp.array([1.0, 4.0])
    found = jax.jit(more)(extended, x, t, t / 2, class_labels=labels, guidance_scale=scale)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_training_moves_all_but_the_frequencies():
    apply_fn, params = network(TINY)
    loss = losses.ConsistencyTraining(EDM, total_steps=1000)
    batch = {"data": jax.random.normal(KEY, (2, 4, 4, 3))}
    gradient = jax.jit(jax.grad(lambda p: value(loss, apply_fn, p, batch)))(params)
    sizes = {
        jax.tree_util.keystr(path): float(jnp.abs(leaf).max())
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
    }
    still = [name for name, size in sizes.items() if not size > 0]
    assert len(still) == 1 and "time_frequencies" in still[0], still


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_size": 6, "block_out_channels": (4, 8, 8)}, "6 is not a multiple of 4"),
        ({"block_out_channels": ()}, "block_out_channels must have 1 to 64 entries"),
        ({"block_out_channels": (4, 6)}, r"must be a multiple of 4 .* got \(4, 6\)"),
        ({"block_out_channels": (4, 96)}, "base_channels must be a multiple of 32"),
        ({"smooth_resampling": False}, "input_pyramid needs smooth_resampling"),
        ({"time_scale": float("nan")}, "time_scale must be"),
        ({"null_class": True}, "null_class"),
    ],
)
def test_configs_that_make_no_network(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)
