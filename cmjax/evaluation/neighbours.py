"""Precision and recall, by nearest neighbours."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cmjax.configs import is_int, shown
from cmjax.evaluation.checks import as_features

# Number of distances that are computed at a time: 16 MiB in float64, and about five such arrays.
BLOCK = 2**21
PRECISION = 1e-6  # of squared distances, relative


class PrecisionRecall(NamedTuple):
    """Fidelity and variety of generated samples.

    Attributes:
        precision: fraction of the generated samples that lie on the manifold of the real ones.
        recall: fraction of the real samples that lie on the manifold of the generated ones.
    """

    precision: float
    recall: float


def precision_recall(real: ArrayLike, generated: ArrayLike, k: int = 3) -> PrecisionRecall:
    """Measures fidelity and variety of generated samples separately.

    This is the improved precision and recall of Kynkäänniemi et al. (2019). The manifold of a set
    of samples is the union of balls around them, each of which reaches to the sample's k-th nearest
    neighbour in the set. Precision is the fraction of generated samples on the manifold of the real
    ones, recall the fraction of real samples on the manifold of the generated ones. Points on the
    surface of a ball, up to rounding, are inside.

    Args:
        real: features `[N, D]`.
        generated: features `[M, D]`. Results depend on both numbers; in the paper M equals N.
        k: which neighbour a ball reaches to; 3 in the paper.

    Returns:
        The two fractions.

    Raises:
        ValueError: for other shapes, numbers that are not finite, or k that is not from 1 to
            min(N, M) - 1.
    """
    x = as_features(real, "real")
    y = as_features(generated, "generated")
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"real and generated must have as many features, got {x.shape[1]} and {y.shape[1]}"
        )
    if not is_int(k, 1, min(len(x), len(y)) - 1):
        raise ValueError(
            f"k must be an integer from 1 to the number of other samples, "
            f"got k={shown(k)} for {len(x)} real and {len(y)} generated ones"
        )

    # A common factor does not change the fractions. This one brings all numbers to a size whose
    # squares neither overflow nor vanish; it is a power of two, so nothing is rounded.
    largest = max(np.abs(x).max(), np.abs(y).max())
    _, exponent = np.frexp(largest)
    x = np.ldexp(x, -exponent)
    y = np.ldexp(y, -exponent)

    # Nor does a shift. Without it, a large mean that all features share would cost digits in
    # |x|^2 + |y|^2 - 2 x y.
    center = x.mean(0)
    x = x - center
    y = y - center

    # Squared radii of the balls, f64[N] and f64[M].
    reach_x = _reach(x, k)
    reach_y = _reach(y, k)

    # Which samples lie in a ball of the other set, a block of real ones at a time. Distances are
    # lowered by a bound on their rounding error, so that ties count as inside.
    precise = np.zeros(len(y), bool)
    recalled = np.zeros(len(x), bool)
    for rows, squares in _squared_distances(x, y, lowered=True):
        precise |= (squares <= reach_x[rows, None]).any(0)
        recalled[rows] = (squares <= reach_y).any(1)
    return PrecisionRecall(float(precise.mean()), float(recalled.mean()))


def _reach(x: np.ndarray, k: int) -> np.ndarray:
    """Returns the squared distance of every row of x to the k-th nearest other row, f64[N]."""
    reach = np.empty(len(x))
    for rows, squares in _squared_distances(x, x):
        # A row is not its own neighbour, but rows equal to it are. In this block of rows, column
        # rows.start + i is row i itself.
        np.fill_diagonal(squares[:, rows.start :], np.inf)
        reach[rows] = np.partition(squares, k - 1, axis=1)[:, k - 1]
    return reach


def _squared_distances(
    x: np.ndarray, y: np.ndarray, lowered: bool = False
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields the squared distances of all pairs, a block of rows of x at a time.

    Args:
        x: f64[N, D].
        y: f64[M, D].
        lowered: whether to subtract a bound on the rounding error.

    Yields:
        A slice of rows of x, and their squared distances to all rows of y, f64[n, M].
    """
    # |x - y|^2 = |x|^2 + |y|^2 - 2 x y: one matrix product, and no array [N, M, D].
    norms_x = np.einsum("nd,nd->n", x, x)
    norms_y = np.einsum("nd,nd->n", y, y)

    # As many rows at a time as give about BLOCK distances.
    size = max(1, BLOCK // len(y))
    for first in range(0, len(x), size):
        rows = slice(first, first + size)
        norms = norms_x[rows, None] + norms_y
        squares = norms - 2 * x[rows] @ y.T

        # Sums of D numbers are off by about D eps. Where little is left of the norms, which are
        # distances from the mean of all, too much of that is rounding.
        rounding = (x.shape[1] + 8) * np.finfo(np.float64).eps
        is_close = squares < rounding / PRECISION * norms

        # There the squares are computed once more, with one of the samples as the origin: those
        # of all samples that are close to the same one at once.
        for row in np.flatnonzero(is_close.any(1)):
            columns = np.flatnonzero(is_close[row])
            if not columns.size:
                continue
            others = np.flatnonzero(is_close[:, columns[0]])
            origin = x[first + row]
            near_x = x[first + others] - origin
            near_y = y[columns] - origin
            near_norms = np.einsum("nd,nd->n", near_x, near_x)[:, None]
            near_norms = near_norms + np.einsum("nd,nd->n", near_y, near_y)
            block = np.ix_(others, columns)
            squares[block] = near_norms - 2 * near_x @ near_y.T
            norms[block] = near_norms
            is_close[block] = False
        if lowered:
            squares -= rounding * norms + PRECISION * np.abs(squares)
        yield rows, squares
