"""Measures of sample quality: Fréchet distance, precision and recall of features.

    real = features(feature_fn, test_images)
    generated = features(feature_fn, samples)
    frechet_distance(real, generated)
    precision_recall(real, generated)

The features come from a function of your own, such as the last hidden layer of a classifier. Only
compare numbers from the same features and sample count. For the standard FID, write the samples
with `cmjax.images.save_npz` or `save_png_folder` and run the guided-diffusion evaluator or
torch-fidelity on them.

Everything is computed by NumPy in float64, on the host. `search_sigmas` looks for the noise levels
whose samples are best by such a measure.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cmjax.arrays import as_numpy
from cmjax.configs import is_int, shown
from cmjax.level_search import search_sigmas as search_sigmas

LARGEST_FEATURE = 1e140  # float64 holds sums of its square
LARGEST_BATCH = 2**20
BLOCK = 2**23  # distances computed at a time: 64 MiB in float64


class Gaussian(NamedTuple):
    """A Gaussian fitted to features.

    Attributes:
        mean: the mean, f64[D].
        cov: the unbiased covariance, f64[D, D].
    """

    mean: np.ndarray
    cov: np.ndarray


class PrecisionRecall(NamedTuple):
    """Fidelity and variety of generated samples.

    Attributes:
        precision: fraction of the generated samples that lie on the manifold of the real ones.
        recall: fraction of the real samples that lie on the manifold of the generated ones.
    """

    precision: float
    recall: float


def features(
    feature_fn: Callable[[np.ndarray], Any], images: np.ndarray, batch_size: int = 64
) -> np.ndarray:
    """Applies a function to images batch by batch.

    All batches have the same size, so that a jitted function compiles once: the last batch is
    padded with copies, whose features are dropped.

    Args:
        feature_fn: maps `batch_size` images to features `[batch_size, D]`. The features of an
            image must not depend on the rest of the batch. A JAX function should be jitted.
        images: `[N, ...]` of any dtype; passed to `feature_fn` unchanged.
        batch_size: number of images at a time.

    Returns:
        The features, f64[N, D].

    Raises:
        ValueError: if there are no images, `feature_fn` is no function, or features have another
            shape or are not finite.
    """
    if not callable(feature_fn):
        raise ValueError(
            f"feature_fn must be a function of images, got {shown(feature_fn)}"
        )
    if not is_int(batch_size, 1, LARGEST_BATCH):
        raise ValueError(
            f"batch_size must be an integer of at least 1, got {shown(batch_size)}"
        )
    images = as_numpy("images", images)
    if not images.ndim or not len(images):
        raise ValueError("images must be [N, ...] and not empty")
    parts = []
    for first in range(0, len(images), batch_size):
        batch = np.asarray(images[first : first + batch_size])

        # Copies of an image rather than zeros, for which some functions return NaN.
        filling = batch[-1:].repeat(batch_size - len(batch), 0)
        made = feature_fn(np.concatenate([batch, filling]))
        values = _as_float64("feature_fn's result", made)
        if values.ndim != 2 or len(values) != batch_size:
            raise ValueError(
                f"feature_fn must return [{batch_size}, D] for {batch_size} images, "
                f"got {values.shape}"
            )
        parts.append(values[: len(batch)])
    return _as_features(np.concatenate(parts), "feature_fn's result")


def fit_gaussian(batches: Iterable[ArrayLike]) -> Gaussian:
    """Fits a Gaussian to features that need not be in memory together.

    Means and scatter matrices of batches are merged as in Chan, Golub and LeVeque (1979).

    Args:
        batches: features `[n, D]` each; n is at least 1 and may vary.

    Returns:
        The mean and the unbiased covariance; the latter is that of `np.cov`.

    Raises:
        ValueError: for other shapes, numbers that are not finite, or fewer than 2 samples in all.
    """
    # Of the n samples seen so far: the mean m = sum x / n and the scatter
    # S = sum (x - m) (x - m)^T. Broadcasting turns [1] into [D] and [D, D] at the first batch.
    count = 0
    mean = np.zeros(1)
    scatter = np.zeros(1)
    if not isinstance(batches, Iterable) or getattr(batches, "shape", None) == ():
        raise ValueError(f"batches must be a list of features [n, D], got {shown(batches)}")
    for i, batch in enumerate(batches):
        batch = _as_features(batch, f"batches[{i}] (a single array goes in a list)")
        if count and batch.shape[1:] != mean.shape:
            raise ValueError(
                f"batches must have as many features each, got {mean.shape[0]} and {batch.shape[1]}"
            )
        batch_mean = batch.mean(0)
        centered = batch - batch_mean
        step = batch_mean - mean
        total = count + len(batch)

        # S <- S + S_batch + d d^T n k / (n + k), for k samples in the batch, whose mean is d away.
        # The sum of squares minus n m m^T instead would cancel to rounding errors.
        between = np.outer(step, step) * (count * len(batch) / total)
        scatter = scatter + centered.T @ centered + between

        # m <- m + d k / (n + k)
        mean = mean + step * (len(batch) / total)
        count = total
    if count < 2:
        raise ValueError(
            f"batches must have the features of at least 2 samples in all, got {count}"
        )
    return Gaussian(mean, scatter / (count - 1))


def frechet_distance(a: ArrayLike | Gaussian, b: ArrayLike | Gaussian) -> float:
    """Returns |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2) of two Gaussians.

    This is the distance of Dowson and Landau (1982); with the features of Inception it is the FID
    of Heusel et al. (2017). The result is never negative, and accurate for singular covariances,
    such as those of fewer samples than features.

    Example:
        >>> from cmjax.evaluation import frechet_distance
        >>> a = [[0.0, 0.0], [2.0, 2.0]]
        >>> b = [[3.0, 0.0], [5.0, 2.0]]  # the same, moved by 3 along the first axis
        >>> round(frechet_distance(a, b), 6)
        9.0

    Args:
        a: features `[N, D]`, or a Gaussian from `fit_gaussian` or from a file of statistics.
        b: likewise, with the same number of features; the number of samples may differ.

    Raises:
        ValueError: for other shapes, numbers that are not finite, fewer than 2 samples, or no
            covariance.
    """
    mean_a, cov_a = as_gaussian(a, "a")
    mean_b, cov_b = as_gaussian(b, "b")
    if mean_a.shape != mean_b.shape:
        raise ValueError(
            f"a and b must have as many features, got {len(mean_a)} and {len(mean_b)}"
        )

    # Differences of what float64 holds may be too large for it.
    with np.errstate(over="ignore", invalid="ignore"):
        distance = _distance(mean_a, cov_a, mean_b, cov_b)
    if not np.isfinite(distance):
        raise ValueError("a and b are so large that float64 does not hold their distance")

    # Equal Gaussians may come out below zero by rounding.
    return max(float(distance), 0.0)


def _distance(mean_a, cov_a, mean_b, cov_b):
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2), but for rounding errors."""
    # With C = R R^T, tr (C1 C2)^1/2 is the sum of the singular values of R1^T R2. Taking roots of
    # the eigenvalues of C1 C2 instead would turn their rounding errors e into e^1/2.
    product = _root(cov_a).T @ _root(cov_b)
    if not np.isfinite(product).all():
        return np.inf
    cross = np.linalg.svd(product, compute_uv=False).sum()
    return np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * cross


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
    x = _as_features(real, "real")
    y = _as_features(generated, "generated")
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"real and generated must have as many features, got {x.shape[1]} and {y.shape[1]}"
        )
    if not is_int(k, 1, min(len(x), len(y)) - 1):
        raise ValueError(
            f"k must be an integer from 1 to the number of other samples, "
            f"got k={shown(k)} for {len(x)} real and {len(y)} generated ones"
        )

    # Fractions do not change by a common factor: a power of two, which rounds nothing, brings all
    # numbers to a size whose squares neither overflow nor vanish.
    _, exponent = np.frexp(max(np.abs(x).max(), np.abs(y).max()))
    x = np.ldexp(x, -exponent)
    y = np.ldexp(y, -exponent)

    # Distances do not change by a shift. Without it, a large mean that all features share would
    # cost digits in |x|^2 + |y|^2 - 2 x y.
    center = x.mean(0)
    x = x - center
    y = y - center

    # Squared radii of the balls, f64[N] and f64[M].
    reach_x = _reach(x, k)
    reach_y = _reach(y, k)

    # Which samples lie in a ball of the other set, a block of real ones at a time. Distances are
    # lowered by a bound on their rounding error, about D eps, so that ties count as inside.
    precise = np.zeros(len(y), bool)
    recalled = np.zeros(len(x), bool)
    rounding = (x.shape[1] + 8) * np.finfo(np.float64).eps
    for rows, squares in _squared_distances(x, y, rounding):
        precise |= (squares <= reach_x[rows, None]).any(0)
        recalled[rows] = (squares <= reach_y).any(1)
    return PrecisionRecall(float(precise.mean()), float(recalled.mean()))


