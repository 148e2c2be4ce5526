"""Constraints: functions x0 -> x0 that restore the known part of a sample.

`cmjax.sample(..., constrain=...)` applies them, and `cmjax.editing` builds on that. They are
pytrees, so new data of the same shape do not cause recompilation. Their data are per sample,
`[B, ...]`, or the same for all samples, `[...]`.
"""

from cmjax.constraints.composition import Compose, compose
from cmjax.constraints.inpainting import Inpaint, inpaint
from cmjax.constraints.measurements import (
    REC601,
    Observe,
    colorize,
    observe,
    super_resolve,
)
from cmjax.schedulers.base import Constraint

__all__ = [
    "REC601",
    "Compose",
    "Constraint",
    "Inpaint",
    "Observe",
    "colorize",
    "compose",
    "inpaint",
    "observe",
    "super_resolve",
]
