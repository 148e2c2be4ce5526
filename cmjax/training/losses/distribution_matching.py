"""Distribution matching distillation, DMD (Yin et al. 2023, arXiv 2311.18828; 2024, 2405.14867)."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cmjax import random
from cmjax.arrays import ApplyFn, along_batch, known_reals
from cmjax.configs import shown
from cmjax.meshes import cond_on_any_mesh, fully_sharded_like
from cmjax.parametrization import consistency_function, edm_denoiser
from cmjax.schedulers.levels import karras_sigmas, parse_levels
from cmjax.serialization import serializable
from cmjax.training.losses.base import Frozen, Loss, Preview
from cmjax.training.losses.batches import split_batch
from cmjax.training.losses.checks import check_edm_scheduler, karras_range
from cmjax.training.losses.draws import add_noise
from cmjax.training.losses.dropout import without_dropout
from cmjax.training.losses.frozen_networks import check_frozen, teacher_network
from cmjax.training.losses.metrics import mean_square
from cmjax.training.losses.weighting import edm_weight


class DistributionMatchingParams(NamedTuple):
    """Parameters of the network and of the denoiser of its samples, which are trained together.

    Attributes:
        network: parameters of the network that is distilled.
        fake: parameters of the denoiser that is trained on its samples.
    """

    network: Any
    fake: Any


serializable(DistributionMatchingParams)


@dataclasses.dataclass(frozen=True)
class DistributionMatching(Loss):
    """Distils a teacher so that the samples, and not each single jump, are those of the teacher.

    A sample of the network gets noise, and two denoisers say where it came from: the teacher, which
    knows the data, and a second one, the fake denoiser, which is trained on the network's own
    samples. Their difference is, up to a factor, the gradient of the Kullback-Leibler divergence
    between both distributions, at that noise level. The network's samples move against it
    (2311.18828, equations 7 and 8):

        dx = (fake(x + sigma z, sigma) - teacher(x + sigma z, sigma)) / mean |x - teacher(...)|

    The fake denoiser has the network's architecture and begins with its parameters: begin with
    those of the teacher. It is trained at every step, the network only at the last of `fake_steps`
    (the two time-scale rule of 2405.14867, section 4.2). At the other steps the network's loss and
    gradient are not computed, and are 0; an optimizer with momentum would still move the network.
    That of `make_optimizer`, which `cmjax train` has, holds it until its next turn.

    The network is sampled by its scheduler, as a consistency model. With several levels in `sigmas`
    each sample of the batch takes one of the sampler's calls, and the calls before it make its
    input, without a gradient (2405.14867, section 4.5, "backward simulation"). No data are needed:
    of `batch["data"]` only the shape is used. The papers add a term that does need them, the
    regression of 2311.18828 or the adversarial term of 2405.14867; `Adversarial` with this loss as
    `inner` adds one of the latter kind. Defaults are those of 2405.14867 for ImageNet 64x64.

    `params` are `DistributionMatchingParams`, as `prepare_params` returns them. Metrics are `loss`,
    the network's, which is 0 between its turns, and `fake_loss`.

    Attributes:
        scheduler: samples the network; gives the networks' parametrization and the range of noise
            levels.
        sigmas: levels of the sampler's calls, descending; None for one call, at sigma_max.
        fake_steps: number of steps of the fake denoiser for each of the network.
        margin: the levels at which the distributions are compared are uniform along the Karras
            grid, without this share at both of its ends.
        teacher_fn: the teacher's network, `(teacher, x, t, **cond) -> model_output`, such as a
            guided one; None if it is the student's.

    Raises:
        ValueError: for values outside their domain, or another kind of scheduler.
    """

    scheduler: Any
    sigmas: tuple[float, ...] | None = None
    fake_steps: int = 5
    margin: float = 0.02
    teacher_fn: ApplyFn | None = None

    needs_teacher: ClassVar[bool] = True
    _domains = {"fake_steps": (1, 1_000_000), "margin": (0.0, 0.49)}

    def __post_init__(self):
        super().__post_init__()
        check_edm_scheduler(self.scheduler)

        # It samples the network while it trains, and a solver would sample a denoiser.
        is_solver = getattr(self.scheduler, "solves_ode", False)
        if is_solver or getattr(self.scheduler, "num_times", 1) != 1:
            raise ValueError(
                "scheduler must sample consistency models of one time for this loss, as "
                f"CMStochasticIterativeScheduler does; {type(self.scheduler).__name__} does not"
            )
        if self.sigmas is not None:
            object.__setattr__(self, "sigmas", self._levels())

    def _levels(self):
        """The levels as numbers of Python; raises ValueError unless a sampler can take them."""
        sigma_min, sigma_max, _ = karras_range(self.scheduler)
        values = known_reals("sigmas", self.sigmas)
        if values is None:
            raise ValueError(
                "sigmas must be known when the loss is made, as in (80.0, 2.5), "
                f"got {shown(self.sigmas)}"
            )

        # As samplers check them, in float32. From sigma_min there is nothing to jump over.
        parse_levels("sigmas", values, sigma_min, sigma_max)
        if np.float32(values[-1]) == np.float32(sigma_min):
            raise ValueError(
                f"sigmas must be above sigma_min={sigma_min:g}, where samples are already those of "
                f"the network, got {shown(values.tolist())}"
            )
        return tuple(float(value) for value in values)

    @property
    def preview(self) -> Preview:
        """By the calls that it trains."""
        num_steps = 1 if self.sigmas is None else len(self.sigmas)
        return Preview((num_steps,), sigmas=self.sigmas)

    def prepare_params(self, params: Any) -> DistributionMatchingParams:
        """Returns the network's parameters twice: the fake denoiser begins with them.

        Parameters of both, of an earlier run, are returned as they are.
        """
        if isinstance(params, DistributionMatchingParams):
            return params
        return DistributionMatchingParams(params, params)

    def make_optimizer(
        self, make: Callable[[int], optax.GradientTransformation], num_steps: int
    ) -> optax.GradientTransformation:
        """Returns an optimizer for each network; the network's is called at its turns only.

        Args:
            make: from a number of updates to the optimizer of one of them.
            num_steps: number of training steps.

        Raises:
            ValueError: if the network has no turn in so many steps.
        """
        turns = num_steps // self.fake_steps
        if not turns:
            raise ValueError(
                f"fake_steps must be at most the number of training steps, {num_steps}, got "
                f"{self.fake_steps}: the network is trained at the last of fake_steps"
            )
        network = optax.conditionally_mask(make(turns), self._is_turn)
        return optax.multi_transform(
            {"network": network, "fake": make(num_steps)},
            DistributionMatchingParams("network", "fake"),
        )

    def _is_turn(self, step: Any, **_: Any) -> Any:
        """Whether the network is trained at a step, bool[]: the last of every `fake_steps`."""
        return step % self.fake_steps == self.fake_steps - 1

    def network_params(self, params: DistributionMatchingParams) -> Any:
        """Returns the network's parameters, without the fake denoiser's."""
        return params.network

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the sum of both networks' losses."""
        if not isinstance(params, DistributionMatchingParams):
            raise ValueError(
                "params must be DistributionMatchingParams: pass "
                f"params=loss.prepare_params(params), got {type(params).__name__}"
            )
        check_frozen(frozen)
        data, cond = split_batch(batch)
        call_key, level_key, noise_key, fake_level_key, fake_noise_key = random.split(
            key, 5
        )

        # What one of the sampler's calls sees, and the network's sample of it, `[B, ...]`.
        x, sigma = self.call_inputs(call_key, apply_fn, params.network, data, cond)

        def sampled(network):
            return consistency_function(apply_fn, network, self.scheduler, x, sigma, **cond)

        # The network's turn: its sample has a gradient, and so has the term that it is trained by.
        def matched():
            generated = sampled(params.network)
            loss = self.matching_loss(
                apply_fn,
                params,
                frozen.teacher,
                generated,
                random.normal(noise_key, data.shape),
                self._draw_sigmas(level_key, data.shape[0], self.margin),
                cond,
            )
            return loss, jax.lax.stop_gradient(generated)

        # The other steps need the sample alone.
        def only_sampled():
            return jnp.float32(0), sampled(jax.lax.stop_gradient(params.network))

        loss, generated = cond_on_any_mesh(self._is_turn(step), matched, only_sampled)

        # The fake denoiser's term, on the same samples.
        fake_loss = self.fake_loss(
            apply_fn,
            params,
            generated,
            random.normal(fake_noise_key, data.shape),
            self._draw_sigmas(fake_level_key, data.shape[0], 0.0),
            cond,
        )

        # One sum for one gradient; the metrics tell the two parts from each other.
        return loss + fake_loss, {"loss": loss, "fake_loss": fake_loss}

    def call_inputs(
        self,
        key: jax.Array,
        apply_fn: ApplyFn,
        network: Any,
        data: jax.Array,
        cond: dict[str, Any],
    ) -> tuple[jax.Array, jax.Array]:
        """Returns what one of the sampler's calls sees for each sample: x `[B, ...]`, sigma f32[B].

        The calls before it are made here, as samplers make them: without dropout. They get no
        gradient.

        Args:
            key: draws the sampler's noise, and which call.
            apply_fn: the network, `(params, x, t, **cond) -> model_output`.
            network: its parameters.
            data: of which the shape `[B, ...]` and the dtype are used.
            cond: per-sample conditioning.
        """
        sample_key, call_key = random.split(key)
        apply_fn = without_dropout(apply_fn)
        network = jax.lax.stop_gradient(network)
        sigmas = self.sigmas or (karras_range(self.scheduler).sigma_max,)

        # Each sample takes one of the calls; all are as probable.
        call = random.randint(call_key, (data.shape[0],), 0, len(sigmas))
        state = self.scheduler.set_timesteps(sigmas=sigmas)
        state, x = self.scheduler.init(sample_key, state, data.shape, data.dtype)

        # On a mesh each device makes its share of the samples, although no data enter them.
        x = fully_sharded_like(x, data)
        chosen = x
        for number in range(1, len(sigmas)):
            model_output = self.scheduler.predict(apply_fn, network, state, x, **cond)
            state, (x, _) = self.scheduler.step(sample_key, state, model_output, x)
            is_chosen = along_batch(call == number, x.ndim)
            chosen = jnp.where(is_chosen, x, chosen)
        return chosen, jnp.asarray(sigmas, jnp.float32)[call]

    def _draw_sigmas(self, key, count, margin):
        """Returns noise levels f32[count], uniform along the Karras grid but for its ends."""
        ramp = margin + (1 - 2 * margin) * random.uniform(key, (count,))
        return karras_sigmas(ramp, *karras_range(self.scheduler))

    def matching_loss(
        self,
        apply_fn: ApplyFn,
        params: DistributionMatchingParams,
        teacher: Any,
        generated: jax.Array,
        noise: jax.Array,
        sigma: jax.Array,
        cond: dict[str, Any],
    ) -> jax.Array:
        """Returns half of the mean square of dx, f32[], whose gradient by `generated` is along dx.

        Args:
            apply_fn: the network, `(params, x, t, **cond) -> model_output`.
            params: of which those of the fake denoiser are used, without a gradient.
            teacher: parameters of the teacher.
            generated: samples of the network, `[B, ...]`, with their gradient.
            noise: standard normal, `[B, ...]`.
            sigma: noise levels, f32[B].
            cond: per-sample conditioning.
        """
        apply_fn = without_dropout(apply_fn)
        x = jax.lax.stop_gradient(generated)
        noisy = add_noise(x, sigma, noise)

        # What the teacher and the fake denoiser take the sample to be, `[B, ...]` each.
        teacher_fn = teacher_network(self, apply_fn, params, Frozen(teacher=teacher))
        real = edm_denoiser(teacher_fn, teacher, self.scheduler, noisy, sigma, **cond)
        fake = edm_denoiser(apply_fn, params.fake, self.scheduler, noisy, sigma, **cond)

        # dx (2311.18828, equations 7 and 8), in float32. Without a distance to the teacher's
        # estimate there is nothing to follow.
        x, real, fake = (array.astype(jnp.float32) for array in (x, real, fake))
        distance = jnp.mean(jnp.abs(x - real), axis=tuple(range(1, x.ndim)), keepdims=True)
        is_apart = distance > 0
        dx = jnp.where(is_apart, (fake - real) / jnp.where(is_apart, distance, 1), 0)
        dx = jax.lax.stop_gradient(dx)

        # The gradient of |generated - (x - dx)|^2 / 2 is dx.
        error = generated.astype(jnp.float32) - (x - dx)
        return jnp.mean(mean_square(error)) / 2

    def fake_loss(
        self,
        apply_fn: ApplyFn,
        params: DistributionMatchingParams,
        generated: jax.Array,
        noise: jax.Array,
        sigma: jax.Array,
        cond: dict[str, Any],
    ) -> jax.Array:
        """Returns EDM's weighted error of the fake denoiser on samples of the network, f32[].

        Args:
            apply_fn: the network, `(params, x, t, **cond) -> model_output`.
            params: of which those of the fake denoiser are used.
            generated: samples of the network, `[B, ...]`, which get no gradient.
            noise: standard normal, `[B, ...]`.
            sigma: noise levels, f32[B].
            cond: per-sample conditioning.
        """
        generated = jax.lax.stop_gradient(generated)
        noisy = add_noise(generated, sigma, noise)
        fake = edm_denoiser(apply_fn, params.fake, self.scheduler, noisy, sigma, **cond)
        weight = edm_weight(sigma, self.scheduler.sigma_data)
        return jnp.mean(weight * mean_square(fake - generated))
