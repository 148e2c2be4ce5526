"""The convolutions that networks use, against XLA's."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cmjax.models import conv, winograd
from tests.support.draws import draws

OPTIONS = {
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    "feature_group_count": 1,
}
PADDED = ((1, 1), (1, 1))


def drawn(shape, features, size=3, dtype=jnp.float32, seed=0):
    """A map and a kernel whose convolution has a standard deviation of 1."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    kernel = rng.standard_normal((size, size, shape[-1], features))
    kernel /= size * np.sqrt(shape[-1])
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


def by_xla(x, kernel, strides=(1, 1), padding=PADDED):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **OPTIONS)


maps = st.tuples(
    st.integers(1, 3),
    st.sampled_from([1, 2, 5, 7, 12, 13, 14, 28, 29, 31]),
    st.sampled_from([1, 3, 8, 12, 14, 28, 30]),
    st.sampled_from([32, 33, 45, 256]),
)


@hypothesis.given(maps, st.sampled_from([32, 37, 257]))
@hypothesis.settings(max_examples=draws(40))
def test_equals_xla_for_every_size(shape, features):
    x, kernel = drawn(shape, features)
    expected = by_xla(x, kernel)
    actual = jax.jit(conv.conv3x3)(x, kernel)
    np.testing.assert_allclose(actual, expected, atol=5e-5)
    assert np.std(actual - expected) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (3,)},
        {"kernel_size": (3, 3, 3)},
        {"kernel_size": (1, 1), "preferred_element_type": jnp.float32},
        {"kernel_size": (3, 3), "preferred_element_type": jnp.float32},
        {"kernel_size": (3, 3), "feature_group_count": 2},
    ],
)
def test_every_layer_of_flax_may_have_it(options):
    dimensions = len(options["kernel_size"])
    x = jnp.ones((2, *[5] * dimensions, 4), jnp.bfloat16)
    options = {"dtype": x.dtype, "use_bias": False, "rngs": nnx.Rngs(0), **options}
    ours = nnx.Conv(4, 6, conv_general_dilated=conv.convolution, **options)
    theirs = nnx.Conv(4, 6, **options)
    theirs.kernel[...] = ours.kernel[...]
    outputs = [ours(x), theirs(x)]
    assert outputs[0].dtype == outputs[1].dtype
    np.testing.assert_allclose(*outputs, atol=1e-2)


@pytest.mark.parametrize("padding", ["SAME", "SAME_LOWER", "VALID", "CIRCULAR", "REFLECT"])
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("options", [{}, {"strides": 2}, {"kernel_dilation": 2}])
def test_paddings_by_a_word_and_sequences(padding, axes, options):
    options = {
        name: value if name == "strides" else (value,) * axes
        for name, value in options.items()
    }
    x, kernel = drawn((2, 13, 13, 32), 32)
    if axes == 1:
        x = x[:, 0]

    def output_and_gradients(**chosen):
        layer = nnx.Conv(
            32, 32, (3,) * axes, padding=padding, rngs=nnx.Rngs(0), **options, **chosen
        )
        loss = nnx.jit(nnx.grad(lambda layer, x: jnp.sum(layer(x) ** 2), argnums=(0, 1)))
        return layer(x), loss(layer, x)

    expected = output_and_gradients()
    actual = output_and_gradients(conv_general_dilated=conv.convolution)
    chex.assert_trees_all_close(
        jax.tree.leaves(actual), jax.tree.leaves(expected), rtol=1e-4, atol=2e-3
    )


