"""The configuration of an `NCSNpp`, and that of the released models."""

import dataclasses

import numpy as np

from cmjax.configs import LARGEST, check_options
from cmjax.labels import check_null_class
from cmjax.models.further_conditions import SECOND_TIMES
from cmjax.models.unet_config import MOST_LAYERS, check_resolutions

MOST_GROUPS = 32  # of a normalisation, which otherwise has 4 channels in each


@dataclasses.dataclass(frozen=True)
class NCSNppConfig:
    """The configuration of an `NCSNpp`; the defaults are OpenAI's models of CIFAR-10.

    Fields are named as in `UNet2DConfig`, where it has them.

    Attributes:
        sample_size: height and width of the images.
        in_channels: channels of the input.
        out_channels: channels of the output.
        base_channels: channels of the first feature map, and a quarter of the features of the
            embedding.
        block_out_channels: channels at each resolution, from the highest one down.
        layers_per_block: residual blocks per resolution on the way down; one more on the way up.
        attention_resolutions: heights of the feature maps that have attention; the lowest
            resolution always has it in its middle.
        smooth_resampling: whether maps are smoothed where they are halved and doubled, by the
            kernel [1, 3, 3, 1]; otherwise pixels are averaged and repeated.
        input_pyramid: whether the input itself is halved too, and added at every resolution; only
            with `smooth_resampling`.
        fourier_time: whether the time is embedded by random frequencies, which are stored with the
            parameters; otherwise by `sinusoidal_embedding`.
        num_class_embeds: number of classes; None for an unconditional model.
        null_class: whether there is one more class, the last, which stands for none of them.
        time_scale: factor on the time before its embedding. The models were trained with
            `log(sigma) / 4`, and the consistency sampler passes `250 log(sigma)`.
        second_time: what a flow map embeds of its second time r: "end" is r itself, "span" the
            length t - r; null for a network that takes one time.
        guidance_embeds: whether the network takes a guidance scale as well.
    """

    sample_size: int = 32
    in_channels: int = 3
    out_channels: int = 3
    base_channels: int = 128
    block_out_channels: tuple[int, ...] = (256, 256, 256)
    layers_per_block: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    smooth_resampling: bool = True
    input_pyramid: bool = True
    fourier_time: bool = True
    num_class_embeds: int | None = None
    null_class: bool = False
    time_scale: float = 0.001
    second_time: str | None = None
    guidance_embeds: bool = False

    _domains = {
        "sample_size": (1, 65536),
        "in_channels": (1, 65536),
        "out_channels": (1, 65536),
        "base_channels": (4, 65536),
        "block_out_channels": (4, 65536),
        "layers_per_block": (1, MOST_LAYERS),
        "attention_resolutions": (1, 65536),
        "num_class_embeds": (1, LARGEST),
        "time_scale": (0.0, 1e6),
        "second_time": SECOND_TIMES,
    }

    def __post_init__(self):
        check_options(self)
        check_null_class(self.null_class, self.num_class_embeds)
        check_resolutions(self)
        stride = 2 ** (len(self.block_out_channels) - 1)
        if self.sample_size % stride:
            raise ValueError(
                f"sample_size {self.sample_size} is not a multiple of {stride}, "
                "the network's total stride"
            )
        if self.input_pyramid and not self.smooth_resampling:
            raise ValueError("input_pyramid needs smooth_resampling; leave out both")

        # Normalisations have groups of 4 channels, or 32 of them; also of two maps joined.
        factor = 4
        if 2 * max(self.base_channels, *self.block_out_channels) > 4 * MOST_GROUPS:
            factor = MOST_GROUPS
        for name in ("base_channels", "block_out_channels"):
            widths = getattr(self, name)
            if np.any(np.asarray(widths) % factor):
                raise ValueError(
                    f"{name} must be a multiple of {factor} in a network of this width, "
                    f"got {widths}"
                )

    @property
    def num_blocks(self) -> int:
        """Number of residual blocks."""
        return len(self.block_out_channels) * (2 * self.layers_per_block + 3)

    @property
    def time_features(self) -> int:
        """Number of features of the embedding of time and class."""
        return 4 * self.base_channels

    @property
    def float32_parameters(self) -> tuple[str, ...]:
        """Names of the parameters that are kept in float32: the frequencies of the time."""
        return ("time_frequencies",) if self.fourier_time else ()

    def has_attention(self, level: int) -> bool:
        """Whether the residual blocks of a resolution, 0 being the highest, have attention."""
        return self.sample_size // 2**level in self.attention_resolutions


# The models of openai/consistency_models_cifar10 are all of one size.
NCSNPP_PRESETS = {"cifar10": NCSNppConfig()}
