"""The UNet: shapes, dtypes, conditioning, derivatives, adapters."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import cmjax
from cmjax import testing
from cmjax.models import UNet2D, layers, resampling
from cmjax.models.attention import Attention
from cmjax.models.embeddings import sinusoidal_embedding
from tests.support import checkpoints
from tests.support.networks import UNET, network

X, T, LABELS = jnp.ones((2, 8, 8, 1)), jnp.array([100.0, -900.0]), jnp.array([0, 2])


def test_starts_at_zero_so_that_samples_are_the_skip_connection():
    unet = UNet2D(checkpoints.CONFIG, rngs=nnx.Rngs(0))
    assert not np.any(unet.conv_out.kernel[...]) and not np.any(unet.conv_out.bias[...])
    assert np.any(unet.conv_in.kernel[...])


def test_output_depends_on_everything_it_takes():
    apply_fn, params = network()
    base = np.asarray(apply_fn(params, X, T, class_labels=LABELS))
    assert base.shape == X.shape and np.all(np.isfinite(base))
    for other in (
        apply_fn(params, X.at[:, 0, 0].add(1), T, class_labels=LABELS),
        apply_fn(params, X, T + 50, class_labels=LABELS),
        apply_fn(params, X, T, class_labels=LABELS[::-1]),
    ):
        assert np.abs(np.asarray(other) - base).reshape(2, -1).max(1).min() > 1e-3


@pytest.mark.thorough
def test_samples_of_a_network_do_not_depend_on_the_batch():
    model = checkpoints.model()  # every layer in the least size: each batch is compiled for
    network = (model.apply_fn, model.params, model.scheduler, (4, *model.sample_shape))
    labels = jnp.array([0, 1, 1, 0])
    cond = {"class_labels": labels}
    testing.assert_batch_invariant(*network, num_inference_steps=2, cond=cond)
    testing.assert_device_invariant(*network, cond=cond)
    testing.assert_boundary_condition(*network, class_labels=labels)


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_computes_in_the_dtype_of_its_input_whatever_the_parameters(dtype, param_dtype):
    apply_fn, params = network()
    expected = apply_fn(params, X, T, class_labels=LABELS)
    params = jax.tree.map(lambda p: p.astype(param_dtype), params)
    actual = apply_fn(params, X.astype(dtype), T, class_labels=LABELS)
    chex.assert_type(actual, dtype)
    if dtype == param_dtype == jnp.float32:
        chex.assert_trees_all_equal(actual, expected)
    # bfloat16 has 8 bits; over some twenty layers a few percent accumulate
    scale = float(jnp.std(expected))
    np.testing.assert_allclose(
        np.asarray(actual, np.float32), expected, atol=0.15 * scale + 1e-6
    )


def test_time_embedding_stays_float32():
    jaxpr = str(jax.make_jaxpr(lambda t: sinusoidal_embedding(t, 8))(T))
    assert "bf16" not in jaxpr
    # neighbouring times that bfloat16 cannot tell apart
    t = jnp.array([1000.0, 1001.0])
    a, b = sinusoidal_embedding(t, 8)
    assert np.abs(np.asarray(a - b)).max() > 0.1


@pytest.mark.parametrize(("features", "flip"), [(8, True), (9, False)])
def test_sinusoidal_embedding(features, flip):
    t = jnp.array([3.0, -700.0])
    half = features // 2
    frequencies = 10000.0 ** (-np.arange(half) / half)
    angles = np.asarray(t, np.float64)[:, None] * frequencies
    parts = [np.cos(angles), np.sin(angles)] if flip else [np.sin(angles), np.cos(angles)]
    expected = np.pad(np.concatenate(parts, -1), ((0, 0), (0, features % 2)))
    np.testing.assert_allclose(
        sinusoidal_embedding(t, features, flip_sin_to_cos=flip), expected, atol=2e-4
    )


def test_frequencies_are_rounded_as_networks_were_trained_with():
    """PyTorch rounds the exponents to float32, and a compiler may not do so in another order."""
    half = 128
    exponents = (
        np.float32(-np.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(127)
    )
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    t = np.array([500.0, 999.0], np.float32)
    angles = (t[:, None] * frequencies).astype(np.float64)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], -1)
    embed = jax.jit(lambda t: sinusoidal_embedding(t, 2 * half, freq_shift=1))
    np.testing.assert_allclose(embed(t), expected, atol=1e-6)


def test_forward_mode_derivative_equals_finite_differences():
    apply_fn, params = network()

    def f(t):
        return apply_fn(params, X, t, class_labels=LABELS)

    tangent = jax.jvp(f, (T,), (jnp.ones(2),))[1]
    h = 0.05
    np.testing.assert_allclose(
        tangent, (f(T + h) - f(T - h)) / (2 * h), rtol=0.05, atol=2e-3
    )


def test_patches_fold_and_unfold():
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    folded = resampling.space_to_depth(x, 2)
    assert folded.shape == (2, 3, 2, 12)
    np.testing.assert_array_equal(folded[0, 1, 1], x[0, 2:4, 2:4].reshape(-1))
    chex.assert_trees_all_equal(resampling.depth_to_space(folded, 2), x)


def test_attention_equals_the_formula():
    attention = Attention(8, 4, groups=2, epsilon=1e-5, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 8))
    pixels = np.asarray(attention.group_norm(x), np.float64).reshape(2, 9, 8)

    def project(f, v):
        return v @ np.asarray(f.kernel[...], np.float64) + np.asarray(
            f.bias[...], np.float64
        )

    q, k, v = (project(f, pixels) for f in (attention.to_q, attention.to_k, attention.to_v))
    out = np.zeros_like(q)
    for head in (slice(0, 4), slice(4, 8)):
        scores = np.exp(q[..., head] @ k[..., head].transpose(0, 2, 1) / 2)
        out[..., head] = scores / scores.sum(-1, keepdims=True) @ v[..., head]
    expected = np.asarray(x) + project(attention.to_out[0], out).reshape(x.shape)
    np.testing.assert_allclose(attention(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"down_block_types": ("DownBlock2D", "SkipDownBlock2D")},
            "down_block_types.*SkipDownBlock2D",
        ),
        (
            {"up_block_types": ("UpBlock2D",)},
            "up_block_types must have one entry per entry",
        ),
        ({"norm_num_groups": 5}, "norm_num_groups 5 does not divide 8"),
        ({"sample_size": 10}, "sample_size 10 is not a multiple of 4"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(UNET, **change)


def test_misuse():
    apply_fn, params = network()
    with pytest.raises(ValueError, match="3 classes.*class_labels"):
        apply_fn(params, X, T)
    with pytest.raises(ValueError, match=r"\[B, 8, 8, 1\], got \(2, 1, 8, 8\)"):
        apply_fn(params, X.reshape(2, 1, 8, 8), T, class_labels=LABELS)
    apply_fn, params = network(dataclasses.replace(UNET, num_class_embeds=None))
    assert apply_fn(params, X, T).shape == X.shape
    with pytest.raises(ValueError, match="unconditional"):
        apply_fn(params, X, T, class_labels=LABELS)
    with pytest.raises(ValueError, match="attention_head_dim 5"):
        UNet2D(dataclasses.replace(UNET, attention_head_dim=5), rngs=nnx.Rngs(0))


def test_from_linen_and_from_nnx_sample_alike():
    class Linen(linen.Module):
        @linen.compact
        def __call__(self, x, t):
            return linen.Dense(3)(x) + 1e-3 * t[:, None]

    class NNX(nnx.Module):
        def __init__(self):
            self.dense = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

        def __call__(self, x, t):
            return self.dense(x) + 1e-3 * t[:, None]

    module = NNX()
    variables = {
        "params": {
            "Dense_0": {"kernel": module.dense.kernel[...], "bias": module.dense.bias[...]}
        }
    }
    results = [
        jax.jit(
            lambda params, apply_fn=apply_fn: cmjax.sample(
                jax.random.key(0),
                apply_fn,
                params,
                cmjax.CMStochasticIterativeScheduler(),
                (4, 3),
                num_inference_steps=2,
            )
        )(params)
        for apply_fn, params in (
            cmjax.from_nnx(module),
            cmjax.from_linen(Linen(), variables),
        )
    ]
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_from_nnx_keeps_other_variables_as_constants():
    class WithState(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.float32(2))
            self.shift = nnx.Variable(jnp.float32(3))

        def __call__(self, x, t):
            return self.scale[...] * x + self.shift[...]

    apply_fn, params = cmjax.from_nnx(WithState())
    assert len(jax.tree.leaves(params)) == 1
    assert apply_fn(params, jnp.float32(1), None) == 5


def test_parameters_are_float32_also_where_jax_computes_in_float64():
    with jax.enable_x64(True):
        module = UNet2D(UNET, rngs=nnx.Rngs(0))
        leaves = jax.tree.leaves(nnx.state(module, nnx.Param))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def test_a_dense_layer_takes_no_rows_too():
    layer = layers.linear(3, 5, rngs=nnx.Rngs(0))
    assert layer(jnp.zeros((2, 0, 3))).shape == (2, 0, 5)
