"""Few-step generation for JAX: consistency models as small pure functions."""

from cmjax.checkpoints import load, save
from cmjax.model import Model
from cmjax.models.adapters import from_linen, from_nnx
from cmjax.sampling import sample
from cmjax.schedulers import (
    CMStochasticIterativeScheduler,
    Scheduler,
    SchedulerState,
    StepOutput,
    scheduler_from_config,
)

__version__ = "0.1.0"

__all__ = [
    "CMStochasticIterativeScheduler",
    "Model",
    "Scheduler",
    "SchedulerState",
    "StepOutput",
    "from_linen",
    "from_nnx",
    "load",
    "sample",
    "save",
    "scheduler_from_config",
]
