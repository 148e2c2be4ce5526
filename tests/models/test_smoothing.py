"""Resampling with the kernel [1, 3, 3, 1], against the convolutions that it stands for."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from cmjax.models import smoothing

X = np.random.RandomState(0).standard_normal((2, 6, 4, 3)).astype(np.float32)


def convolved(x, pad):
    """x, padded by (before, after) on both axes, under the outer product of [1, 3, 3, 1] / 8."""
    x = np.pad(x.astype(np.float64), ((0, 0), pad, pad, (0, 0)))
    taps = np.array([1, 3, 3, 1]) / 8
    height, width = (size - 3 for size in x.shape[1:3])
    return sum(
        taps[i] * taps[j] * x[:, i : i + height, j : j + width]
        for i in range(4)
        for j in range(4)
    )


def test_halving_takes_every_other_smoothed_pixel():
    expected = convolved(X, (1, 1))[:, ::2, ::2]
    assert expected.shape == (2, 3, 2, 3)
    np.testing.assert_allclose(smoothing.halve_smoothly(X), expected, atol=1e-6)


def test_doubling_smooths_zeros_between_the_pixels():
    spread = np.zeros((2, 12, 8, 3))
    spread[:, ::2, ::2] = X
    expected = 4 * convolved(spread, (2, 1))
    np.testing.assert_allclose(smoothing.double_smoothly(X), expected, atol=1e-6)


def test_flat_maps_stay_flat_away_from_the_edges():
    flat = jnp.ones((1, 8, 8, 1))
    for change in (smoothing.halve_smoothly, smoothing.double_smoothly):
        np.testing.assert_allclose(change(flat)[:, 2:-2, 2:-2], 1, atol=1e-6)


def test_a_strided_convolution_after_smoothing():
    down = smoothing.SmoothDownsample(3, 2, rngs=nnx.Rngs(0))
    kernel = np.asarray(down.conv.kernel[...], np.float64)
    smooth = convolved(X, (2, 2))
    expected = sum(
        smooth[:, i : i + 5 : 2, j : j + 3 : 2] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    )
    assert expected.shape == (2, 3, 2, 2)
    np.testing.assert_allclose(down(jnp.asarray(X)), expected, atol=1e-5)