def as_gaussian(values: ArrayLike | Gaussian, name: str) -> Gaussian:
    """Fits a Gaussian to features, or checks one that is given.

    Args:
        values: features `[N, D]`, or a Gaussian.
        name: the argument's name, for errors.

    Raises:
        ValueError: for other shapes, numbers that are not finite, fewer than 2 samples, or a matrix
            that is no covariance.
    """
    if not isinstance(values, Gaussian):
        values = _as_features(values, name)
        if len(values) < 2:
            raise ValueError(
                f"{name} must have the features of at least 2 samples, got {len(values)}"
            )
        return fit_gaussian([values])

    # A Gaussian from a file of statistics may hold anything.
    mean = _as_float64(f"{name}.mean", values.mean)
    cov = _as_float64(f"{name}.cov", values.cov)
    if mean.ndim != 1 or not mean.size or cov.shape != 2 * mean.shape:
        raise ValueError(
            f"{name} must have a mean [D] and a covariance [D, D], got {mean.shape} and {cov.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ValueError(
            f"{name} must have a mean and a covariance that are finite; fit it again"
        )

    # A symmetric matrix up to the rounding of float32, in which statistics may have been stored.
    if np.abs(cov - cov.T).max() > 1e-5 * np.abs(cov).max():
        raise ValueError(
            f"{name} must have a symmetric covariance; "
            "give the covariance itself, not a factor of it"
        )

    # Nor a variance below 0 in any direction, up to that rounding.
    variances = np.linalg.eigvalsh(cov)
    if variances[0] < -1e-4 * np.abs(variances).max():
        raise ValueError(
            f"{name} must have a covariance without negative eigenvalues, "
            f"got one of {variances[0]:g}"
        )
    return Gaussian(mean, cov)


