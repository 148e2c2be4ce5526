"""Guidance: functions that turn a network into a guided network, for any sampler.

A guided network is called twice, for what is wanted and for what is to be avoided, and its output
is moved from the second towards the first and beyond. The papers do so with the denoised samples.
At each level these are one affine function of the output, whatever the network predicts (noise, x0,
v, a flow's velocity), and so the outputs themselves can be extrapolated.

It acts on denoisers and velocities. A consistency function says where an ODE ends; to extrapolate
ends is not to follow the guided ODE, and throws samples far from the data. `cmjax.sample` refuses
it in one call, and warns in several.

Networks that learned to be guided take the scale as an input, like the class: `embedded_scale`.
"""

from cmjax.guidance.embedded import embedded_scale
from cmjax.guidance.guided import adaptive_projection, autoguidance, classifier_free
from cmjax.guidance.strength import Scale

__all__ = [
    "Scale",
    "adaptive_projection",
    "autoguidance",
    "classifier_free",
    "embedded_scale",
]
