"""Where `cmjax tune` begins: the noise levels of a run, as --sigmas takes them."""

from typing import Any

import numpy as np

from cmjax.schedulers import SchedulerState


def starting_levels(
    scheduler: Any, schedule: dict[str, Any], state: SchedulerState
) -> list[float]:
    """Returns the noise levels where the search begins, as --sigmas takes them.

    Args:
        scheduler: the sampler.
        schedule: from `checks.schedule`, of one item.
        state: what `scheduler.set_timesteps` makes of it.

    Raises:
        ValueError: if they are too few to search, or are not what --sigmas takes.
    """
    if state.num_steps < 2:
        raise ValueError("--steps must be at least 2: the first level is kept")

    # Given back as --sigmas, they must make the same run.
    reasons = []
    for levels in _candidates(scheduler, schedule, state):
        try:
            again = scheduler.set_timesteps(sigmas=levels).sigmas
        except ValueError as error:
            reasons.append(str(error))
            continue
        if again.shape == state.sigmas.shape and np.allclose(again, state.sigmas, 1e-4):
            return levels
    if reasons:
        raise ValueError(
            f"--scheduler: its noise levels cannot be chosen: {reasons[0]}; take another sampler, "
            "or leave out such an option"
        )
    raise ValueError(
        "--scheduler: it moves the noise levels that it is given; say by --sigmas where to begin"
    )


def lowest_level(scheduler: Any, start: list[float]) -> float:
    """Returns the lowest level that the search may try, from the levels where it begins."""
    # TrigFlow's angles begin at 0, which is no level of a call.
    return float(scheduler.sigma_range[0]) or start[-1] / 100


def _candidates(
    scheduler: Any, schedule: dict[str, Any], state: SchedulerState
) -> list[list[float]]:
    """Returns what --sigmas may have to be to make the run of a state."""
    if "sigmas" in schedule:
        return [list(map(float, schedule["sigmas"]))]
    called = _distinct(state.sigmas[: state.num_steps])
    if not hasattr(scheduler, "levels"):
        return [called]

    # Before churn, and before calls in the middle of a step.
    ((name, value),) = schedule.items()
    levels = scheduler.levels(name, value)
    sigma = np.float64(levels.sigmas[:-1])
    alpha = np.float64(levels.alphas[:-1])

    # Flow levels before the shift: sigma = shift t / (1 + (shift - 1) t), solved for t.
    shift = getattr(scheduler, "shift", 1.0)
    if getattr(scheduler, "use_flow_sigmas", False):
        shift = scheduler.flow_shift
    with np.errstate(divide="ignore", invalid="ignore"):
        unshifted = sigma / (sigma + (1 - sigma) * shift)

        # TrigFlow's levels in EDM's terms, and flow maps' in shares of the noise's scale.
        ratio = sigma / alpha
    share = sigma / getattr(scheduler, "noise_scale", 1.0)
    found = [sigma.tolist(), unshifted.tolist(), ratio.tolist(), share.tolist(), called]
    return [levels for levels in found if np.isfinite(levels).all()]


def _distinct(levels: Any) -> list[float]:
    """Returns descending levels, each once: solvers may call the network twice at a level."""
    found: list[float] = []
    for level in levels.tolist():
        if not found or level < found[-1]:
            found.append(level)
    return found
