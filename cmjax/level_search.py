"""A search for the noise levels of a multistep run (Song et al. 2023, section 6 and appendix C)."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cmjax.arrays import known_reals
from cmjax.configs import is_finite, positive_int, shown

# The golden section: a bracket keeps this fraction of its length in each trial.
GOLDEN = (math.sqrt(5) - 1) / 2


class Trial(NamedTuple):
    """One evaluation of the objective.

    Attributes:
        sigmas: the levels, descending.
        score: the value of the objective there.
    """

    sigmas: tuple[float, ...]
    score: float


class SigmaSearch(NamedTuple):
    """The end of a search.

    Attributes:
        sigmas: the levels of the lowest score.
        score: that score.
        trials: every evaluation, in order; the first is that of the levels it began with.
    """

    sigmas: tuple[float, ...]
    score: float
    trials: tuple[Trial, ...]


class _BudgetSpent(Exception):
    """No evaluation is left, which is the end of a search and no error."""


def search_sigmas(
    objective: Callable[[tuple[float, ...]], Any],
    sigmas: Sequence[float],
    *,
    num_trials: int = 30,
    lowest: float = 0.002,
    tolerance: float = 0.02,
    trials: Iterable[Trial] = (),
) -> SigmaSearch:
    """Searches for the noise levels, after the first, whose samples are best by an objective.

    Song et al. 2023 choose the levels of multistep sampling one after the other, each by a ternary
    search between its neighbours. This is the same search by golden sections, which needs half as
    many evaluations. It goes through the levels until none of them gains. If the objective has
    several minima between two neighbours, it finds one of them; the result is never worse than the
    levels that it began with.

    It is a pure function: from the same arguments it tries the same levels. One that was cut short
    continues where it stopped, if it is given the `trials` made so far.

    Example:
        >>> from cmjax.evaluation import search_sigmas
        >>> def objective(sigmas):
        ...     return (sigmas[1] - 0.7) ** 2
        >>> found = search_sigmas(objective, (80.0, 5.0))
        >>> abs(found.sigmas[1] - 0.7) < 0.02
        True

    Args:
        objective: maps levels to a number, the lower the better, such as the Fréchet distance of
            samples made there. Draw them with the same keys each time: the levels are then
            compared by the same noise.
        sigmas: the levels to begin with, at least two, descending. The first is kept.
        num_trials: number of evaluations, those in `trials` included.
        lowest: the lowest level to try.
        tolerance: a level is searched until it is known up to this fraction.
        trials: of an earlier call. Levels among them are not evaluated again.

    Returns:
        The best levels, their score, and all evaluations.

    Raises:
        ValueError: for an argument outside its domain, or an objective that is not finite.
    """
    start = _parse_sigmas(sigmas, lowest)
    if not callable(objective):
        raise ValueError(f"objective must be a function of levels, got {shown(objective)}")
    num_trials = positive_int("num_trials", num_trials, 1_000_000)
    if not is_finite(tolerance) or not 1e-4 <= tolerance <= 1:
        raise ValueError(f"tolerance must be from 1e-4 to 1, got {shown(tolerance)}")

    known = _parse_trials(trials)

    # The scores by levels, in the order in which they are asked for: no levels count twice.
    scores: dict[tuple[float, ...], float] = {}

    def score(levels):
        if levels in scores:
            return scores[levels]
        if len(scores) == num_trials:
            raise _BudgetSpent
        value = known.get(levels)
        if value is None:
            value = _evaluate(objective, levels)
        scores[levels] = value
        return value

    def best_so_far():
        return min(scores, key=scores.__getitem__)

    # Sweeps over all levels but the first, until one gains nothing.
    best = start
    try:
        before = math.inf
        while score(best) < before:
            before = score(best)
            for i in range(1, len(start)):
                _search_level(score, best, i, lowest, tolerance)
                best = best_so_far()
    except _BudgetSpent:
        best = best_so_far()
    evaluated = tuple(Trial(levels, value) for levels, value in scores.items())
    return SigmaSearch(best, scores[best], evaluated)


def _search_level(score, sigmas, i, lowest, tolerance):
    """Tries values of level i between its neighbours, by golden sections of its logarithm.

    It returns nothing: `score` remembers the levels that it was asked for.
    """
    below = sigmas[i + 1] if i + 1 < len(sigmas) else lowest

    def score_at(position):
        return score((*sigmas[:i], math.exp(position), *sigmas[i + 1 :]))

    # Levels must differ: the ends of the bracket are a tolerance away from the neighbours.
    low = math.log(below) + tolerance
    high = math.log(sigmas[i - 1]) - tolerance

    # Of a bracket's two golden sections one is a golden section of what is left of it.
    left = high - GOLDEN * (high - low)
    right = low + GOLDEN * (high - low)
    while high - low > tolerance:
        if score_at(left) <= score_at(right):
            high, right = right, left
            left = high - GOLDEN * (high - low)
        else:
            low, left = left, right
            right = low + GOLDEN * (high - low)


def _evaluate(objective, levels):
    """The objective's value as a float; raises ValueError unless it is a finite number."""
    value = np.asarray(objective(levels))
    if value.size != 1 or not is_finite(value.item()):
        raise ValueError(
            f"objective must return a finite number, got {shown(value)} at sigmas={levels}; "
            "where samples fail return one that is larger than all others"
        )
    return float(value.item())


def _parse_trials(trials):
    """Earlier evaluations as a dict from levels to scores."""
    try:
        known = {tuple(map(float, levels)): float(score) for levels, score in trials}
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            "trials must be pairs of levels and a score, as in the trials of an earlier "
            f"search, got {shown(trials)}"
        ) from None

    # NaN is not less than any other score, and would end the search.
    for levels, score in known.items():
        if not is_finite(score):
            raise ValueError(
                f"trials must have finite scores, got {score} at sigmas={levels}; leave it out"
            )
    return known


def _parse_sigmas(sigmas, lowest):
    """The levels to begin with as floats; raises ValueError unless they descend above `lowest`."""
    if not is_finite(lowest) or lowest <= 0:
        raise ValueError(f"lowest must be a positive number, got {shown(lowest)}")
    values = known_reals("sigmas", sigmas)
    if values is None:
        raise ValueError("sigmas must be numbers that are known; search outside of jax.jit")
    values = values.astype(np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.all(np.isfinite(values)):
        raise ValueError(
            f"sigmas must be at least two levels, of which the first is kept, got {shown(sigmas)}"
        )
    if np.any(np.diff(values) >= 0) or values[-1] < lowest:
        raise ValueError(
            f"sigmas must descend and be at least lowest={lowest}, got {shown(sigmas)}"
        )
    return tuple(float(value) for value in values)
