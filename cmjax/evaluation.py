"""How good are samples? Fréchet distance, precision and recall of features, by any function of yours.

    real, made = (features(feature_fn, images) for images in (test_images, generated.images))
    frechet_distance(real, made), precision_recall(real, made)

They compare with numbers from the same features and as many samples alone. For the standard FID write the samples with
`cmjax.images.save_npz` or `save_png_folder`, and give them to the guided-diffusion evaluator or to torch-fidelity.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

BLOCK = 2**23  # distances computed at a time; 64 MiB


class Gaussian(NamedTuple):
    """A fit to features: mean f64[D] and covariance f64[D, D]."""

    mean: np.ndarray
    cov: np.ndarray


class PrecisionRecall(NamedTuple):
    """The share of generated samples that look real, and that of real ones that could have been generated."""

    precision: float
    recall: float


def features(
    feature_fn: Callable[[np.ndarray], Any], images: np.ndarray, batch_size: int = 64
) -> np.ndarray:
    """Applies a function to images batch by batch, all of one size: the last is filled up, and its surplus cut.

    Args:
        feature_fn: from `batch_size` images to features `[batch_size, D]`, each of its own image alone. It gets the
            images as they are; jit it if it is JAX.
        images: `[N, ...]` of any dtype.
        batch_size: images at a time.

    Returns:
        f64[N, D].

    Raises:
        ValueError: if there are no images, or features have another shape or are not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not len(images):
        raise ValueError("images must not be empty")
    parts = []
    for first in range(0, len(images), batch_size):
        batch = np.asarray(images[first : first + batch_size])
        surplus = batch_size - len(batch)
        values = np.asarray(
            feature_fn(np.concatenate([batch, batch[-1:].repeat(surplus, 0)])), np.float64
        )
        if values.ndim != 2 or len(values) != batch_size:
            raise ValueError(
                f"feature_fn must return [{batch_size}, D] for {batch_size} images, got {values.shape}"
            )
        parts.append(values[: len(batch)])
    return _checked(np.concatenate(parts), "feature_fn's result")


def fit_gaussian(batches: Iterable[ArrayLike]) -> Gaussian:
    """Fits a Gaussian to features that need not be in memory together (Chan, Golub and LeVeque 1979).

    Args:
        batches: features `[n, D]`, n being at least 1 and may vary.

    Returns:
        The mean and the unbiased covariance, as `np.cov` has it.

    Raises:
        ValueError: for other shapes, numbers that are not finite, or fewer than 2 samples in all.
    """
    count, mean, scatter = 0, np.zeros(1), np.zeros(1)
    for batch in batches:
        batch = _checked(batch, "every batch (a single array goes in a list)")
        if count and batch.shape[1:] != mean.shape:
            raise ValueError(
                f"batches must have as many features each, got {mean.shape[0]} and {batch.shape[1]}"
            )
        own = batch.mean(0)
        step, total = own - mean, count + len(batch)
        scatter = (
            scatter
            + (batch - own).T @ (batch - own)
            + np.outer(step, step) * (count * len(batch) / total)
        )
        count, mean = total, mean + step * (len(batch) / total)
    if count < 2:
        raise ValueError(f"a Gaussian needs the features of at least 2 samples, got {count}")
    return Gaussian(mean, scatter / (count - 1))


def frechet_distance(a: ArrayLike | Gaussian, b: ArrayLike | Gaussian) -> float:
    """Returns |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2) of Gaussians (Dowson and Landau 1982; the FID of Heusel 2017).

    Sound for covariances without full rank, such as those of fewer samples than features; never negative.

    Args:
        a: features `[N, D]`, or a fit to them by `fit_gaussian` or from a file of statistics.
        b: as `a`, with as many features; the number of samples may differ.

    Raises:
        ValueError: for other shapes, numbers that are not finite, fewer than 2 samples, or no covariance.
    """
    (mean_a, cov_a), (mean_b, cov_b) = _fit(a, "a"), _fit(b, "b")
    if mean_a.shape != mean_b.shape:
        raise ValueError(f"a and b must have as many features, got {len(mean_a)} and {len(mean_b)}")
    # With C = R R^T the trace of (C1 C2)^1/2 is the sum of the singular values of R1^T R2; a root of computed
    # eigenvalues of C1 C2 instead would turn their rounding errors e into e^1/2.
    cross = np.linalg.svd(_root(cov_a).T @ _root(cov_b), compute_uv=False).sum()
    distance = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    return max(float(distance), 0.0)


