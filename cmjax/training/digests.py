"""Digests of trees of arrays, by which one is distinguished from another."""

import hashlib
from typing import Any

import jax
import numpy as np

from cmjax.arrays import add_to_digest

DIGEST_SIZE = 16  # bytes


def digest_of(tree: Any, note: str = "") -> bytes:
    """Returns a digest of arrays with their names, `DIGEST_SIZE` bytes.

    An array that is divided among several processes is not covered: none has all of it.

    Args:
        tree: a pytree of arrays.
        note: a text that the digest is of, too.
    """
    digest = hashlib.blake2b(note.encode(), digest_size=DIGEST_SIZE)
    for name, leaf in leaves_by_path(tree).items():
        is_whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
        if not (is_whole or leaf.is_fully_replicated):
            continue

        # Names, dtypes and shapes too: equal bytes can be other arrays.
        values = np.ascontiguousarray(leaf)
        add_to_digest(digest, f"{name} {values.dtype} {values.shape}", values)
    return digest.digest()


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Returns the arrays of a tree by their path, in the order of the paths."""
    # Orbax gives tuples and named tuples back as other containers, whose paths have other types of
    # keys: only what the keys are called is compared.
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        leaves[name] = leaf
    return dict(sorted(leaves.items()))
