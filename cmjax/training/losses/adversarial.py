"""Adversarial training: a discriminator tells samples from data; the network learns to fool it."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cmjax import random
from cmjax.arrays import weighted_sum
from cmjax.configs import is_finite, shown
from cmjax.parametrization import consistency_function
from cmjax.schedulers.levels import karras_sigmas
from cmjax.serialization import serializable
from cmjax.training.losses.base import Frozen, Loss, Preview
from cmjax.training.losses.batches import split_batch
from cmjax.training.losses.checks import check_function, check_sigma_data, karras_range
from cmjax.training.losses.draws import add_noise, rounded_count
from cmjax.training.losses.frozen_networks import check_frozen
from cmjax.training.losses.metrics import per_sample, sum_of_squares
from cmjax.training.losses.trajectory import trajectory_function


class AdversarialParams(NamedTuple):
    """Parameters of the network and of the discriminator, which are trained together.

    Attributes:
        network: parameters of the network, as the inner loss trains them.
        discriminator: parameters of the discriminator.
    """

    network: Any
    discriminator: Any


serializable(AdversarialParams)


@dataclasses.dataclass(frozen=True)
class Adversarial(Loss):
    """Trains a consistency model and a discriminator, which tells its samples from data.

    The discriminator compares data with single network calls, `f(x0 + sigma z, sigma)`, or the
    jumps `G(x0 + sigma z, sigma, sigma_min)` of a consistency trajectory model (`CTMScheduler`): at
    sigma_max, where one-step sampling starts, for half of the batch; for the rest at levels uniform
    along the Karras grid from there down to `lowest_sigma`. Both networks are trained in the same
    step, each by its own terms: the relativistic pairing loss (Jolicoeur-Martineau 2018, arXiv
    1807.00734; Huang et al. 2024, R3GAN, arXiv 2501.05441, equation 2) and, for the discriminator,
    R1, a penalty on its gradient at the data (Mescheder et al. 2018, arXiv 1801.04406, equation 9).
    A little noise is added to all images that the discriminator sees (Sønderby et al. 2016, arXiv
    1610.04490). Kim et al. 2023 (CTM, arXiv 2310.02279, section 3.3) train consistency models in
    this way, on top of another loss: with `ConsistencyTrajectory` as `inner` this is CTM's loss,
    apart from the kind of adversarial loss and its weight, which adapts there.

    `params` are `AdversarialParams`. Metrics are `loss`, the network's; `discriminator_loss`; and
    `gap`, the mean of discriminator(data) - discriminator(samples), which is 0 when the
    discriminator is fooled.

    Attributes:
        scheduler: gives the network's parametrization and the range of noise levels.
        discriminator_fn: `(discriminator, x f32[B, ...], **cond) -> f32[B]`, higher for data.
        inner: a loss to add, such as `ConsistencyDistillation`, for networks of the same scheduler;
            None for none. It uses this loss's teacher and target.
        weight: weight of the network's adversarial term; that of the inner loss is 1.
        gradient_penalty: weight of R1; gamma of R3GAN.
        instance_noise: standard deviation of the noise that is added to the discriminator's images.
        lowest_sigma: lowest noise level whose samples the discriminator sees; above the scheduler's
            sigma_min.

    Raises:
        ValueError: for values outside their domain.
    """

    scheduler: Any
    discriminator_fn: Callable[..., jax.Array]
    inner: Loss | None = None
    weight: float = 1.0
    gradient_penalty: float = 0.02
    instance_noise: float = 0.05
    lowest_sigma: float = 0.3

    _domains = {
        "weight": (0.0, 1e6),
        "gradient_penalty": (0.0, 1e6),
        "instance_noise": (0.0, 1e6),
    }

    def __post_init__(self):
        super().__post_init__()
        check_sigma_data(self.scheduler)
        check_function("discriminator_fn", self.discriminator_fn)
        if self.inner is not None and not isinstance(self.inner, Loss):
            raise ValueError(f"inner must be a Loss or None, got {shown(self.inner)}")
        if not self._reads_alike(getattr(self.inner, "scheduler", self.scheduler)):
            raise ValueError(
                "inner must be a loss for networks of this loss's scheduler, as both train one "
                "network"
            )

        # At sigma_min the consistency function is the identity: there is nothing to learn.
        sigma_min, sigma_max, _ = karras_range(self.scheduler)
        is_number = is_finite(self.lowest_sigma)
        if not is_number or not sigma_min < self.lowest_sigma < sigma_max:
            raise ValueError(
                f"lowest_sigma must be a noise level between {sigma_min} and {sigma_max}, "
                f"got {self.lowest_sigma}"
            )

    def _reads_alike(self, scheduler):
        """Whether a scheduler is for networks of the same meaning."""
        both = (self.scheduler, scheduler)
        meanings = [
            (getattr(each, "parametrization", None), getattr(each, "num_times", 1))
            for each in both
        ]
        return meanings[0] == meanings[1]

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override]  # that of the inner loss
        """Whether the inner loss distils a teacher."""
        return self.inner is not None and self.inner.needs_teacher

    @property
    def preview(self) -> Preview:
        """The inner loss's, or the default without one."""
        return super().preview if self.inner is None else self.inner.preview

    def target_decay_at(self, step):
        """Returns the decay of the inner loss's target, f32[], or None."""
        return None if self.inner is None else self.inner.target_decay_at(step)

    def prepare_params(self, params: AdversarialParams) -> AdversarialParams:
        """Returns the parameters, with any that the inner loss adds to the network's."""
        _check_params("params", params)
        if self.inner is None:
            return params
        return params._replace(network=self.inner.prepare_params(params.network))

    def network_params(self, params: AdversarialParams) -> Any:
        """Returns the network's parameters, without the discriminator's."""
        if self.inner is None:
            return params.network
        return self.inner.network_params(params.network)

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the sum of both networks' losses."""
        _check_params("params", params)
        check_frozen(frozen)
        inner_key, level_key, noise_key, real_key, fake_key = random.split(key, 5)
        data, cond = split_batch(batch)

        # Samples f(x0 + sigma z, sigma) of single calls, `[B, ...]`, clipped as samplers clip: the
        # discriminator must not learn to see values that no user gets.
        sigma = self._draw_sigmas(level_key, data.shape[0])
        noisy = add_noise(data, sigma, random.normal(noise_key, data.shape))
        network = self.network_params(params)
        fake = self._sample(apply_fn, network, noisy, sigma, cond)
        fake = self.scheduler.bound(fake)

        # With noise on both, the two distributions overlap. Otherwise the discriminator may learn
        # to tell them apart perfectly, and its gradient then says little to the network.
        scale = self.instance_noise
        real = weighted_sum((1, data), (scale, random.normal(real_key, data.shape)))
        fake = weighted_sum((1, fake), (scale, random.normal(fake_key, data.shape)))

        # Each network's own terms; `stop_gradient` keeps them from training the other one.
        network_loss = self.weight * self._generator_loss(params, real, fake, cond)
        discriminator_loss, gap = self._discriminator_loss(params, real, fake, cond)

        # The inner loss knows nothing of the discriminator: it gets the network's part of each.
        if self.inner is not None:
            target = frozen.target
            if target is not None:
                _check_params("frozen.target", target)
                target = target.network
            inner_frozen = Frozen(target, frozen.teacher)
            inner_loss, _ = self.inner(
                inner_key, apply_fn, params.network, inner_frozen, batch, step
            )
            network_loss += inner_loss

        # One sum for one gradient; the metrics tell the two parts from each other.
        metrics = {
            "loss": network_loss,
            "discriminator_loss": discriminator_loss,
            "gap": jnp.mean(gap),
        }
        return network_loss + discriminator_loss, metrics

    def _draw_sigmas(self, key, count):
        """Returns noise levels f32[count]: sigma_max for a half, the rest down to lowest_sigma."""
        _, sigma_max, rho = karras_range(self.scheduler)
        ramp_key, count_key = random.split(key)
        is_highest = jnp.arange(count) < rounded_count(count_key, count, 0.5)
        ramp = jnp.where(is_highest, 0, random.uniform(ramp_key, (count,)))
        return karras_sigmas(ramp, self.lowest_sigma, sigma_max, rho)

    def _sample(self, apply_fn, params, noisy, sigma, cond):
        """Returns what a single call makes of noisy samples, `[B, ...]`."""
        if getattr(self.scheduler, "num_times", 1) == 1:
            return consistency_function(
                apply_fn, params, self.scheduler, noisy, sigma, **cond
            )

        # A trajectory model also takes the end of its jump.
        last = jnp.full_like(sigma, karras_range(self.scheduler).sigma_min)
        jump = trajectory_function(apply_fn, self.scheduler)
        return jump(params, noisy, sigma, last, cond)

    def _score(self, discriminator, x, cond):
        """Returns what the discriminator says of each image, f32[B]."""
        scores = self.discriminator_fn(discriminator, x, **cond)
        return per_sample("discriminator_fn", scores, x.shape[0])

    def _generator_loss(self, params, real, fake, cond):
        """Returns the network's adversarial term, which gives the discriminator no gradient."""
        discriminator = jax.lax.stop_gradient(params.discriminator)

        # softplus(D(real) - D(fake)), each sample paired with one image of the data.
        score_real = self._score(discriminator, real, cond)
        score_fake = self._score(discriminator, fake, cond)
        return jnp.mean(jax.nn.softplus(score_real - score_fake))

    def _discriminator_loss(self, params, real, fake, cond):
        """Returns the discriminator's loss and its gap, f32[B]; gives the network no gradient."""
        discriminator = params.discriminator

        # Scores D(real) and D(fake), f32[B]; with `vjp` the gradient at the images costs no second
        # forward pass.
        def scores(x):
            return self._score(discriminator, x, cond)

        score_real, vjp_fn = jax.vjp(scores, real)
        score_fake = scores(jax.lax.stop_gradient(fake))
        gap = score_real - score_fake

        # R1, gamma/2 |grad D(real)|^2, a mean over the batch. As a score depends on its own sample
        # alone, the gradient of the sum of the scores holds that of each of them.
        (slope,) = vjp_fn(jnp.ones_like(score_real))
        penalty = self.gradient_penalty / 2 * jnp.mean(sum_of_squares(slope))

        # softplus(D(fake) - D(real)): the mirror image of the network's term.
        return jnp.mean(jax.nn.softplus(-gap)) + penalty, gap


def _check_params(name, params):
    """Raises ValueError unless the parameters are those of both networks."""
    # This would fail later, at an attribute that the network's own parameters do not have.
    if not isinstance(params, AdversarialParams):
        raise ValueError(
            f"{name} must be losses.AdversarialParams(network, discriminator), "
            f"got {type(params).__name__}"
        )
