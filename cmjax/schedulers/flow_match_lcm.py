"""Consistency sampling of distilled flow-matching models, such as FLUX and SD3."""

import dataclasses

import jax

from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.flow_match import FlowMatchScheduler
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.weights import Weights

_UPSCALE_MODES = ("nearest", "linear", "bilinear", "trilinear", "area", "nearest-exact")


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class FlowMatchLCMScheduler(FlowMatchScheduler):
    """Consistency sampling of flow-matching models: `x' = (1 - sigma') x0 + sigma' z`.

    The network's time input is `N sigma`, or inverted `N (1 - sigma)`. `set_timesteps` takes as
    `num_inference_steps` a number of levels, equally spaced before they are shifted; as `timesteps`
    N times the levels before the shift; as `sigmas` the levels before the shift, in (0, 1].

    Raises:
        ValueError: for values outside their domain.
    """

    facts = FlowMatchScheduler.facts.replace(noise="yes", paper="Luo et al. 2023")
    _file_options = {
        # Images that grow between steps.
        "upscale_mode": FileOption("bicubic", values=_UPSCALE_MODES),
        "scale_factors": FileOption(
            None,
            hint="the samples of a run have one size; call sample() per size, with init=",
        ),
    }

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of `x' = (1 - sigma') x0 + sigma' z`."""
        return Weights(x0=levels.alphas[1:], eps=0.0, noise=levels.sigmas[1:])
