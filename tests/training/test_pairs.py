"""Pairs of noise and sample: what they are, and that training on them straightens paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.networks import with_classes
from cmjax.training import data, losses, pairs, sources
from tests.support.flow_maps import FLOW, gaussian_velocity
from tests.support.training import KEY, STD, evaluate

SHAPE = (7, 3)
LEVELS = [1 - i / 64 for i in range(64)]


def made(**options):
    options = {"sigmas": LEVELS, "batch_size": 4, **options}
    return pairs.reflow_pairs(KEY, gaussian_velocity, STD, FLOW, SHAPE, **options)


def test_pairs_are_the_samples_of_the_key_in_batches_of_any_size():
    samples = cmjax.sample(KEY, gaussian_velocity, STD, FLOW, SHAPE, sigmas=LEVELS)
    for size in (2, 7, 100):
        found = made(batch_size=size)
        np.testing.assert_allclose(found["images"], samples, rtol=1e-6, atol=1e-6)

        # Of normal data the ODE keeps the place of a sample: x0 = std z, but for its steps' error.
        np.testing.assert_allclose(found["images"], STD * found["noise"], rtol=0.03)


def test_the_velocity_between_pairs_has_no_loss():
    """On the line from z to std z, x = ((1 - t) std + t) z; with other noise no velocity is."""
    noise = jax.random.normal(KEY, (64, 3))
    batch = {"data": STD * noise, "noise": noise}

    def straight(std, x, t):
        return (1 - std) * x / ((1 - t) * std + t)[:, None]

    def loss(batch, std):
        return float(evaluate(losses.FlowMatching(FLOW), straight, std, batch)[0])

    assert loss(batch, jnp.float32(STD)) < 1e-10
    assert loss(batch, jnp.float32(1.1 * STD)) > 1e-3
    assert loss({"data": batch["data"]}, jnp.float32(STD)) > 0.1


def test_a_file_of_pairs_is_a_source_of_data(tmp_path):
    network = with_classes(lambda std, x, t, class_labels: std * x, 3)
    labels = np.arange(7) % 3
    found = pairs.reflow_pairs(
        KEY,
        network,
        0.5,
        FLOW,
        (7, 4, 4, 1),
        num_inference_steps=1,
        cond={"class_labels": labels},
    )
    np.savez(tmp_path / "pairs.npz", allow_pickle=False, **found)
    source = sources.open_source(tmp_path / "pairs.npz")
    batch = next(data.batches(source, 7, seed=0))
    assert batch.keys() == {"data", "class_labels", "noise"}

    # Whatever the order, each sample comes with its own noise and class.
    for sample, noise, label in zip(
        batch["data"], batch["noise"], batch["class_labels"], strict=True
    ):
        (row,) = np.flatnonzero((found["images"] == sample).all((1, 2, 3)))
        np.testing.assert_array_equal(found["noise"][row], noise)
        assert labels[row] == label

    with pytest.raises(ValueError, match="flip would part samples from the noise"):
        next(data.batches(source, 7, seed=0, flip=True))

    # Other noise is other data.
    other = sources.Arrays(found["images"], found["labels"], found["noise"] + 1)
    assert other.fingerprint() != source.fingerprint()


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (np.zeros((2, 3)), r"must have noise of floats in the shape of its data, \[2, 4\]"),
        (np.zeros((2, 4), int), "must have noise of floats"),
        (np.full((2, 4), np.nan), "the noise of sample 0 is not finite"),
    ],
)
def test_noise_that_does_not_go_with_the_samples(tmp_path, noise, message):
    np.savez(tmp_path / "d.npz", images=np.zeros((2, 4), np.float32), noise=noise)
    with pytest.raises(ValueError, match=message):
        sources.open_source(tmp_path / "d.npz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": cmjax.CMStochasticIterativeScheduler()}, "one of flow matching"),
        ({"scheduler": cmjax.FlowMatchLCMScheduler()}, "adds noise on the way"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"num_inference_steps": 0}, "num_inference_steps must be"),
        ({"num_inference_steps": None}, "give exactly one of"),
        ({"cond": {"text": np.zeros(3)}}, "leading axis of the batch, 7"),
    ],
)
def test_what_makes_no_pairs(options, message):
    options = {"scheduler": FLOW, "num_inference_steps": 1, **options}
    with pytest.raises(ValueError, match=message):
        pairs.reflow_pairs(KEY, gaussian_velocity, STD, shape=SHAPE, **options)
