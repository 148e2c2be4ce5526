"""Samplers, one algorithm a file. A new one is a file and a line in `SCHEDULERS`."""

from collections.abc import Mapping
from typing import Any

from cmjax.configs import did_you_mean
from cmjax.schedulers.base import Scheduler, SchedulerState, StepOutput
from cmjax.schedulers.consistency import CMStochasticIterativeScheduler

SCHEDULERS: dict[str, type[Scheduler]] = {
    "CMStochasticIterativeScheduler": CMStochasticIterativeScheduler,
}


def scheduler_from_config(config: Mapping[str, Any]) -> Scheduler:
    """Builds any registered scheduler from a config dict.

    Args:
        config: `scheduler.to_config()`, or the content of a diffusers `scheduler_config.json`.

    Raises:
        ValueError: if `_class_name` is missing or unknown, or an option is unknown or out of its domain.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise ValueError(f"config['_class_name'] is {name!r}{did_you_mean(name, list(SCHEDULERS))}")
    return SCHEDULERS[name].from_config(config)


__all__ = [
    "SCHEDULERS",
    "CMStochasticIterativeScheduler",
    "Scheduler",
    "SchedulerState",
    "StepOutput",
    "scheduler_from_config",
]
