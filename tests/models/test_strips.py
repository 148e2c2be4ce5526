"""Maps in strips: the same as at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.models import strips
from tests.support.autoencoders import KL, autoencoder


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("height", [9, 11])
def test_strips_are_what_the_function_makes_of_the_whole(monkeypatch, height, factor):
    # Strips of three rows: of 9 rows they end with the map, of 11 the last one overlaps.
    monkeypatch.setattr(strips, "LARGEST_MAP", 10)
    monkeypatch.setattr(strips, "LARGEST_STRIP", 3 * 4 * 2 * factor**2)
    x = jax.random.normal(jax.random.key(0), (2, height, 4, 2))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 2, 2))

    def function(x, other):
        x = x.repeat(factor, 1).repeat(factor, 2)
        other = other.repeat(factor, 1).repeat(factor, 2)
        return other + jax.lax.conv_general_dilated(
            x + 1, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    found = jax.jit(lambda x: strips.in_strips(function, x, x, factor=factor))(x)
    np.testing.assert_allclose(found, function(x, x), atol=1e-5)


@pytest.mark.thorough
def test_a_picture_in_strips_is_the_same_and_so_is_its_gradient(monkeypatch):
    # Equal configs share programs, so that the one in strips is traced by itself.
    vae = autoencoder(KL)
    latents = jax.random.normal(jax.random.key(0), (1, 12, 6, 4))

    def loss(latents):
        return jnp.sum(vae.decode(latents) ** 2)

    expected, gradient = jax.value_and_grad(loss)(latents)
    monkeypatch.setattr(strips, "LARGEST_MAP", 400)
    monkeypatch.setattr(strips, "LARGEST_STRIP", 300)
    jax.clear_caches()
    found, in_strips = jax.value_and_grad(loss)(latents)
    jax.clear_caches()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(in_strips, gradient, rtol=1e-3, atol=1e-3)
