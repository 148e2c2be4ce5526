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
from cmjax.version import __version__

__all__ = [
    "CMStochasticIterativeScheduler",
    "Model",
    "Scheduler",
    "SchedulerState",
    "StepOutput",
    "__version__",
    "from_linen",
    "from_nnx",
    "load",
    "sample",
    "save",
    "scheduler_from_config",
]
