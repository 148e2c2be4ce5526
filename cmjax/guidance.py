"""Guidance: functions from a network to a network, which every sampler takes unchanged."""

from cmjax.arrays import ApplyFn, combine


def autoguidance(apply_fn: ApplyFn, scale: float) -> ApplyFn:
    """Returns a network guided by a weaker version of itself (Karras et al. 2024, arXiv 2406.02507).

    Denoised images are linear in the network's output, so it is the output that is extrapolated:
    `weaker + scale (output - weaker)`.

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        scale: 1 is the network alone; more moves its output away from the weaker one's.

    Returns:
        `((params, weaker_params), x, t, **cond) -> model_output`.
    """

    def guided(params, *args, **cond):
        params, weaker_params = params
        output = apply_fn(params, *args, **cond)
        weaker = apply_fn(weaker_params, *args, **cond)
        return combine((scale, output), (1 - scale, weaker))

    return guided
