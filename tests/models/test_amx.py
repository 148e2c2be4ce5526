"""Products in bfloat16 on CPUs with AMX. Their programs run on other CPUs, too, but slower."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.models import amx, conv
from cmjax.models.layers import product_of_matrices
from cmjax.models.unet_config import UNet2DConfig
from tests.support import networks

# The largest error of one rounding to bfloat16, as a share of the number.
ROUNDING = 2**-8


@pytest.fixture(
    params=[True, False], ids=["with AMX", "without"], scope="module", autouse=True
)
def has_amx(request):
    """Runs all tests as on a CPU with the unit, and then as on one without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(amx, "has_amx", lambda: request.param)
        # What was traced before would be taken again.
        jax.clear_caches()
        yield request.param
    jax.clear_caches()


def drawn(*shapes, dtype=jnp.bfloat16):
    """Arrays of these shapes, of independent normal draws."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def in_float64(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]


def assert_rounded(actual, expected, sums=1.0):
    """Checks that an array is in bfloat16, and as near as that is to numbers of the size `sums`.

    Those may be rounded themselves, so that numbers next to each other are equal.
    """
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        *in_float64(actual, expected), rtol=2 * ROUNDING, atol=1e-5 * sums
    )


@pytest.mark.parametrize(
    "a, b",
    [
        ((5, 7), (7, 3)),
        ((1, 768), (768, 40)),
        ((0, 7), (7, 3)),
        ((5, 0), (0, 3)),
        ((2, 3, 5, 7), (2, 3, 7, 4)),
        ((2, 1, 7), (2, 7, 4)),
    ],
)
def test_products_are_rounded_once(a, b):
    a, b = drawn(a, b)
    exact = np.matmul(*in_float64(a, b))
    actual = jax.jit(amx.matmul)(a, b)
    assert_rounded(actual, exact, sums=10)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.float16])
def test_other_dtypes_are_as_they_were(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        a, b = drawn((5, 7), (7, 3), dtype=dtype)
        np.testing.assert_array_equal(amx.matmul(a, b), a @ b)
        assert str(jax.make_jaxpr(amx.matmul)(a, b)) == str(
            jax.make_jaxpr(jnp.matmul)(a, b)
        )


def test_derivatives_of_any_order_and_both_modes():
    a, b, da, db = drawn((5, 7), (7, 3), (5, 7), (7, 3))

    def derivatives(product):
        def loss(a, b):
            return jnp.sum(product(a, b).astype(jnp.float32) ** 2)

        gradient = jax.grad(loss, (0, 1))
        hessian_times_tangent = jax.jvp(gradient, (a, b), (da, db))[1]
        return gradient(a, b), hessian_times_tangent

    actual = derivatives(amx.matmul)
    expected = derivatives(jnp.matmul)
    for ours, theirs in zip(
        jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(*in_float64(ours, theirs), rtol=0.1, atol=1)


def test_many_at_once():
    a, b = drawn((4, 5, 7), (7, 3))
    actual = jax.vmap(amx.matmul, (0, None))(a, b)
    assert_rounded(actual, np.matmul(*in_float64(a, b)), sums=10)


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("size", [(5, 7), (13, 12), (28, 28), (29, 31)])
def test_convolutions_are_rounded_once(batch, size):
    x, kernel = drawn((batch, *size, 128), (3, 3, 128, 129))
    wide = conv.convolve(x.astype(jnp.float32), kernel.astype(jnp.float32), conv.PADDED)
    actual = jax.jit(conv.conv3x3)(x, kernel)
    assert_rounded(actual, wide, sums=100)


@pytest.mark.parametrize("size", [5, 28])
def test_a_sample_does_not_depend_on_its_batch(size):
    x, kernel = drawn((3, size, size, 128), (3, 3, 128, 128))
    convolve = jax.jit(conv.conv3x3)
    x = x.at[2].set(jnp.nan)
    actual = convolve(x, kernel)
    assert_rounded(
        actual[:2], jnp.concatenate([convolve(x[:1], kernel), actual[1:2]]), sums=100
    )
    assert jnp.isnan(actual[2]).all()
    assert jnp.isfinite(actual[:2]).all()


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_batches_of_batches(axes):
    x, kernel = drawn((2, 2, 13, 13, 128), (2, 3, 3, 128, 128))
    given = [
        array if axis == 0 else array[0]
        for array, axis in zip((x, kernel), axes, strict=True)
    ]
    actual = jax.vmap(conv.conv3x3, axes)(*given)
    wide = [array.astype(jnp.float32) for array in given]
    convolve = functools.partial(conv.convolve, windows=conv.PADDED)
    assert_rounded(actual, jax.vmap(convolve, axes)(*wide), sums=100)


def test_the_program_for_the_unit_sums_in_float32(has_amx):
    x, kernel = drawn((2, 28, 28, 128), (3, 3, 128, 128))
    row, matrix = drawn((2, 9), (9, 4))

    def operations(function, *args, platform="cpu"):
        lowered = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,))
        return [line for line in lowered.as_text().splitlines() if "dot_general" in line]

    # bfloat16 times bfloat16 gives float32: what XLA computes with the unit.
    for function, args in [
        (conv.conv3x3, (x, kernel)),
        (product_of_matrices, (row, matrix)),
    ]:
        lines = operations(function, *args)
        assert lines
        assert all(line.count("bf16>") == 2 for line in lines) == has_amx

        # Programs for other devices are the same with and without it.
        for platform in ("cuda", "tpu"):
            lines = operations(function, *args, platform=platform)
            assert not any("xf32>" in line for line in lines)


@pytest.mark.parametrize("shape", ["batch, 28, 28", "batch, height, 28", "2, 12, width"])
def test_maps_of_symbolic_sizes(shape):
    x, kernel = drawn((2, 28, 28, 128), (3, 3, 128, 128))
    x = x[:, :12] if shape.startswith("2") else x
    sizes = jax.export.symbolic_shape(f"{shape}, 128")
    symbolic = jax.ShapeDtypeStruct(sizes, x.dtype)
    exported = jax.export.export(jax.jit(conv.conv3x3))(symbolic, kernel)
    again = jax.export.deserialize(exported.serialize())
    assert_rounded(again.call(x, kernel), conv.conv3x3(x, kernel), sums=100)


def test_products_of_any_number_of_rows():
    a, b = drawn((5, 7), (7, 3))
    rows = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("rows"), 7), a.dtype)
    exported = jax.export.export(jax.jit(amx.matmul))(rows, b)
    for number in (1, 5):
        expected = np.matmul(*in_float64(a[:number], b))
        assert_rounded(exported.call(a[:number], b), expected, sums=10)


def test_a_network_is_as_near_to_float32():
    config = UNet2DConfig(
        sample_size=16,
        block_out_channels=(128, 128),
        layers_per_block=1,
        attention_head_dim=64,
        norm_num_groups=32,
        num_class_embeds=3,
    )
    apply_fn, params = networks.network(config)
    (x,) = drawn((1, 16, 16, 3))
    t = jnp.full(1, 100.0)
    labels = jnp.zeros(1, int)
    expected = apply_fn(params, x.astype(jnp.float32), t, class_labels=labels)
    actual = apply_fn(params, x, t, class_labels=labels)
    assert actual.dtype == jnp.bfloat16
    error = np.std(np.subtract(*in_float64(actual, expected)))
    assert error < 0.02 * np.std(expected)
