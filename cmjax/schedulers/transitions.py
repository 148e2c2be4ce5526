"""How categories are masked and replaced, and the posterior of a step back (Gu et al. 2022)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Transitions(NamedTuple):
    """Log-probabilities of what becomes of an entry from one time to a higher one (equation 7).

    Attributes:
        keep: f32[] or f32[N], that it keeps its class.
        replace: likewise, that it gets a certain class, which may be its own; the same for all.
        mask: likewise, that it is masked, unless it is masked already.
    """

    keep: jax.Array
    replace: jax.Array
    mask: jax.Array


def check_schedule(scheduler: Any) -> None:
    """Raises ValueError for ends between which probabilities would be negative."""
    alphas = (scheduler.alpha_cum_start, scheduler.alpha_cum_end)
    gammas = (scheduler.gamma_cum_start, scheduler.gamma_cum_end)
    if alphas[1] > alphas[0]:
        raise ValueError(
            f"alpha_cum_end {alphas[1]:g} must be at most alpha_cum_start {alphas[0]:g}"
        )
    if gammas[0] > gammas[1]:
        raise ValueError(
            f"gamma_cum_start {gammas[0]:g} must be at most gamma_cum_end {gammas[1]:g}"
        )

    # What is neither kept nor masked is replaced, and never comes back. Decimal fractions may add
    # up to a little more than 1.
    for end, alpha, gamma in zip(("start", "end"), alphas, gammas, strict=True):
        if alpha + gamma > 1 + 1e-12:
            raise ValueError(
                f"alpha_cum_{end} {alpha:g} and gamma_cum_{end} {gamma:g} must add up to at most 1"
            )
    if alphas[1] * (1 - gammas[0]) > alphas[0] * (1 - gammas[1]) + 1e-12:
        raise ValueError(
            f"gamma_cum_end {gammas[1]:g} leaves more entries unmasked than were replaced before; "
            f"lower alpha_cum_end {alphas[1]:g}"
        )


def transitions_of(scheduler: Any, times: jax.Array) -> tuple[Transitions, Transitions]:
    """Returns `from_data` and `from_next` of a `CategoryState` with the training times i32[N]."""
    classes = scheduler.num_vec_classes - 1
    logs = _cumulative_logs(scheduler)

    # At the times of the run, then at x0, f32[N+1].
    total = scheduler.num_train_timesteps
    places = jnp.append(times, jnp.full(1, total, times.dtype))

    def at_places(log):
        return jnp.asarray(log, jnp.float32)[places]

    from_data = Transitions(
        keep=at_places(logs["keep"]),
        replace=at_places(logs["replace"]),
        mask=at_places(logs["mask"]),
    )

    # The logarithm of a ratio, from each time to the next place, f32[N], is a difference of two.
    # What float32 rounds off of each would be missing in it, and is subtracted as well.
    def log_ratio(log):
        rounded = np.float32(log)
        rest = np.subtract(log, rounded, where=np.isfinite(log), out=np.zeros_like(log))
        return -jnp.diff(at_places(rounded)) - jnp.diff(at_places(rest))

    # From a lower time, alpha and 1 - gamma are ratios, and what is replaced is (1 - gamma) -
    # alpha, as a product without cancellation: (1 - gamma) (1 - alpha / (1 - gamma)).
    stay = log_ratio(logs["stay"])
    replaced_of_stay = jnp.maximum(-jnp.expm1(-log_ratio(logs["excess"])), 0)
    from_next = Transitions(
        keep=log_ratio(logs["keep"]),
        replace=stay + jnp.log(replaced_of_stay / classes),
        mask=jnp.log(-jnp.expm1(stay)),
    )
    return from_data, from_next


def _cumulative_logs(scheduler: Any) -> dict[str, np.ndarray]:
    """Logarithms of equation 7's cumulative probabilities, f64[N+1]: at the N times, then at x0.

    They are those of `Transitions`, with "stay", of not being masked, 1 - gamma; and "excess", of
    (1 - gamma) / alpha, infinite where nothing is kept.
    """
    total = scheduler.num_train_timesteps
    alphas = np.linspace(scheduler.alpha_cum_start, scheduler.alpha_cum_end, total)
    gammas = np.linspace(scheduler.gamma_cum_start, scheduler.gamma_cum_end, total)
    alpha = np.append(alphas, 1.0)
    gamma = np.append(gammas, 0.0)

    # What is left by rounding alone is nothing: as evidence it would count as much as all else.
    replaced = 1 - alpha - gamma
    replaced[replaced < 1e-12] = 0

    # In float64: 1 - gamma would lose what is small.
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = {
            "keep": np.log(alpha),
            "replace": np.log(replaced / (scheduler.num_vec_classes - 1)),
            "mask": np.log(gamma),
            "stay": np.log1p(-gamma),
            "excess": np.log1p(replaced / alpha),
        }
    logs["excess"][alpha == 0] = np.inf
    return logs


def log_posterior(
    here: Transitions,
    below: Transitions,
    between: Transitions,
    sample: jax.Array,
    log_x0: jax.Array,
) -> jax.Array:
    """Returns log p(x_s | x_t) (equations 5 and 11), `[B, ..., K+1]`, the mask's last.

    It is the sum over x0 of `q(x_t | x_s) q(x_s | x0) p(x0) / q(x_t | x0)`.

    Args:
        here: from x0 to the time t of the sample, f32[] each.
        below: from x0 to the lower time s, likewise.
        between: from s to t, likewise.
        sample: x_t, integers `[B, ...]`; K is the mask.
        log_x0: log p(x0), `[B, ..., K]`.
    """
    classes = log_x0.shape[-1]
    same = jax.nn.one_hot(sample, classes, dtype=bool)
    masked = (sample == classes)[..., None]

    # log q(x_t | a class): by keeping or replacing it, or by masking.
    def arrives(transitions):
        kept = _log_add(transitions.keep, transitions.replace)
        unmasked = jnp.where(same, kept, transitions.replace)
        return jnp.where(masked, transitions.mask, unmasked)

    # p(x0) / q(x_t | x0), which is 0 for an x0 that cannot have become x_t.
    evidence = arrives(here)
    possible = evidence > -jnp.inf
    finite_evidence = jnp.where(possible, evidence, 0)
    weights = jnp.where(possible, log_x0 - finite_evidence, -jnp.inf)
    total = jax.nn.logsumexp(weights, axis=-1, keepdims=True)

    # Times q(x_s | x0), summed over x0: of an x_s that is a class, and of one that is masked.
    to_class = _log_add(weights + below.keep, total + below.replace)
    to_mask = total + below.mask

    # Times q(x_t | x_s). A mask stays one, so that only a masked x_t can have been masked before.
    to_class = to_class + arrives(between)
    to_mask = jnp.where(masked, to_mask, -jnp.inf)
    return jnp.concatenate([to_class, to_mask], axis=-1)


def _log_add(first: jax.Array, second: jax.Array) -> jax.Array:
    """log(exp(first) + exp(second)); of two logarithms of 0 without a NaN on the way."""
    largest = jnp.maximum(first, second)
    base = jnp.where(largest > -jnp.inf, largest, 0)
    return base + jnp.log(jnp.exp(first - base) + jnp.exp(second - base))
