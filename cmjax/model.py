"""A network with its parameters and the sampler it was trained for."""

import dataclasses
from typing import Any, Self

import jax

from cmjax.arrays import ApplyFn
from cmjax.parametrization import adapt, consistency_function, edm_denoiser
from cmjax.schedulers import Scheduler


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """A network with its parameters, and the sampler it was trained for. A pytree whose leaves are `params`.

    Attributes:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        params: of the network.
        scheduler: that the network is for.
        config: the network's config dataclass.
        trained_for: None, or where the network is adapted to `scheduler` the one that it was trained for.
    """

    apply_fn: ApplyFn = dataclasses.field(metadata={"static": True})
    params: Any
    scheduler: Scheduler = dataclasses.field(metadata={"static": True})
    config: Any = dataclasses.field(metadata={"static": True})
    trained_for: Scheduler | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one sample."""
        return (self.config.sample_size, self.config.sample_size, self.config.out_channels)

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None for an unconditional model."""
        return self.config.num_class_embeds

    def with_scheduler(self, scheduler: Scheduler) -> Self:
        """Returns the model to be sampled with another scheduler, its network adapted to it.

        A network of consistency models is taken for a denoiser by the solvers of the probability-flow ODE.

        Args:
            scheduler: of the kind the model was trained for, or any for a model of CMStochasticIterativeScheduler.

        Raises:
            ValueError: if the network cannot be adapted to the scheduler.
        """
        if type(scheduler) is type(self.scheduler):
            return dataclasses.replace(self, scheduler=scheduler)
        denoiser = edm_denoiser if scheduler.solves_ode else consistency_function
        apply_fn = adapt(self.apply_fn, self.scheduler, scheduler, denoiser)
        return dataclasses.replace(
            self, apply_fn=apply_fn, scheduler=scheduler, trained_for=self.scheduler
        )
