"""Checks of the options that losses share: schedulers, metrics, functions and lengths of runs."""

from typing import Any, NamedTuple

from cmjax.configs import positive_int, shown


class KarrasRange(NamedTuple):
    """The range of noise levels of a scheduler, in the order of `karras_sigmas`' arguments.

    Attributes:
        sigma_min: the lowest level.
        sigma_max: the highest level.
        rho: curvature of the grid between them (Karras et al. 2022, equation 5).
    """

    sigma_min: float
    sigma_max: float
    rho: float


def karras_range(scheduler: Any) -> KarrasRange:
    """Returns the range of noise levels of a scheduler.

    Raises:
        ValueError: if the scheduler has none, such as SCMScheduler, whose levels are angles.
    """
    _check_instance(scheduler)

    # The attributes are checked and not the class, so that users' own schedulers qualify too.
    if not all(hasattr(scheduler, name) for name in KarrasRange._fields):
        raise ValueError(
            "scheduler must have sigma_min, sigma_max and rho for this loss, as "
            f"CMStochasticIterativeScheduler does; {type(scheduler).__name__} has not"
        )
    return KarrasRange(scheduler.sigma_min, scheduler.sigma_max, scheduler.rho)


def check_sigma_data(scheduler: Any) -> None:
    """Checks that a scheduler knows the standard deviation of the data.

    Raises:
        ValueError: if it does not.
    """
    _check_instance(scheduler)

    # Scalings and weights of the losses are in units of sigma_data.
    if not hasattr(scheduler, "sigma_data"):
        raise ValueError(
            "scheduler must have sigma_data, as CMStochasticIterativeScheduler and "
            f"SCMScheduler do; {type(scheduler).__name__} has not"
        )


def check_edm_scheduler(scheduler: Any) -> None:
    """Checks that a scheduler has EDM's scale of the data and range of noise levels.

    Raises:
        ValueError: if it lacks one of them.
    """
    check_sigma_data(scheduler)
    karras_range(scheduler)


def _check_instance(scheduler: Any) -> None:
    """Raises ValueError for a scheduler's class, which has its fields' defaults as attributes."""
    if isinstance(scheduler, type):
        raise ValueError(
            f"scheduler must be an instance, such as {scheduler.__name__}(), got the class"
        )


def check_function(name: str, function: Any) -> None:
    """Raises ValueError unless an argument is a function."""
    if not callable(function):
        raise ValueError(f"{name} must be a function, got {shown(function)}")


def check_total_steps(total_steps: Any) -> None:
    """Raises ValueError unless `total_steps` is an integer of at least 1."""
    # The curricula divide by it inside of `jit`, where 0 would silently lead to NaN.
    positive_int("total_steps", total_steps)


def check_metric(metric: Any) -> None:
    """Raises ValueError unless `metric` is a function."""
    if not callable(metric):
        raise ValueError(
            f"metric must be a function (a, b) -> f32[B], such as losses.L2(), got {shown(metric)}"
        )
