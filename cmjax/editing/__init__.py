"""Zero-shot editing (Song et al. 2023, appendix D).

Editing is sampling under a constraint, or from a start other than noise. `edit` has two methods:
Algorithm 4 of the paper, and samples of p(x0 | known). The functions of `cmjax.constraints` can
also be imported from here.
"""

from cmjax.constraints import (
    REC601,
    Constraint,
    colorize,
    compose,
    inpaint,
    observe,
    super_resolve,
)
from cmjax.editing.constrained import edit, editing_timesteps
from cmjax.editing.noise_projection import PosteriorStep
from cmjax.editing.one_call import denoise, interpolate, slerp
from cmjax.editing.strokes import STROKE_SIGMAS, restore, stroke_to_image

__all__ = [
    "REC601",
    "STROKE_SIGMAS",
    "Constraint",
    "PosteriorStep",
    "colorize",
    "compose",
    "denoise",
    "edit",
    "editing_timesteps",
    "inpaint",
    "interpolate",
    "observe",
    "restore",
    "slerp",
    "stroke_to_image",
    "super_resolve",
]
