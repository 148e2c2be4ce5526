"""The convolution whose derivatives are fast within loops, against XLA's."""

import re

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from cmjax.models.conv import PADDED, conv3x3
from cmjax.models.conv_in_loops import CHANNELS_LAST, Window, convolve
from cmjax.models.layers import add_bias
from tests.support.draws import draws

# The only layout that XLA's convolution on CPUs has for itself.
FAST = "dim_labels=b01f_01io->b01f"


def by_xla(x, kernel, windows):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        [window.stride for window in windows],
        [(window.before, window.after) for window in windows],
        lhs_dilation=[window.spread for window in windows],
        rhs_dilation=[window.dilation for window in windows],
        dimension_numbers=CHANNELS_LAST,
    )


def drawn(*shapes, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def curved(function, windows):
    """A scalar function of map and kernel that has derivatives of all orders."""

    def value(x, kernel):
        return jnp.sum(jnp.sin(function(x, kernel, windows)))

    return value


def layouts_in(program):
    """The layouts of the convolutions of a compiled program."""
    return re.findall(r" convolution\(.*?(dim_labels=[^ ,]*)", program.as_text())


windows = st.builds(
    Window,
    stride=st.integers(1, 3),
    before=st.integers(-1, 3),
    after=st.integers(-1, 3),
    spread=st.integers(1, 2),
    dilation=st.integers(1, 2),
)


@hypothesis.given(
    st.tuples(windows, windows),
    st.tuples(st.integers(3, 8), st.integers(3, 8)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
@hypothesis.settings(max_examples=draws(25), deadline=None)
def test_equals_xla_in_every_derivative(windows, of_map, of_kernel):
    fits = (w.room(n, k) >= 0 for w, n, k in zip(windows, of_map, of_kernel, strict=True))
    hypothesis.assume(all(fits))
    x, kernel = drawn((2, *of_map, 3), (*of_kernel, 3, 4))
    tangents = drawn(x.shape, kernel.shape)
    ours, theirs = curved(convolve, windows), curved(by_xla, windows)

    def derivatives(value):
        gradient = jax.value_and_grad(value, argnums=(0, 1))
        return jax.jit(lambda x, kernel: jax.jvp(gradient, (x, kernel), tuple(tangents)))

    # Forward over reverse: the value, both gradients, and the derivatives of all of them.
    chex.assert_trees_all_close(
        derivatives(ours)(x, kernel), derivatives(theirs)(x, kernel), atol=2e-4, rtol=2e-5
    )


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_other_dtypes(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        x, kernel = drawn((2, 5, 6, 3), (3, 3, 3, 4), dtype=dtype)
        gradients = [
            jax.grad(curved(function, PADDED), argnums=(0, 1))(x, kernel)
            for function in (convolve, by_xla)
        ]
        chex.assert_trees_all_equal(*gradients)


def test_reverse_over_reverse_and_many_at_once():
    x, kernel = drawn((2, 4, 5, 2), (3, 3, 2, 3))
    hessians = [
        jax.jit(jax.jacrev(jax.grad(curved(function, PADDED), argnums=1), argnums=1))
        for function in (convolve, by_xla)
    ]
    ours, theirs = (hessian(x, kernel) for hessian in hessians)
    chex.assert_trees_all_close(ours, theirs, atol=1e-5)

    # A gradient per sample: the maps are many, and the kernel is one.
    per_sample = [
        jax.vmap(jax.grad(curved(function, PADDED), argnums=1), (0, None))(
            x[:, None], kernel
        )
        for function in (convolve, by_xla)
    ]
    chex.assert_trees_all_close(*per_sample, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 2, 4])
def test_many_maps_and_one_kernel_along_any_axis(axis):
    x, kernel = drawn((2, 5, 4, 3), (3, 3, 3, 4))
    maps = jnp.stack([x, 2 * x, -x], axis)

    def at_many(function):
        value = curved(function, PADDED)
        gradient = jax.vmap(jax.grad(value), (axis, None), axis)
        outputs = jax.vmap(lambda x: function(x, kernel, PADDED), axis, axis)
        return outputs(maps), gradient(maps, kernel)

    chex.assert_trees_all_close(at_many(convolve), at_many(by_xla), atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_derivatives_within_a_loop_have_the_fast_layout(stride):
    padded = [Window(stride, 1, 1)] * 2
    x, kernel = drawn((2, 8, 8, 4), (3, 3, 4, 5))

    def loop(function):
        gradients = jax.grad(curved(function, padded), argnums=(0, 1))

        def step(carry, _):
            return jax.tree.map(jnp.subtract, carry, gradients(*carry)), None

        program = jax.jit(lambda *carry: jax.lax.scan(step, carry, length=3))
        return program.lower(x, kernel).compile()

    # XLA's own transposes of other layouts are for convolutions outside of loops only.
    assert set(layouts_in(loop(by_xla))) - {FAST}
    assert set(layouts_in(loop(convolve))) == {FAST}


def test_so_have_those_by_many_maps_at_once():
    x, kernel = drawn((2, 8, 8, 4), (3, 3, 4, 5))
    gradients = jax.vmap(jax.grad(curved(convolve, PADDED)), (0, None))

    def step(maps, _):
        return maps - gradients(maps, kernel), None

    program = jax.jit(lambda maps: jax.lax.scan(step, maps, length=3))
    assert set(layouts_in(program.lower(jnp.stack([x, x])).compile())) == {FAST}


def test_a_tangent_of_the_map_alone_is_one_convolution_more():
    x, kernel = drawn((1, 5, 5, 32), (3, 3, 32, 32))

    def along(x, tangent):
        return jax.jvp(lambda x: conv3x3(x, kernel), (x,), (tangent,))

    # The kernel has none. Its zeros were convolved, too.
    program = jax.jit(along).lower(x, x).compile()
    assert len(layouts_in(program)) == 2

    def bias_added(y, tangent):
        return jax.jvp(lambda y: add_bias(y, jnp.ones(32)), (y,), (tangent,))

    assert "dot_general" not in jax.jit(bias_added).lower(x, x).as_text()


def test_what_does_not_fit_is_refused_while_it_is_traced():
    x, kernel = drawn((1, 5, 5, 3), (3, 3, 3, 4))

    def shape(x, kernel):
        return jax.eval_shape(lambda x, kernel: convolve(x, kernel, PADDED), x, kernel)

    with pytest.raises(ValueError, match="feature dimension"):
        shape(x[..., :2], kernel)
    with pytest.raises(TypeError, match="same dtypes"):
        shape(x, kernel.astype(jnp.bfloat16))
    with pytest.raises(TypeError, match="ndim"):
        shape(x[0], kernel)


@pytest.mark.parametrize(
    "of_map, window",
    [
        ((2, 4, 4, 3), Window(1, 0, 0)),
        ((2, 4, 4, 3), Window(2, 0, 0)),
        ((2, 0, 4, 3), Window(1, 1, 1, spread=2)),
        ((0, 9, 9, 3), Window(2, 1, 1)),
    ],
)
def test_without_pixels_or_samples(of_map, window):
    # Kernels of 7x5 pixels have no place on a map of 4x4.
    x, kernel = drawn(of_map, (7, 5, 3, 4))
    windows = [window] * 2
    out = jax.jit(convolve, static_argnums=2)(x, kernel, tuple(windows))
    assert out.shape == by_xla(x, kernel, windows).shape
    gradients = jax.jit(jax.grad(curved(convolve, windows), argnums=(0, 1)))(x, kernel)
    chex.assert_trees_all_equal(gradients, (jnp.zeros_like(x), jnp.zeros_like(kernel)))


def test_on_an_explicit_mesh():
    x, kernel = drawn((4, 6, 6, 3), (3, 3, 3, 4))
    gradient = jax.grad(curved(convolve, PADDED), argnums=(0, 1))
    expected = gradient(x, kernel)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        divided = jax.device_put(x, P("data"))
        whole = jax.device_put(kernel, P())
        gradients = jax.jit(gradient)(divided, whole)
        assert jax.typeof(gradients[0]).sharding.spec[0] == "data"
    for ours, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_precision_is_that_of_the_caller():
    x, kernel = drawn((1, 5, 5, 3), (3, 3, 3, 4))
    gradient = jax.jit(jax.grad(curved(convolve, PADDED)))
    with jax.default_matmul_precision("highest"):
        program = gradient.lower(x, kernel).as_text()
    assert program.count("precision HIGHEST") == 4  # both factors of both convolutions
    assert "HIGHEST" not in gradient.lower(x, kernel).as_text()


def test_on_accelerators_the_program_is_that_of_jax():
    x, kernel = drawn((1, 5, 5, 3), (3, 3, 3, 4))

    def operations(function, platform):
        gradient = jax.jit(jax.grad(curved(function, PADDED), argnums=(0, 1)))
        exported = jax.export.export(gradient, platforms=[platform])(x, kernel)
        return re.findall(r"= stablehlo\.(\w+)", exported.mlir_module())

    for platform in ("cuda", "tpu"):
        assert sorted(operations(convolve, platform)) == sorted(
            operations(by_xla, platform)
        )
    assert "transpose" in operations(convolve, "cpu")


def test_inside_of_shard_map():
    # On the devices of a mesh x differs, and the kernel does not.
    mesh = Mesh(jax.devices()[:2], ("data",), axis_types=(AxisType.Auto,))
    x, kernel = drawn((4, 6, 6, 3), (3, 3, 3, 4))

    def total(kernel, x):
        return jax.lax.psum(curved(convolve, PADDED)(x, kernel), "data")

    divided = jax.shard_map(
        jax.grad(total), mesh=mesh, in_specs=(P(), P("data")), out_specs=P()
    )
    expected = jax.grad(curved(by_xla, PADDED), argnums=1)(x, kernel)
    np.testing.assert_allclose(jax.jit(divided)(kernel, x), expected, atol=1e-4)


def test_a_map_or_a_bias_that_differs_from_device_to_device_without_a_tangent():
    # As where only the biases are trained, or each device has biases of its own.
    mesh = Mesh(jax.devices()[:2], ("data",), axis_types=(AxisType.Auto,))
    y, bias = drawn((4, 3, 3, 5), (1, 1, 1, 5))
    of_devices = [bias, 2 * bias]

    def value(y, bias):
        return jnp.sum(jnp.sin(add_bias(y, bias.reshape(5))))

    def gradient(argnum, divided):
        specs = [P("data") if name in divided else P() for name in ("y", "bias")]
        by_one = jax.grad(value, argnum)
        return jax.jit(
            jax.shard_map(by_one, mesh=mesh, in_specs=tuple(specs), out_specs=P())
        )

    by_bias = jnp.cos(y + bias).sum(axis=(0, 1, 2), keepdims=True)
    np.testing.assert_allclose(gradient(1, ["y"])(y, bias), by_bias, atol=1e-5)
    by_map = sum(jnp.cos(y + own) for own in of_devices)
    found = gradient(0, ["bias"])(y, jnp.concatenate(of_devices))
    np.testing.assert_allclose(found, by_map, atol=1e-5)


def test_convolutions_are_saved_where_a_policy_says_so():
    x, kernel = drawn((1, 5, 5, 32), (3, 3, 32, 32))

    def convolutions(layer):
        policy = jax.checkpoint_policies.dots_saveable
        value = jax.checkpoint(lambda x: jnp.sum(jnp.sin(layer(x))), policy=policy)
        program = jax.jit(jax.grad(value)).lower(x).as_text()
        return program.count("stablehlo.convolution")

    # The output, which is saved, and the gradient.
    for layer in (lambda x: convolve(x, kernel, PADDED), lambda x: conv3x3(x, kernel)):
        assert convolutions(layer) == 2
