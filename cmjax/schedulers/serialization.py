"""Lets `jax.export` serialize functions of states, such as the step of a scheduler."""

from typing import Any

from cmjax.schedulers.base import SchedulerState, StepOutput
from cmjax.schedulers.categories import CategoryState
from cmjax.schedulers.registry import name_of_class, scheduler_from_config
from cmjax.schedulers.table import TableState
from cmjax.schedulers.transitions import Transitions
from cmjax.schedulers.vq_diffusion import VQDiffusionScheduler
from cmjax.schedulers.weights import Memory, Weights
from cmjax.serialization import serializable


def _to_config(scheduler: Any) -> dict[str, Any]:
    """The config of the scheduler that made a state, with the name of its class."""
    cls = type(scheduler)
    name = name_of_class(cls)

    # The one scheduler of categories is not among those of `cmjax.sample`.
    if cls is VQDiffusionScheduler:
        name = cls.__name__
    if name is None:
        raise ValueError(
            f"a state of {cls.__name__} cannot be serialized, because the file could not name its "
            "class: register it by cmjax.register, here and where the file is read"
        )
    return {**scheduler.to_config(), "_class_name": name}


def _from_config(config: dict[str, Any]) -> Any:
    """The scheduler of a config."""
    if config["_class_name"] == VQDiffusionScheduler.__name__:
        return VQDiffusionScheduler.from_config(config)
    return scheduler_from_config(config)


serializable(SchedulerState, StepOutput, Memory, Weights, Transitions)
serializable(TableState, CategoryState, to_json=_to_config, from_json=_from_config)
