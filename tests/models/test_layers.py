"""Layers that networks share."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cmjax.models import DiTTransformer2DConfig, attention, layers
from cmjax.models.attention import attend
from tests.support import networks
from tests.support.tiers import thorough


def attention_of(q, k, v):
    """softmax(q k^T / sqrt(C)) v for each head, in the library's order of axes."""
    scores = jnp.einsum("bqhc,bkhc->bhqk", q, k) / np.sqrt(q.shape[-1])
    return jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(scores, axis=-1), v)


def test_what_products_copy_of_scores_is_smaller_than_what_glibc_returns_at_once():
    # From 32 MiB on every product would get new pages: see `attention.SCORES_IN_CACHE`.
    assert attention.SCORES_IN_CACHE * 4 < 32 * 2**20


# Heads in one piece, in pieces of 4 of which the last is smaller, and one after the other.
@pytest.mark.parametrize("scores_in_cache", [10**6, 4 * 7**2, 1])
def test_attention_in_pieces(monkeypatch, scores_in_cache):
    monkeypatch.setattr(attention, "SCORES_IN_CACHE", scores_in_cache)
    rng = np.random.default_rng(0)
    q, k, v, q_tangent, k_tangent, v_tangent = jnp.asarray(
        3 * rng.standard_normal((6, 2, 7, 3, 8)), jnp.float32
    )
    tangents = (q_tangent, k_tangent, v_tangent)

    # Values, and derivatives of both modes.
    @functools.partial(jax.jit, static_argnums=0)
    def everything(attend):
        out, tangent = jax.jvp(attend, (q, k, v), tangents)
        gradients = jax.grad(lambda *args: jnp.sum(attend(*args) ** 3), (0, 1, 2))
        return out, tangent, gradients(q, k, v)

    actual = jax.tree.leaves(everything(attend))
    expected = jax.tree.leaves(everything(attention_of))
    for ours, theirs in zip(actual, expected, strict=True):
        assert np.std(ours - theirs) < 1e-5 * np.std(theirs)


def test_attention_to_scores_beyond_the_range_of_exp():
    q = jnp.full((1, 2, 1, 1), 1e3)
    k = jnp.asarray([-1.0, 1.0]).reshape(1, 2, 1, 1)
    v = jnp.asarray([5.0, 7.0]).reshape(1, 2, 1, 1)
    np.testing.assert_array_equal(attend(q, k, v), jnp.full((1, 2, 1, 1), 7.0))


@pytest.mark.parametrize("shape", [thorough((5,)), (4, 5), thorough((2, 3, 4, 5))])
def test_gradients_of_a_dense_layer(shape):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    module = layers.linear(5, 7, rngs=nnx.Rngs(0))
    kernel = module.kernel[...]
    bias = jnp.asarray(rng.standard_normal(7), jnp.float32)

    def ours(x, kernel, bias):
        return layers.add_bias(layers.product_of_matrices(x, kernel), bias)

    def plain(x, kernel, bias):
        return jnp.einsum("...i,io->...o", x, kernel) + jnp.broadcast_to(
            bias, (*shape[:-1], 7)
        )

    # Both modes, and the derivative of a derivative.
    def derivatives(function):
        def loss(x, kernel, bias):
            return jnp.sum(function(x, kernel, bias) ** 3)

        tangent = jax.jvp(function, (x, kernel, bias), (2 * x, kernel, 3 * bias))[1]
        gradients = jax.grad(loss, (0, 1, 2))(x, kernel, bias)
        return tangent, gradients, jax.hessian(loss, 2)(x, kernel, bias)

    chex.assert_trees_all_close(derivatives(ours), derivatives(plain), rtol=1e-4, atol=1e-4)
    module.bias[...] = bias
    np.testing.assert_allclose(module(x), plain(x, kernel, bias), atol=1e-5)


def test_gradients_of_biases_are_not_rounded_on_accelerators():
    # Their products are rounded to fewer bits, unless the highest precision is asked for.
    def loss(bias):
        return jnp.sum(layers.add_bias(jnp.zeros((4, 5)), bias) ** 2)

    program = str(jax.make_jaxpr(jax.grad(loss))(jnp.ones(5)))
    assert "dot_general" in program
    assert "HIGHEST" in program


def test_many_tokens_attend_in_pieces_as_they_would_at_once(monkeypatch):
    monkeypatch.setattr(attention, "TOKENS_AT_ONCE", 16)
    monkeypatch.setattr(attention, "SCORES_IN_CACHE", 7 * 33)
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 33, 2, 4))
    np.testing.assert_allclose(attend(q, k, v), attention_of(q, k, v), atol=1e-5)


LATENT_DIT = DiTTransformer2DConfig(
    sample_size=8,
    num_layers=1,
    num_attention_heads=1,
    attention_head_dim=4,
    num_embeds_ada_norm=2,
)


@pytest.mark.parametrize("config", [networks.UNET, networks.DIT, LATENT_DIT])
def test_a_batch_of_no_samples(config):
    apply_fn, params = networks.network(config)
    size = config.sample_size
    x = jnp.zeros((0, size, size, config.in_channels))
    labels = jnp.zeros(0, int)
    out = apply_fn(params, x, jnp.zeros(0), class_labels=labels)
    assert out.shape[0] == 0 and out.shape[1:3] == (size, size)
