"""Denoising score matching, which trains teachers and the networks that ECT starts from."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from cmjax import random
from cmjax.parametrization import edm_denoiser
from cmjax.schedulers.heun import EDMHeunScheduler
from cmjax.training.losses.base import Loss, Preview
from cmjax.training.losses.batches import split_batch
from cmjax.training.losses.checks import check_sigma_data
from cmjax.training.losses.draws import DRAW_DOMAINS, add_noise, draw_sigmas
from cmjax.training.losses.metrics import mean_square
from cmjax.training.losses.weighting import edm_weight


@dataclasses.dataclass(frozen=True)
class Denoising(Loss):
    """EDM's denoising loss, weighted to unit output scale (Karras et al. 2022, equation 8).

    `(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 |D(x0 + sigma z, sigma) - x0|^2`. With an
    `SCMScheduler` this is TrigFlow's `|sigma_data F - dx/dt|^2 / sigma_data^2` (Lu and Song 2024,
    equation 3).

    Attributes:
        scheduler: gives the network's parametrization and the range of noise levels.
        p_mean: mean of log sigma, P_mean of table 1.
        p_std: standard deviation of log sigma, P_std of table 1.
        uniform_fraction: fraction of the noise levels that are drawn uniformly along the Karras
            grid instead; see `draw_sigmas`. 0 in the paper.

    Raises:
        ValueError: for values outside their domain.
    """

    scheduler: Any
    p_mean: float = -1.2
    p_std: float = 1.2
    uniform_fraction: float = 0.0

    _domains = DRAW_DOMAINS

    def __post_init__(self):
        super().__post_init__()
        check_sigma_data(self.scheduler)

    @property
    def preview(self) -> Preview:
        """Heun's method in 18 steps, the paper's sampler for CIFAR-10."""
        # A denoiser is no consistency model: its single calls are blurred means of images.
        return Preview((18,), EDMHeunScheduler)

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss; `frozen` and `step` are not used."""
        del frozen, step
        data, cond = split_batch(batch)

        # Noisy samples x0 + sigma z, `[B, ...]`, each at a level of its own.
        level_key, noise_key = random.split(key)
        sigma = draw_sigmas(
            level_key,
            data.shape[0],
            self.scheduler,
            self.p_mean,
            self.p_std,
            self.uniform_fraction,
        )
        noisy = add_noise(data, sigma, random.normal(noise_key, data.shape))

        # D(x0 + sigma z, sigma) - x0. The denoiser has no boundary condition: D is not the
        # identity at sigma_min, as a consistency function is.
        error = edm_denoiser(apply_fn, params, self.scheduler, noisy, sigma, **cond) - data

        weight = edm_weight(sigma, self.scheduler.sigma_data)
        loss = jnp.mean(weight * mean_square(error))
        return loss, {"loss": loss}