def _as_float64(name: str, values: Any) -> np.ndarray:
    """Returns real numbers as f64; raises ValueError for anything else."""
    array = as_numpy(name, values)
    if np.issubdtype(array.dtype, np.complexfloating):
        raise ValueError(f"{name} must be real numbers, got {array.dtype}")
    return array.astype(np.float64)


def _as_features(values: ArrayLike, name: str) -> np.ndarray:
    """Returns features as f64[N, D]; raises ValueError for other shapes and non-finite numbers."""
    values = _as_float64(name, values)
    if values.ndim != 2 or not values.size:
        raise ValueError(
            f"{name} must be features [N, D] and not empty, got shape {values.shape}"
        )
    wrong = ~np.isfinite(values).all(1)
    if wrong.any():
        raise ValueError(
            f"{name} is not finite at row {wrong.argmax()}; "
            "remove that sample or repair the features"
        )
    largest = np.abs(values).max()
    if largest > LARGEST_FEATURE:
        raise ValueError(
            f"{name} has numbers up to {largest:g}, whose squares float64 does not hold; "
            "divide all features by the same number"
        )
    return values


def _root(cov: np.ndarray) -> np.ndarray:
    """Returns R with cov = R R^T, without the directions whose variance is only rounding error."""
    # Eigenvalues of the size of the largest one's rounding error are noise. Their roots, which are
    # much larger, would add up: they count as zero.
    values, vectors = np.linalg.eigh(cov)
    least = values[-1] * len(cov) * np.finfo(np.float64).eps
    return vectors * np.sqrt(np.where(values > least, values, 0).clip(0))


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
    x: np.ndarray, y: np.ndarray, less: float = 0.0
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields the squared distances of all pairs, a block of rows of x at a time.

    Args:
        x: f64[N, D].
        y: f64[M, D].
        less: fraction of the squared norms to subtract, so that ties count in spite of rounding.

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
        squares = (1 - less) * (norms_x[rows, None] + norms_y) - 2 * x[rows] @ y.T
        yield rows, squares
