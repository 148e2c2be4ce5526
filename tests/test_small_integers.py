"""NumPy's small integers, which wrap around, are counts like any others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import images
from cmjax.evaluation import features
from cmjax.training import data
from tests.support.autoencoders import TINY, autoencoder
from tests.support.networks import tiny_model

KEY = jax.random.key(0)
PIXELS = np.random.default_rng(0).integers(0, 256, (300, 2, 2, 1), np.uint8)


def flat(pixels):
    return pixels.reshape(len(pixels), -1).astype(np.float64)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int64])
def test_batches_of_features(kind):
    found = features(flat, PIXELS, batch_size=kind(100))
    np.testing.assert_array_equal(found, flat(PIXELS))


def test_samples_of_a_model():
    model = tiny_model(2)
    small = model.sample(KEY, np.uint8(3))
    np.testing.assert_array_equal(small, model.sample(KEY, 3))


def test_sizes_of_pictures():
    expected = images.image_grid(PIXELS, columns=200, scale=20)
    found = images.image_grid(PIXELS, columns=np.uint8(200), scale=np.int8(20))
    assert found.size == expected.size
    assert images.tidy_columns(np.uint8(250), np.uint8(20)) == images.tidy_columns(250, 20)
    assert images.center_crop_resize(PIXELS[0], np.int8(100)).shape == (100, 100, 1)


def test_decoding_in_batches():
    decode = autoencoder(TINY).decode
    latents = jnp.zeros((3, 2, 2, TINY.latent_channels))
    np.testing.assert_array_equal(
        decode(latents, batch_size=np.uint8(2)), decode(latents, batch_size=2)
    )


def test_batches_of_training():
    source = [{"data": np.full(1, i, np.float32)} for i in range(300)]
    small = next(data.batches(source, np.uint8(200), seed=np.int8(1), start=np.int8(1)))
    expected = next(data.batches(source, 200, seed=1, start=1))
    np.testing.assert_array_equal(small["data"], expected["data"])