def test_derivatives_of_sequences_have_the_fast_layout_within_a_loop():
    x, kernel = drawn((2, 13, 13, 32), 32)
    x, kernel = x[:, 0], kernel[0]

    def gradient(x, kernel):
        def loss(kernel):
            out = conv.convolution(
                x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
            )
            return jnp.sum(out**2)

        return jax.lax.scan(lambda k, _: (jax.grad(loss)(k), None), kernel, length=2)[0]

    lowered = jax.jit(gradient).lower(x, kernel).as_text()
    layouts = [line for line in lowered.splitlines() if "stablehlo.convolution" in line]
    assert layouts
    assert all("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line for line in layouts)


@pytest.mark.parametrize("m", [2, 4])
def test_minimal_filtering_is_exact_in_float64(m):
    with jax.enable_x64(True):
        x, kernel = drawn((2, 9, 11, 3), 5, dtype=jnp.float64)
        actual = winograd.convolve(m, x, kernel)
        np.testing.assert_allclose(actual, by_xla(x, kernel), atol=1e-13)


@pytest.mark.parametrize("m", [2, 4])
def test_error_of_minimal_filtering_is_what_its_docstring_says(m):
    x, kernel = drawn((1, 32, 32, 64), 64)
    with jax.enable_x64(True):
        exact = by_xla(*drawn((1, 32, 32, 64), 64, dtype=jnp.float64))
        exact = np.asarray(exact)
    error = np.std(np.asarray(winograd.convolve(m, x, kernel), np.float64) - exact)
    assert error < {2: 8e-7, 4: 6e-6}[m]


# Size of the map and channels.
FORMS = {"large tiles": (28, 32), "small tiles": (13, 32), "columns": (5, 256)}


@pytest.mark.parametrize("size, channels", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_derivatives_of_both_modes_are_those_of_xla(size, channels, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        x, kernel = drawn((2, size, size, channels), channels + 1, dtype=dtype)
        x_tangent, kernel_tangent = drawn(
            (2, size, size, channels), channels + 1, dtype=dtype, seed=1
        )

        @functools.partial(jax.jit, static_argnums=0)
        def both(function, x, kernel):
            out, tangent = jax.jvp(function, (x, kernel), (x_tangent, kernel_tangent))
            gradients = jax.grad(lambda *args: jnp.sum(function(*args) ** 2), (0, 1))
            return out, tangent, gradients(x, kernel)

        actual = both(conv.conv3x3, x, kernel)
        expected = both(by_xla, x, kernel)
        assert actual[0].dtype == dtype
        tolerance = {jnp.float32: 1e-5, jnp.float64: 1e-12, jnp.bfloat16: 0.02}[dtype]
        for ours, theirs in zip(
            jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
        ):
            theirs = np.asarray(theirs, np.float64)
            error = np.std(np.asarray(ours, np.float64) - theirs)
            assert error < tolerance * np.std(theirs)


def test_what_is_differentiated_is_xlas():
    x, kernel = drawn((2, 13, 13, 32), 32)

    def both(x):
        return jax.jvp(lambda x: conv.conv3x3(x, kernel), (x,), (x,))

    # The choice by platform holds the other forms.
    assert "platform_index" in str(jax.make_jaxpr(conv.conv3x3)(x, kernel))
    assert "platform_index" not in str(jax.make_jaxpr(both)(x))


def test_derivative_of_a_derivative():
    x, kernel = drawn((1, 13, 13, 32), 32)

    def slope(function, kernel):
        tangent = jax.jvp(lambda x: function(x, kernel) ** 2, (x,), (x,))[1]
        return jnp.sum(tangent)

    actual = jax.jit(jax.grad(functools.partial(slope, conv.conv3x3)))(kernel)
    expected = jax.jit(jax.grad(functools.partial(slope, by_xla)))(kernel)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_batches_of_batches(axes):
    x, kernel = drawn((2, 13, 13, 32), 32)
    many = (
        jnp.stack([x, 2 * x, -x]) if axes[0] == 0 else x,
        jnp.stack([kernel, -kernel, 3 * kernel]) if axes[1] == 0 else kernel,
    )
    actual = jax.jit(jax.vmap(conv.conv3x3, axes))(*many)
    expected = jax.vmap(by_xla, axes)(*many)
    np.testing.assert_allclose(actual, expected, atol=5e-5)

    def loss(x, kernel):
        return jnp.sum(conv.conv3x3(x, kernel) ** 2)

    gradients = jax.jit(jax.vmap(jax.grad(loss, 1), axes))(*many)
    x0 = many[0][0] if axes[0] == 0 else x
    kernel0 = many[1][0] if axes[1] == 0 else kernel
    np.testing.assert_allclose(
        gradients[0], jax.grad(loss, 1)(x0, kernel0), rtol=1e-4, atol=1e-2
    )


def test_cond_and_vmap():
    # Under `vmap`, `cond` passes constants of its branches as if there were one per sample.
    x, kernel = drawn((3, 1, 13, 13, 32), 32)
    wanted = jnp.array([True, False, True])

    def chosen(wanted, x):
        return jax.lax.cond(wanted, lambda: conv.conv3x3(x, kernel), lambda: x)

    actual = jax.jit(jax.vmap(chosen))(wanted, x)
    np.testing.assert_allclose(actual[0], by_xla(x[0], kernel), atol=5e-5)
    np.testing.assert_array_equal(actual[1], x[1])


@pytest.mark.parametrize("many, batch", [(0, 2), (2, 0)])
@pytest.mark.parametrize("size, channels", FORMS.values(), ids=FORMS.keys())
def test_no_samples(many, batch, size, channels):
    x, kernel = drawn((many, batch, size, size, channels), channels)
    none = jnp.zeros((0, size, size, channels))
    assert jax.eval_shape(conv.conv3x3, none, kernel).shape == none.shape
    batches = jax.vmap(conv.conv3x3, (0, None))
    assert jax.eval_shape(batches, x, kernel).shape == x.shape


def test_a_sample_does_not_depend_on_its_batch():
    x, kernel = drawn((6, 28, 28, 32), 32)
    alone = jax.jit(conv.conv3x3)(x[:1], kernel)
    np.testing.assert_allclose(jax.jit(conv.conv3x3)(x, kernel)[:1], alone, atol=5e-5)


def test_not_a_number_stays_in_its_sample():
    x, kernel = drawn((2, 28, 28, 32), 32)
    out = jax.jit(conv.conv3x3)(x.at[0].set(jnp.nan), kernel)
    assert jnp.isnan(out[0]).all()
    assert jnp.isfinite(out[1]).all()


@pytest.mark.parametrize(
    "size, strides, padding",
    [
        (3, (2, 2), PADDED),
        (3, (1, 1), "VALID"),
        (1, (1, 1), ((0, 0), (0, 0))),
        (5, (1, 1), "SAME"),
    ],
)
def test_other_kernels_strides_and_paddings(size, strides, padding):
    x, kernel = drawn((2, 13, 12, 32), 32, size)
    actual = conv.convolution(x, kernel, strides, padding, **OPTIONS)
    np.testing.assert_allclose(actual, by_xla(x, kernel, strides, padding), atol=2e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"lhs_dilation": None, "rhs_dilation": None},
        {"dimension_numbers": ("NHWC", "HWIO", "NCHW")},
        {"dimension_numbers": ("HWNC", "HWIO", "NHWC")},
        {"batch_group_count": 2},
        {"preferred_element_type": jnp.float32},
    ],
)
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_options_are_those_of_jax(options, strides):
    x, kernel = drawn((4, 4, 4, 4), 32, dtype=jnp.bfloat16)
    options = {**OPTIONS, **options}
    expected = jax.lax.conv_general_dilated(x, kernel, strides, PADDED, **options)
    actual = conv.convolution(x, kernel, strides, PADDED, **options)
    assert actual.dtype == expected.dtype
    chex.assert_trees_all_close(actual, expected, atol=1e-2)


@pytest.mark.parametrize("size, channels", FORMS.values(), ids=FORMS.keys())
def test_only_cpus_take_the_forms_of_cpus(size, channels):
    x, kernel = drawn((1, size, size, channels), channels)
    convolve = jax.jit(conv.conv3x3)

    def operations(*platforms):
        return convolve.trace(x, kernel).lower(lowering_platforms=platforms).as_text()

    assert "stablehlo.convolution" not in operations("cpu")
    assert "stablehlo.dot_general" in operations("cpu")
    for platform in ("cuda", "tpu"):
        assert "stablehlo.dot_general" not in operations(platform)

    # One artifact holds both, and takes that of the device it runs on.
    exported = jax.export.export(convolve, platforms=("cpu", "cuda", "tpu"))(x, kernel)
    chex.assert_trees_all_equal(exported.call(x, kernel), convolve(x, kernel))


@pytest.mark.parametrize("size", ["height, 9", "12, width", "height, width"])
@pytest.mark.parametrize("channels", [3, 32])
def test_maps_of_symbolic_sizes(size, channels):
    x, kernel = drawn((2, 12, 9, channels), channels)
    height, width = jax.export.symbolic_shape(size)
    symbolic = jax.ShapeDtypeStruct((2, height, width, channels), x.dtype)
    exported = jax.export.export(jax.jit(conv.conv3x3))(symbolic, kernel)
    again = jax.export.deserialize(exported.serialize())
    chex.assert_trees_all_close(again.call(x, kernel), by_xla(x, kernel), atol=1e-5)
