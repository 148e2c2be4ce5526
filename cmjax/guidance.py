"""Guidance: functions that turn a network into a guided network, for any sampler."""

from cmjax.arrays import ApplyFn, combine


def autoguidance(apply_fn: ApplyFn, scale: float) -> ApplyFn:
    """Returns a network guided by a weaker version of itself (Karras et al. 2024, 2406.02507).

    The paper extrapolates x0; since x0 is linear in the network's output, extrapolating the output
    is the same: `weaker + scale (output - weaker)`.

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        scale: 1 is the network alone; larger values move its output away from the weaker one's.

    Returns:
        `((params, weaker_params), x, t, **cond) -> model_output`.
    """

    def guided(params, *args, **cond):
        params, weaker_params = params
        output = apply_fn(params, *args, **cond)
        weaker = apply_fn(weaker_params, *args, **cond)

        # weaker + scale (output - weaker), with one coefficient per network.
        return combine((scale, output), (1 - scale, weaker))

    return guided
