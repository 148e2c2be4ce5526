"""The losses by their names in configuration files."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, cast

from cmjax.arrays import ApplyFn
from cmjax.configs import did_you_mean, from_json, import_by_name, shown
from cmjax.training.losses.base import FunctionLoss, Loss
from cmjax.training.losses.continuous import (
    ContinuousConsistencyDistillation,
    ContinuousConsistencyTraining,
)
from cmjax.training.losses.denoising import Denoising
from cmjax.training.losses.discrete import (
    ConsistencyDistillation,
    ConsistencyTraining,
)
from cmjax.training.losses.distribution_matching import DistributionMatching
from cmjax.training.losses.flow_matching import FlowMatching
from cmjax.training.losses.improved import (
    EasyConsistencyTuning,
    ImprovedConsistencyTraining,
)
from cmjax.training.losses.improved_mean_flow import ImprovedMeanFlow
from cmjax.training.losses.mean_flow import MeanFlow
from cmjax.training.losses.metrics import metric_from_options
from cmjax.training.losses.moment_matching import InductiveMomentMatching
from cmjax.training.losses.progressive import ProgressiveDistillation
from cmjax.training.losses.shortcut import Shortcut
from cmjax.training.losses.simplified import (
    SimplifiedConsistencyDistillation,
    SimplifiedConsistencyTraining,
)
from cmjax.training.losses.trajectory import ConsistencyTrajectory

# `Adversarial` is missing: its discriminator is a function, which a file cannot give.
LOSSES: dict[str, type[Loss]] = {
    "denoising": Denoising,
    "progressive": ProgressiveDistillation,
    "cd": ConsistencyDistillation,
    "ct": ConsistencyTraining,
    "ict": ImprovedConsistencyTraining,
    "ect": EasyConsistencyTuning,
    "scd": SimplifiedConsistencyDistillation,
    "sct": SimplifiedConsistencyTraining,
    "continuous_cd": ContinuousConsistencyDistillation,
    "continuous_ct": ContinuousConsistencyTraining,
    "flow_matching": FlowMatching,
    "mean_flow": MeanFlow,
    "imf": ImprovedMeanFlow,
    "shortcut": Shortcut,
    "imm": InductiveMomentMatching,
    "ctm": ConsistencyTrajectory,
    "dmd": DistributionMatching,
}
# Fields that the run fills in, for the losses that have them, and where a configuration gives them.
FROM_THE_RUN = {
    "scheduler": "[scheduler]",
    "total_steps": "run.steps",
    "teacher_fn": "[teacher]",
}


def find_loss(name: str) -> Callable[..., Any]:
    """Returns the class of a loss: one of `LOSSES`, or your own by "package.module:Class".

    A name with a colon may also be that of a plain function with the signature of `Loss.__call__`.
    Its module is imported, which runs it: the name must come from the user, never from a
    downloaded file.

    Raises:
        ValueError: for an unknown name, with the closest one, or one that cannot be imported.
    """
    # TOML may hold a number or a list here, which `in` could not look up.
    is_name = isinstance(name, str)
    if is_name and name in LOSSES:
        return LOSSES[name]
    if not is_name or ":" not in name:
        raise ValueError(f"there is no loss {name!r}{did_you_mean(name, list(LOSSES))}")

    # One of the user's own.
    found = import_by_name(name, "loss")
    if isinstance(found, type):
        usable = issubclass(found, Loss) and dataclasses.is_dataclass(found)
        if not usable or inspect.isabstract(found):
            raise ValueError(
                f"the loss {name!r} must be a dataclass derived from Loss, with a __call__"
            )
    if not callable(found):
        raise ValueError(
            f"the loss {name!r} must be a class or a function, got {shown(found)}"
        )
    return found


def make(
    name: str,
    scheduler: Any,
    *,
    total_steps: int,
    teacher_fn: ApplyFn | None = None,
    **options: Any,
) -> Loss:
    """Returns a loss by name, as a configuration file describes it.

    Args:
        name: one of `LOSSES`, or "package.module:Class" for one of your own.
        scheduler: the scheduler that the network is trained for.
        total_steps: length of the run; losses without a curriculum do not use it.
        teacher_fn: the teacher's network; losses without a teacher do not use it.
        **options: fields of the loss. The metric may be "l1", "l2" or "pseudo_huber", the last
            with `huber_c`.

    Raises:
        ValueError: for an unknown name or option, or a value outside its domain.
    """
    cls = find_loss(name)

    # A function has no fields, so there is nothing that options could set.
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        if options:
            raise ValueError(
                f"the loss {name!r} is a function without options, got {options}"
            )
        return FunctionLoss(cls)

    # The metric by name; the constant of the Huber metric is a key of its own.
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if "metric" in fields and {"metric", "huber_c"} & options.keys():
        given = {key: options.pop(key) for key in ("metric", "huber_c") if key in options}
        options["metric"] = metric_from_options(fields["metric"].default, **given)

    # The fields of `FROM_THE_RUN` come last: options cannot set them.
    from_the_run = {
        "scheduler": scheduler,
        "total_steps": total_steps,
        "teacher_fn": teacher_fn,
    }
    options |= {key: value for key, value in from_the_run.items() if key in fields}
    return from_json(cast(Any, cls), options)
