"""Samples are floats, at every door; the words of the checks are asserted here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import arrays, editing, evaluation
from cmjax.models import compute_in
from cmjax.schedulers import SCHEDULERS

KEY = jax.random.key(0)
X = jnp.linspace(-0.9, 0.9, 6).reshape(2, 3)
BAD = {
    "u8": (np.ones((2, 3), np.uint8), "uint8; bytes become an image by x / 127.5 - 1"),
    "i32": (jnp.ones((2, 3), jnp.int32), "int32"),
    "bool": (np.ones((2, 3), bool), "bool"),
    "complex": (jnp.ones((2, 3), jnp.complex64), "complex64"),
    "float8": (jnp.ones((2, 3), jnp.float8_e4m3fn), "float8_e4m3fn"),
}


def network(params, x, t):
    return 0.1 * x


@pytest.fixture(scope="module", params=["CMStochasticIterativeScheduler", "LCMScheduler"])
def doors(request):
    """Every method that takes samples, by the argument: function of the array."""
    s = SCHEDULERS[request.param]()
    state = s.prepare(s.set_timesteps(1), X)
    return [
        ("sample", lambda x: s.scale_input(state, x)),
        ("sample", lambda x: s.predict(network, None, state, x)),
        ("sample", lambda x: s.step(KEY, state, X, x)),
        ("model_output", lambda x: s.step(KEY, state, x, X)),
        ("model_output", lambda x: s.denoise(state, x, X)),
        ("sample", lambda x: s.denoise(state, X, x)),
        ("sample", lambda x: s.advance(state, x, X, X)),
        ("denoised", lambda x: s.advance(state, X, x, X)),
        ("noise", lambda x: s.advance(state, X, X, x)),
        ("original", lambda x: s.add_noise(state, x, X)),
        ("noise", lambda x: s.add_noise(state, X, x)),
        ("noise", lambda x: s.init_sample(state, x)),
        ("sample", lambda x: s.prepare(state, x)),
        ("init", lambda x: cmjax.sample(KEY, network, None, s, (2, 3), init=x)),
        (
            "constrain's result",
            lambda x: s.step(KEY, state, X, X, constrain=lambda x0: jnp.asarray(x)),
        ),
    ]


@pytest.mark.parametrize("kind", BAD)
def test_samples_are_floats_at_every_door(doors, kind):
    array, said = BAD[kind]
    for name, door in doors:
        with pytest.raises(ValueError, match=f"{name} must hold floats, got {said}"):
            door(array)


@pytest.mark.parametrize("kind", BAD)
def test_editing_takes_floats(kind):
    array, said = BAD[kind]
    cm = cmjax.CMStochasticIterativeScheduler()
    for name, door in (
        ("noisy", lambda: editing.denoise(network, None, cm, array, 1.0)),
        ("noisy", lambda: editing.restore(KEY, network, None, cm, array, [1.0])),
        ("image", lambda: editing.stroke_to_image(KEY, network, None, cm, array)),
        ("image", lambda: editing.inpaint(array, np.ones((2, 3)))),
        ("gray", lambda: editing.colorize(array)),
        ("low", lambda: editing.super_resolve(array, 2)),
        ("first", lambda: editing.slerp(array, X, 0.5)),
        ("second", lambda: editing.interpolate(network, None, cm, X, array, [0.5])),
    ):
        with pytest.raises(ValueError, match=f"{name} must hold floats, got {said}"):
            door()


@pytest.mark.parametrize(
    "dtype", [int, "int8", bool, jnp.complex64, jnp.float8_e4m3fn, None, "x", [], object()]
)
def test_dtypes_are_floating_at_every_door(dtype):
    cm = cmjax.CMStochasticIterativeScheduler()
    state = cm.set_timesteps(1)
    doors = [
        lambda: cmjax.sample(KEY, network, None, cm, (2, 3), dtype=dtype),
        lambda: cm.init(KEY, state, (2, 3), dtype),
        lambda: editing.edit(KEY, network, None, cm, lambda x: x, (2, 3), dtype=dtype),
        lambda: compute_in(network, dtype),
        lambda: cmjax.generation.Request(dtype=dtype),
    ]
    if dtype is not None:  # which is float32 there
        doors.append(lambda: cmjax.load(dtype=dtype))
    for door in doors:
        with pytest.raises(ValueError, match="dtype must be a floating-point dtype"):
            door()


def test_dtypes_as_they_are_written():
    for dtype in ("bfloat16", jnp.bfloat16, np.dtype("bfloat16")):
        assert arrays.floating_dtype("dtype", dtype) == jnp.bfloat16
    assert arrays.floating_dtype("dtype", float) == jnp.float32
    with pytest.raises(ValueError, match="dtype=float64 needs .*jax_enable_x64"):
        arrays.floating_dtype("dtype", np.float64)
    with jax.enable_x64():
        assert arrays.floating_dtype("dtype", float) == jnp.float64


@pytest.mark.parametrize(
    "value",
    [
        *(None, "x", b"x", [[1], [1, 2]], object(), {}, [None], np.array(["x"]), KEY),
        np.ma.masked_array([1.0, 2.0], [True, False]),
    ],
)
def test_what_is_no_array_of_numbers(value):
    for check in (arrays.as_array, arrays.as_floats, arrays.as_reals, arrays.as_numpy):
        with pytest.raises(ValueError, match="^level must be numbers, got") as caught:
            check("level", value)
        assert len(str(caught.value).splitlines()) == 1


def test_numbers_become_arrays():
    assert arrays.as_floats("a", [0.5, 1.0]).dtype == jnp.float32
    assert arrays.as_floats("a", np.ones(2)).dtype == jnp.float32
    assert arrays.as_floats("a", np.longdouble(2)).dtype == jnp.float32
    assert arrays.as_reals("a", 3).dtype == jnp.float32
    assert arrays.as_reals("a", jnp.ones(2, jnp.bfloat16)).dtype == jnp.float32
    assert float(arrays.as_reals("a", 2**40)) == 2**40
    traced = jax.eval_shape(lambda x: arrays.as_reals("a", [x, 1.0]), jnp.float32(2))
    assert traced.shape == (2,)
    for name in ("bool", "complex"):
        with pytest.raises(ValueError, match="a must be real numbers"):
            arrays.as_reals("a", BAD[name][0])


def test_states_belong_to_their_scheduler():
    cm = cmjax.CMStochasticIterativeScheduler()
    other = cmjax.CMStochasticIterativeScheduler(sigma_max=40.0)
    state = other.set_timesteps(1)
    message = (
        "state was made by a CM.* with sigma_max=40.0, but this one has 80.0; pass what"
    )
    for door in (
        lambda: cmjax.sample(KEY, network, None, cm, (2, 3), state=state),
        lambda: cm.scale_input(state, X),
        lambda: cm.add_noise(state, X, X),
        lambda: cm.init(KEY, state, (2, 3)),
        lambda: cm.predict(network, None, state, X),
        lambda: cm.step(KEY, state, X, X),
    ):
        with pytest.raises(ValueError, match=message):
            door()
    with pytest.raises(
        ValueError, match="state must be what set_timesteps returns, got None"
    ):
        cm.step(KEY, None, X, X)
    made = cmjax.sample(
        KEY,
        network,
        None,
        cmjax.CMStochasticIterativeScheduler(sigma_max=40.0),
        (2, 3),
        state=state,
    )
    assert np.isfinite(made).all()


def test_roots_of_what_has_none():
    """NaN stays NaN: as 0 it would be the loss of a perfect network."""
    square = jnp.array([4.0, 0.0, -1.0, jnp.nan, jnp.inf])
    np.testing.assert_array_equal(arrays.safe_sqrt(square), [2, 0, 0, np.nan, np.inf])
    slope = jax.vmap(jax.grad(arrays.safe_sqrt))(square)
    np.testing.assert_array_equal(slope, [0.25, 0, 0, np.nan, 0])


def test_lengths_of_time_are_no_numbers():
    # NumPy has them among its integers, with the smallest one for what is missing.
    lengths = np.array([["NaT", 1], [2, 3], [4, 5]], "m8[D]")
    with pytest.raises(ValueError, match="a must be numbers"):
        evaluation.frechet_distance(lengths, np.zeros((3, 2)))
