"""The networks that get no gradient: the target, and the teacher with the slope of its ODE."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from cmjax.arrays import ApplyFn, weighted_sum
from cmjax.networks import adapted_to
from cmjax.parametrization import Parametrization, denoise
from cmjax.parametrization.conversion import one_time_parametrization
from cmjax.training.losses.base import Frozen
from cmjax.training.losses.dropout import without_dropout


def check_frozen(frozen):
    """Raises ValueError unless an argument is a `Frozen`."""
    if not isinstance(frozen, Frozen):
        raise ValueError(
            "frozen must be a Frozen, such as Frozen(target=params), got "
            f"{type(frozen).__name__}"
        )


def target_of(params: Any, frozen: Frozen) -> Any:
    """Returns the parameters of the target network, without a gradient.

    Args:
        params: the trained parameters; a tree like that of the target's.
        frozen: with the target's parameters.

    Raises:
        ValueError: if there are none.
    """
    check_frozen(frozen)
    if frozen.target is None and params is not None:
        raise ValueError(
            "frozen.target is None, but this loss has a target network; pass "
            "Frozen(target=params), or a moving average of them"
        )
    return jax.lax.stop_gradient(frozen.target)


def teacher_network(loss: Any, apply_fn: ApplyFn, params: Any, frozen: Frozen) -> ApplyFn:
    """Returns the teacher's network, without dropout.

    Args:
        loss: with the fields `scheduler` and `teacher_fn`; where the latter is None, the teacher's
            network is the student's.
        apply_fn: the student's network.
        params: the student's parameters.
        frozen: with the teacher's parameters.

    Raises:
        ValueError: if it is the student's, which has parameters, and there are none for it, or if
            it was adapted to something else than a denoiser of the loss's scheduler.
    """
    check_frozen(frozen)
    if loss.teacher_fn is None and frozen.teacher is None and params is not None:
        raise ValueError(
            "frozen.teacher is None, but this loss distils a teacher; pass "
            "Frozen(teacher=...) with the teacher's parameters"
        )
    network = without_dropout(apply_fn if loss.teacher_fn is None else loss.teacher_fn)

    # A teacher is read as a denoiser, which is not the identity at the lowest level.
    expected = loss.scheduler.parametrization.without_boundary()
    if adapted_to(network) not in (None, expected):
        name = "teacher_fn" if loss.teacher_fn else "apply_fn, the teacher's network too,"
        raise ValueError(
            f"{name} is adapted to something else than a denoiser of this loss's scheduler, and "
            "would be misread; pass teacher_fn=adapt(network, source, "
            "scheduler.parametrization.without_boundary(), edm_denoiser)"
        )
    return network


def denoiser_slope(
    loss: Any, apply_fn: ApplyFn, params: Any, frozen: Frozen, cond: Mapping[str, jax.Array]
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns `teacher_slope` of a loss whose teacher is a denoiser of the loss's scheduler.

    Args:
        loss: with the fields `scheduler` and `teacher_fn`.
        apply_fn: the student's network.
        params: the student's parameters.
        frozen: with the teacher's parameters.
        cond: per-sample conditioning.

    Raises:
        ValueError: if there is no teacher, or the scheduler's networks take two times.
    """
    teacher_fn = teacher_network(loss, apply_fn, params, frozen)
    parametrization = one_time_parametrization("scheduler", loss.scheduler)
    denoiser = parametrization.without_boundary()
    return teacher_slope(teacher_fn, frozen.teacher, denoiser, cond)


def teacher_slope(
    teacher_fn: ApplyFn,
    params: Any,
    parametrization: Parametrization,
    cond: Mapping[str, jax.Array],
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns `(x, sigma) -> dx/dsigma`, the slope of the teacher's probability-flow ODE.

    `dx/dsigma = (x - D(x, sigma)) / sigma` (Karras et al. 2022, equation 3), where D is the
    denoiser.

    Args:
        teacher_fn: the teacher's network, of one time or of two.
        params: the teacher's parameters.
        parametrization: of the teacher, without a boundary condition: it is a denoiser.
        cond: per-sample conditioning, passed to `teacher_fn`.
    """

    def slope(x, sigma):
        denoised = denoise(teacher_fn, params, parametrization, x, sigma, **cond)
        return weighted_sum((1 / sigma, x), (-1 / sigma, denoised))

    return slope
