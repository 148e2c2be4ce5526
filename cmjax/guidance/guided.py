"""The ways to guide a network: classifier-free, with projection, and by a weaker network."""

from collections.abc import Mapping, Sequence
from typing import Any

from cmjax.arrays import ApplyFn
from cmjax.conditioning import check_null
from cmjax.configs import is_finite, shown
from cmjax.guidance.calls import autoguided_network, classifier_free_network
from cmjax.guidance.rules import Extrapolated, Projected
from cmjax.guidance.strength import Scale, Strength, check_parametrization
from cmjax.networks import check_network, num_classes
from cmjax.parametrization import Parametrization
from cmjax.tracing import ByValue, cached_unless_tracing


def classifier_free(
    apply_fn: ApplyFn,
    scale: Scale,
    *,
    null: Mapping[str, Any],
    interval: Sequence[float] | None = None,
    parametrization: Parametrization | None = None,
    rescale: float = 0.0,
    doubled: bool = False,
) -> ApplyFn:
    """Returns a network guided away from its output without conditioning.

    Classifier-free guidance (Ho and Salimans 2022, 2207.12598): `without + scale (with - without)`,
    where `without` is the output for the conditioning `null`.

    Example:
        >>> import jax.numpy as jnp
        >>> from cmjax.guidance import classifier_free
        >>> def apply_fn(params, x, t, class_labels):
        ...     return params[class_labels][:, None] + 0 * x
        >>> guided = classifier_free(apply_fn, 3.0, null={"class_labels": 2})
        >>> params = jnp.array([1.0, 2.0, 0.5])  # of two classes, and of none
        >>> labels = jnp.array([0, 1])
        >>> guided(params, jnp.ones((2, 1)), jnp.zeros(2), class_labels=labels).tolist()
        [[2.0], [5.0]]

    Args:
        apply_fn: the network, `(params, x, t, **cond) -> model_output`.
        scale: a number, one per sample `[B]`, or a function of the noise levels sigma f32[B] that
            returns either; pure noise, such as that which flows begin with, is passed as 1e6. 1 is
            the network alone: a number or array of ones that is not traced returns `apply_fn`
            itself. A traced scale always calls the network twice.
        null: what conditioning becomes, such as `{"class_labels": 10}`: of each name a number, an
            array `[...]` for all samples or `[B, ...]` for each, a pytree of these where the
            conditioning is one, or None to leave it out.
        interval: the noise levels (low, high) to guide at, both included (Kynkäänniemi et al. 2024,
            2404.07724). At other levels the output is the network's own; a batch that is at none of
            these levels skips the second call. A level is the ratio of noise to signal,
            `sigma / alpha`: EDM's sigma, or a flow's `sigma / (1 - sigma)`.
        parametrization: that of the network, `scheduler.parametrization`, by which the level
            follows from the network's time. Needed for an interval and for functions of sigma.
            Samplers that round times, such as DPM-Solver on Karras levels, call the network up to a
            tenth away from the level of its time.
        rescale: share, 0 to 1, by which the standard deviation of each sample's output is brought
            back to that of the unguided one (Lin et al. 2024, 2305.08891, section 3.4). It prevents
            the overexposure of large scales.
        doubled: whether both conditionings are in one call, of `[2B, ...]` samples, instead of two
            calls one after the other. This is faster if a batch does not fill the device, and takes
            twice the memory.

    Returns:
        `(params, x, t, **cond) -> model_output`; `cond` must have the names of `null`.

    Raises:
        ValueError: for arguments out of their domain; when called, for conditioning that `null`
            does not fit, or a scale of another shape.
    """
    check_network(apply_fn)
    check_null(null, num_classes(apply_fn))
    strength = Strength(scale, interval, parametrization)
    _check_share(rescale)
    _check_doubled(doubled, null)
    if strength.is_one:
        return apply_fn
    rule = Extrapolated(float(rescale))
    return cached_unless_tracing(
        classifier_free_network, apply_fn, strength, ByValue(dict(null)), rule, doubled
    )


