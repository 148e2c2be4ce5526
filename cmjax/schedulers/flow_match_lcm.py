"""Consistency sampling of distilled flow-matching models, such as FLUX and SD3."""

import dataclasses

import jax

from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.flow_match import FlowMatchScheduler
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.weights import Weights

_UPSCALE_MODES = ("nearest", "linear", "bilinear", "trilinear", "area", "nearest-exact")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class FlowMatchLCMScheduler(FlowMatchScheduler):
    """Consistency sampling of flow-matching models: `x' = (1 - sigma') x0 + sigma' z`.

    The network is told `N sigma`, or inverted `N (1 - sigma)`. `set_timesteps` takes as
    `num_inference_steps` a number of levels, equally spaced before they are shifted; as `timesteps`
    N times the levels before the shift; as `sigmas` the levels before the shift, in (0, 1].

    Attributes:
        num_train_timesteps: number N, the scale of the network's time.
        shift: how far the levels are moved towards noise (Esser et al. 2024, equation 23); 1 is not
            at all. Without effect where shifting is dynamic.
        use_dynamic_shifting: take the shift from the argument `mu` of `set_timesteps`.
        base_shift: mu for images of `base_image_seq_len` tokens (see `mu_of`).
        max_shift: mu for images of `max_image_seq_len` tokens.
        base_image_seq_len: a number of tokens.
        max_image_seq_len: another number of tokens.
        invert_sigmas: whether the network's time grows with the signal instead (Mochi).
        shift_terminal: stretch the shifted levels so that this is the lowest; None leaves them.
        use_karras_sigmas: levels of Karras et al. 2022, equation 5, with the same ends.
        use_exponential_sigmas: levels in equal steps of log sigma, with the same ends.
        use_beta_sigmas: levels at quantiles of a beta distribution, with the same ends.
        time_shift_type: the dynamic shift is "exponential", exp(mu), or "linear", mu itself.

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