def precision_recall(real: ArrayLike, generated: ArrayLike, k: int = 3) -> PrecisionRecall:
    """Measures fidelity and variety apart (improved precision and recall, Kynkäänniemi et al. 2019).

    A set's manifold is the union of balls around its samples, each reaching to the k-th nearest other one. Precision
    is the share of generated samples on the real manifold; recall that of real samples on the generated one. Ties,
    up to rounding, are on it.

    Args:
        real: features `[N, D]`.
        generated: features `[M, D]`; M is N in the paper, and the shares depend on both.
        k: neighbours, 3 in the paper.

    Raises:
        ValueError: for other shapes, numbers that are not finite, or k that is not from 1 to min(N, M) - 1.
    """
    x, y = _checked(real, "real"), _checked(generated, "generated")
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"real and generated must have as many features, got {x.shape[1]} and {y.shape[1]}"
        )
    if not 1 <= k < min(len(x), len(y)):
        raise ValueError(
            f"k must be from 1 to the number of other samples, got k={k} for {len(x)} real and {len(y)} generated ones"
        )
    center = x.mean(0)  # what all have in common would cancel at the cost of digits
    x, y = x - center, y - center
    reach_x, reach_y = _reach(x, k), _reach(y, k)
    precise, recalled = np.zeros(len(y), bool), np.zeros(len(x), bool)
    rounding = (x.shape[1] + 8) * np.finfo(np.float64).eps
    for rows, squares in _squared_distances(x, y, rounding):
        precise |= (squares <= reach_x[rows, None]).any(0)
        recalled[rows] = (squares <= reach_y).any(1)
    return PrecisionRecall(float(precise.mean()), float(recalled.mean()))


def _checked(values: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"{name} must be features [N, D] and not empty, got shape {values.shape}")
    wrong = ~np.isfinite(values).all(1)
    if wrong.any():
        raise ValueError(
            f"{name} is not finite at row {wrong.argmax()}; remove that sample or repair the features"
        )
    return values


def _fit(values: ArrayLike | Gaussian, name: str) -> Gaussian:
    if not isinstance(values, Gaussian):
        values = _checked(values, name)
        if len(values) < 2:
            raise ValueError(
                f"{name} must have the features of at least 2 samples, got {len(values)}"
            )
        return fit_gaussian([values])
    mean, cov = (np.asarray(part, np.float64) for part in values)
    if mean.ndim != 1 or not mean.size or cov.shape != 2 * mean.shape:
        raise ValueError(
            f"{name} must have a mean [D] and a covariance [D, D], got {mean.shape} and {cov.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ValueError(f"{name} must have a mean and a covariance that are finite; fit it again")
    if np.abs(cov - cov.T).max() > 1e-5 * np.abs(cov).max():
        raise ValueError(
            f"{name} must have a symmetric covariance; give the covariance itself, not a factor of it"
        )
    return Gaussian(mean, cov)


def _root(cov: np.ndarray) -> np.ndarray:
    """R with cov = R R^T, without the directions whose variance is but rounding."""
    values, vectors = np.linalg.eigh(cov)
    least = values[-1] * len(cov) * np.finfo(np.float64).eps
    return vectors * np.sqrt(np.where(values > least, values, 0).clip(0))


def _reach(x: np.ndarray, k: int) -> np.ndarray:
    """The squared distance of every row to the k-th nearest other one."""
    reach = np.empty(len(x))
    for rows, squares in _squared_distances(x, x):
        np.fill_diagonal(
            squares[:, rows.start :], np.inf
        )  # a row is not its own neighbour, but its copies are
        reach[rows] = np.partition(squares, k - 1, axis=1)[:, k - 1]
    return reach


def _squared_distances(
    x: np.ndarray, y: np.ndarray, less: float = 0.0
) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared distances `[n, M]` of some rows of x to all of y, less a share of their squared norms, and which rows."""
    norms_x, norms_y = (np.einsum("nd,nd->n", values, values) for values in (x, y))
    size = max(1, BLOCK // len(y))
    for first in range(0, len(x), size):
        rows = slice(first, first + size)
        yield rows, (1 - less) * (norms_x[rows, None] + norms_y) - 2 * x[rows] @ y.T
