"""Comparisons of pytrees of arrays that raise AssertionError, whatever else is switched off.

Not `assert`, which `python -O` leaves out, and not chex, whose assertions any part of a program can
disable for all of it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check(condition: Any, message: str) -> None:
    """Raises AssertionError with a message unless a condition holds."""
    if not condition:
        raise AssertionError(message)


def assert_close(found: Any, expected: Any, *, rtol: float, atol: float = 0.0) -> None:
    """Checks that two trees have the same structure, shapes and dtypes, and close numbers."""
    for name, ours, theirs in _pairs(found, expected):
        # bfloat16 is compared in float64, as everything is; NaN equals NaN.
        wide = ours.astype(np.float64), theirs.astype(np.float64)
        np.testing.assert_allclose(*wide, rtol=rtol, atol=atol, err_msg=name)


def assert_equal(found: Any, expected: Any) -> None:
    """Checks that two trees have the same structure, shapes, dtypes and numbers."""
    for name, ours, theirs in _pairs(found, expected):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def assert_finite(tree: Any) -> None:
    """Checks that all numbers of a tree are finite."""
    for name, leaf in _leaves(tree):
        is_finite = np.isfinite(leaf.astype(np.float64)).all()
        check(is_finite, f"{name} is not finite: {leaf}")


def assert_dtypes(dtype: Any, **arrays: jax.Array) -> None:
    """Checks that arrays have a dtype."""
    for name, array in arrays.items():
        check(
            array.dtype == dtype, f"{name} is {array.dtype}, and must be {jnp.dtype(dtype)}"
        )


def _pairs(found, expected):
    """The leaves of two trees of one structure, with their names."""
    structures = jax.tree.structure(found), jax.tree.structure(expected)
    check(structures[0] == structures[1], f"{structures[0]} differs from {structures[1]}")
    for (name, ours), (_, theirs) in zip(_leaves(found), _leaves(expected), strict=True):
        for what in ("shape", "dtype"):
            one = getattr(ours, what)
            other = getattr(theirs, what)
            check(one == other, f"{name} has the {what} {one}, and must have {other}")
        yield name, ours, theirs


def _leaves(tree):
    """The leaves of a tree as arrays of NumPy, with their names."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield jax.tree_util.keystr(path) or "result", np.asarray(leaf)
