"""Adversarial training: a second network learns to tell samples from data, the first to deceive it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cmjax.arrays import combine
from cmjax.parametrization import consistency_function
from cmjax.schedulers.levels import karras_sigmas
from cmjax.training.losses.base import Loss, split


class Judged(NamedTuple):
    """Parameters of a network and of its judge: train these, and sample with their `network`."""

    network: Any
    judge: Any


def adversarial_loss(
    judge_fn: Callable[..., jax.Array],
    inner: Loss | None = None,
    *,
    weight: float = 1.0,
    penalty: float = 0.02,
    instance_noise: float = 0.05,
    lowest: float = 0.3,
) -> Loss:
    """Returns a loss over `Judged` parameters that makes single calls of a consistency model look like the data.

    It judges `f(x + sigma z, sigma)`: half of a batch at sigma_max, where one-step sampling starts, the rest at levels
    uniform along the Karras grid from there down to `lowest`. Both networks learn in the same step, each from its
    own terms: the relativistic pairing loss (Jolicoeur-Martineau 2018, arXiv 1807.00734; Huang et al. 2024, arXiv
    2501.05441, equation 2), and for the judge the penalty of its slope at the data (R1, Mescheder et al. 2018, arXiv
    1801.04406, equation 9). Both see noised images (Sønderby et al. 2016, arXiv 1610.04490). Consistency models are
    trained so, together with `inner`, by Kim et al. 2023 (CTM, arXiv 2310.02279, section 3.3).

    Args:
        judge_fn: `(judge, x f32[B, ...], **cond) -> f32[B]`, higher for data.
        inner: a loss of this package to add, such as `consistency_distillation_loss`; None for none. It is handed the
            networks' parameters alone. A recipe around the result says what target it has and whether it distils.
        weight: of the adversarial term beside `inner`.
        penalty: of the judge's slope; R3GAN's gamma.
        instance_noise: standard deviation of the noise that the judge sees everything through, in units of the data.
        lowest: noise level, above the scheduler's sigma_min, below which nothing is judged.

    Returns:
        The loss; its metrics are `loss` (the network's), `judge_loss` and `gap`, the mean of judge(data) -
        judge(samples), which is 0 when the judge is deceived.

    Raises:
        ValueError: when the loss is called with a scheduler whose levels do not hold `lowest`.
    """

    def adversarial(key, apply_fn, params, fixed, batch, step, config):
        sigma_min, sigma_max, rho = config.grid
        if not sigma_min < lowest < sigma_max:
            raise ValueError(
                f"lowest must be a noise level between {sigma_min} and {sigma_max}, got {lowest}"
            )
        data, cond = split(batch)
        inner_key, level_key, noise_key, *blur_keys = jax.random.split(key, 5)
        count = data.shape[0]
        ramp = jnp.where(jnp.arange(count) < count // 2, 0, jax.random.uniform(level_key, (count,)))
        sigma = karras_sigmas(ramp, lowest, sigma_max, rho)
        noisy = combine((1, data), (sigma, jax.random.normal(noise_key, data.shape)))
        made = consistency_function(
            apply_fn, params.network, config.scheduler, noisy, sigma, **cond
        )
        made = jnp.clip(made, -1, 1) if config.scheduler.clip_denoised else made
        real, made = (
            x + instance_noise * jax.random.normal(k, x.shape)
            for x, k in zip((data, made), blur_keys, strict=True)
        )

        def judge(judge_params, x):
            return judge_fn(judge_params, x, **cond)

        still = jax.lax.stop_gradient
        deceiving = jnp.mean(
            jax.nn.softplus(judge(still(params.judge), real) - judge(still(params.judge), made))
        )
        of_real, pull = jax.vjp(lambda x: judge(params.judge, x), real)
        (slope,) = pull(jnp.ones_like(of_real))
        gap = of_real - judge(params.judge, still(made))
        judge_loss = (
            jnp.mean(jax.nn.softplus(-gap)) + penalty / 2 * jnp.sum(jnp.square(slope)) / count
        )

        network_loss = weight * deceiving
        if inner is not None:
            network_loss += inner(
                inner_key, apply_fn, params.network, _networks(fixed), batch, step, config
            )[0]
        metrics = {"loss": network_loss, "judge_loss": judge_loss, "gap": jnp.mean(gap)}
        return network_loss + judge_loss, metrics

    return adversarial


def _networks(fixed):
    """The target's network, or with it the teacher, which has no judge."""
    return fixed.network if isinstance(fixed, Judged) else (fixed[0].network, fixed[1])
