"""What a checkpoint holds."""

import dataclasses
from typing import Any

import jax

from cmjax.models.adapters import ApplyFn
from cmjax.schedulers.base import Scheduler


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """A network with its parameters, and the sampler it was trained for. A pytree whose leaves are `params`."""

    apply_fn: ApplyFn = dataclasses.field(metadata={"static": True})
    params: Any
    scheduler: Scheduler = dataclasses.field(metadata={"static": True})
    config: Any = dataclasses.field(metadata={"static": True})  # a network's config dataclass

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one sample."""
        return (self.config.sample_size, self.config.sample_size, self.config.out_channels)

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None for an unconditional model."""
        return self.config.num_class_embeds
