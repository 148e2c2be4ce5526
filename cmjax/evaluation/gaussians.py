"""The Fréchet distance: Gaussians fitted to features, and how far they are from each other."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cmjax.configs import shown
from cmjax.evaluation.checks import as_features, as_float64


class Gaussian(NamedTuple):
    """A Gaussian fitted to features.

    Attributes:
        mean: the mean, f64[D].
        cov: the unbiased covariance, f64[D, D].
    """

    mean: np.ndarray
    cov: np.ndarray


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
        batch = as_features(batch, f"batches[{i}] (a single array goes in a list)")
        if count and batch.shape[1:] != mean.shape:
            raise ValueError(
                f"batches must have as many features each, got {mean.shape[0]} and {batch.shape[1]}"
            )
        batch_mean = batch.mean(0)
        centered = batch - batch_mean
        step = batch_mean - mean
        total = count + len(batch)

        # S <- S + S_batch + d d^T n k / (n + k), for a batch of k samples whose mean differs by d.
        # Subtracting n m m^T from a sum of squares instead would leave little but rounding errors.
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
    mean_a, root_a = _mean_and_root(a, "a")
    mean_b, root_b = _mean_and_root(b, "b")
    if mean_a.shape != mean_b.shape:
        raise ValueError(
            f"a and b must have as many features, got {len(mean_a)} and {len(mean_b)}"
        )

    # Differences and products of numbers that float64 holds may be too large for it.
    with np.errstate(over="ignore", invalid="ignore"):
        distance = _distance(mean_a, root_a, mean_b, root_b)
    if not np.isfinite(distance):
        raise ValueError("a and b are so large that float64 does not hold their distance")

    # Equal Gaussians may come out below zero by rounding.
    return max(float(distance), 0.0)


def _distance(mean_a, root_a, mean_b, root_b):
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2), up to rounding errors, of C = R R^T."""
    # tr C = |R|^2, and tr (C1 C2)^1/2 is the sum of the singular values of R1^T R2. The eigenvalues
    # of C1 C2 would give it, too, but roots turn their rounding errors e into e^1/2.
    product = root_a.T @ root_b
    if not np.isfinite(product).all():
        return np.inf
    cross = np.linalg.svd(product, compute_uv=False).sum()
    return (
        np.sum((mean_a - mean_b) ** 2) + np.sum(root_a**2) + np.sum(root_b**2) - 2 * cross
    )


def _mean_and_root(
    values: ArrayLike | Gaussian, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean [D] and an R [D, r] with R R^T the covariance; errors as `as_gaussian`."""
    # Of features, a root is made without the covariance, which would square their condition.
    if not isinstance(values, Gaussian):
        values = as_features(values, name)
        if len(values) >= 2:
            mean = values.mean(0)
            return mean, _root_of_samples(values, mean)
    gaussian = as_gaussian(values, name)
    return gaussian.mean, _root(gaussian.cov)


def _root_of_samples(values: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Returns R [D, r] with R R^T the covariance of samples [N, D], r being at most D."""
    # The centred samples X / sqrt(N - 1) are a root themselves.
    samples, features = values.shape
    scale = np.sqrt(samples - 1)
    if samples <= features:
        return (values - mean).T / scale

    # Of more samples than features, so is the smaller R of X = Q R. It is made of some samples at
    # a time: that of all follows from the R so far and the next samples.
    upper = np.zeros((0, features))
    at_once = max(4 * features, 4096)  # few features would make many small factorizations
    for first in range(0, samples, at_once):
        centred = (values[first : first + at_once] - mean) / scale
        upper = np.asarray(np.linalg.qr(np.concatenate([upper, centred]), mode="r"))
    return upper.T


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
        values = as_features(values, name)
        if len(values) < 2:
            raise ValueError(
                f"{name} must have the features of at least 2 samples, got {len(values)}"
            )
        return fit_gaussian([values])

    # A Gaussian from a file of statistics may hold anything.
    mean = as_float64(f"{name}.mean", values.mean)
    cov = as_float64(f"{name}.cov", values.cov)
    if mean.ndim != 1 or not mean.size or cov.shape != 2 * mean.shape:
        raise ValueError(
            f"{name} must have a mean [D] and a covariance [D, D], got {mean.shape} and {cov.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ValueError(
            f"{name} must have a mean and a covariance that are finite; fit it again"
        )

    # It must be symmetric up to the rounding of float32, in which it may have been stored.
    if np.abs(cov - cov.T).max() > 1e-5 * np.abs(cov).max():
        raise ValueError(
            f"{name} must have a symmetric covariance; "
            "give the covariance itself, not a factor of it"
        )

    # And no direction may have a variance below 0, up to that rounding.
    variances = np.linalg.eigvalsh(cov)
    if variances[0] < -1e-4 * np.abs(variances).max():
        raise ValueError(
            f"{name} must have a covariance without negative eigenvalues, "
            f"got one of {variances[0]:g}"
        )
    return Gaussian(mean, cov)


def _root(cov: np.ndarray) -> np.ndarray:
    """Returns R with cov = R R^T, without the directions whose variance is only rounding error."""
    # Eigenvalues of the size of the largest one's rounding error are noise, and count as zero: the
    # sum of their roots would not be small.
    values, vectors = np.linalg.eigh(cov)
    least = values[-1] * len(cov) * np.finfo(np.float64).eps
    return vectors * np.sqrt(np.where(values > least, values, 0).clip(0))
