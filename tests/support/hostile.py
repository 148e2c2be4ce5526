"""Values that no argument wants, or that it wants in another shape, dtype or range."""

import decimal

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.schedulers import SCHEDULERS


class Foreign:
    """An object of somebody else's: every attempt to look at it raises."""

    def __repr__(self):
        raise RuntimeError("no repr")


class Tracer:
    """Stands for an array that is traced: the call is then made under a trace."""

    def __init__(self, *shape, dtype=jnp.float32):
        self.value = jax.ShapeDtypeStruct(shape, dtype)


# Made anew for every call, since some can be changed.
HOSTILE = {
    "None": lambda: None,
    "NaN": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-1": lambda: -1,
    "0": lambda: 0,
    "1": lambda: 1,
    "2.7": lambda: 2.7,
    "2**31": lambda: 2**31,
    "2**63": lambda: 2**63,
    "10**5000": lambda: 10**5000,
    "1e308": lambda: 1e308,
    "-0.0": lambda: -0.0,
    "True": lambda: True,
    "complex": lambda: 1 + 2j,
    "Decimal": lambda: decimal.Decimal("0.5"),
    "empty text": lambda: "",
    "x": lambda: "x",
    "control characters": lambda: "a\x1b[2J\n\x00b",
    "bytes": lambda: b"\x01\x02",
    "[]": lambda: [],
    "{}": lambda: {},
    "()": lambda: (),
    "set": lambda: {1, 2},
    "[None]": lambda: [None],
    "ragged": lambda: [[1, 2], [3]],
    "mixed": lambda: [1, "x"],
    "huge list": lambda: [0] * 20_000,
    "nested": lambda: [[[[1.0]]]],
    "{'x': 1}": lambda: {"x": 1},
    "{1: 2}": lambda: {1: 2},
    "{'params': array}": lambda: {"params": np.ones(2, np.float32)},
    "object": object,
    "Foreign": Foreign,
    "class": lambda: SCHEDULERS["DDIMScheduler"],
    "function": lambda: lambda *args, **options: None,
    "identity": lambda: lambda x, *args, **options: x,
    "generator": lambda: (i for i in range(3)),
    "scheduler": lambda: SCHEDULERS["EDMEulerScheduler"](sigma_max=3.0),
    "state": lambda: SCHEDULERS["SCMScheduler"]().set_timesteps(1),
    "key": lambda: jax.random.key(1),
    "keys": lambda: jax.random.split(jax.random.key(1), 3),
    "raw key": lambda: jax.random.PRNGKey(3),
    "dtype": lambda: jnp.bfloat16,
    "float8": lambda: jnp.float8_e4m3fn,
    "int8": lambda: np.int8,
    "np.int64": lambda: np.int64(1),
    "np.float32": lambda: np.float32(0.5),
    "np.bool": lambda: np.bool_(True),
    "np.str": lambda: np.str_("x"),
    "longdouble": lambda: np.longdouble(0.5),
    "f64": lambda: np.linspace(0.9, 0.1, 6).reshape(2, 3),
    "f32[6]": lambda: jnp.linspace(0.9, 0.1, 6),
    "f32[2,1]": lambda: jnp.ones((2, 1)),
    "f32[3,2]": lambda: jnp.ones((3, 2)),
    "f32[]": lambda: jnp.float32(0.5),
    "f32[0]": lambda: jnp.zeros(0),
    "bf16": lambda: jnp.ones((2, 3), jnp.bfloat16),
    "f8": lambda: jnp.ones((2, 3), jnp.float8_e4m3fn),
    "i32": lambda: jnp.arange(6).reshape(2, 3),
    "u8": lambda: np.full((2, 3), 255, np.uint8),
    "bool": lambda: np.ones((2, 3), bool),
    "c64": lambda: jnp.ones((2, 3), jnp.complex64),
    "pixels": lambda: np.linspace(0, 255, 6, dtype=np.float32).reshape(2, 3),
    "i64 beyond 32 bits": lambda: np.array([2**40, 1]),
    "objects": lambda: np.array([None, "x"], object),
    "texts": lambda: np.array(["x", "y"]),
    "dates": lambda: np.array(["2026-01-01"], "datetime64[D]"),
    "lengths of time": lambda: np.array([["NaT", 1], [2, 3]], "m8[D]"),
    "masked": lambda: np.ma.masked_array([1.0, 2.0], [True, False]),
    "record": lambda: np.zeros(2, [("a", "f4")]),
    "tracer": lambda: Tracer(2, 3),
    "tracer[]": lambda: Tracer(),
    "tracer i32[2]": lambda: Tracer(2, dtype=jnp.int32),
}