def adaptive_projection(
    apply_fn: ApplyFn,
    scale: Scale,
    *,
    null: Mapping[str, Any],
    parametrization: Parametrization,
    eta: float = 0.0,
    norm_threshold: float = 0.0,
    interval: Sequence[float] | None = None,
    doubled: bool = False,
) -> ApplyFn:
    """Returns a network with classifier-free guidance that is projected (APG).

    Adaptive projected guidance (Sadat et al. 2024, 2410.02416) changes the denoised sample D by
    `(scale - 1) (d_orthogonal + eta d_parallel)`, where d, the difference of the denoised samples
    with and without conditioning, is divided into its parts orthogonal and parallel to D. The
    parallel part saturates colours. The paper's third part, a momentum of d from step to step,
    needs a memory that networks do not have, and is left out.

    Args:
        apply_fn: as for `classifier_free`.
        scale: likewise.
        null: likewise.
        parametrization: that of the network, `scheduler.parametrization`.
        eta: weight of the parallel part; 1 is classifier-free guidance.
        norm_threshold: d with a larger Euclidean norm, over all of a sample, is scaled down to it;
            0 for no bound.
        interval: as for `classifier_free`.
        doubled: likewise.

    Returns:
        `(params, x, t, **cond) -> model_output`.

    Raises:
        ValueError: as `classifier_free`.
    """
    check_network(apply_fn)
    check_null(null, num_classes(apply_fn))
    check_parametrization(parametrization)
    strength = Strength(scale, interval, parametrization)
    for name, value in {"eta": eta, "norm_threshold": norm_threshold}.items():
        if not is_finite(value, 0):
            raise ValueError(
                f"{name} must be a finite number, 0 or more, got {shown(value)}"
            )
    _check_doubled(doubled, null)
    if strength.is_one:
        return apply_fn
    rule = Projected(parametrization.without_boundary(), float(eta), float(norm_threshold))
    return cached_unless_tracing(
        classifier_free_network, apply_fn, strength, ByValue(dict(null)), rule, doubled
    )


def autoguidance(
    apply_fn: ApplyFn,
    scale: Scale,
    *,
    interval: Sequence[float] | None = None,
    parametrization: Parametrization | None = None,
    rescale: float = 0.0,
) -> ApplyFn:
    """Returns a network guided by a weaker version of itself (Karras et al. 2024, 2406.02507).

    The output is `weaker + scale (output - weaker)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from cmjax.guidance import autoguidance
        >>> def apply_fn(params, x, t):
        ...     return params * x
        >>> guided = autoguidance(apply_fn, 2.0)
        >>> guided((1.0, 0.5), jnp.ones((1, 2)), jnp.zeros(1)).tolist()  # 0.5 + 2 (1 - 0.5)
        [[1.5, 1.5]]

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        scale: as for `classifier_free`; with 1 the weaker network is not called.
        interval: likewise.
        parametrization: likewise.
        rescale: likewise.

    Returns:
        `((params, weaker_params), x, t, **cond) -> model_output`.

    Raises:
        ValueError: as `classifier_free`; when called, also if the parameters are no pair.
    """
    check_network(apply_fn)
    _check_share(rescale)
    strength = Strength(scale, interval, parametrization)
    return cached_unless_tracing(
        autoguided_network, apply_fn, strength, Extrapolated(float(rescale))
    )


def _check_share(rescale: Any) -> None:
    """Raises ValueError unless `rescale` is a share, from 0 to 1."""
    if not is_finite(rescale, 0) or rescale > 1:
        raise ValueError(f"rescale must be a number from 0 to 1, got {shown(rescale)}")


def _check_doubled(doubled: Any, null: Mapping[str, Any]) -> None:
    """Raises ValueError if `doubled` is no flag, or asks for what cannot be in one batch."""
    if not isinstance(doubled, bool):
        raise ValueError(f"doubled must be True or False, got {shown(doubled)}")
    if doubled and any(value is None for value in null.values()):
        raise ValueError(
            "doubled=True needs the same conditioning for both; give null values, not None"
        )
