"""The small distilled autoencoder (Bohan's TAESD, diffusers' `AutoencoderTiny`), in Flax NNX.

Source: https://github.com/madebyollin/taesd. It encodes to and decodes from the latents of a larger
autoencoder, as samplers have them. Layers have the numbers that diffusers' `Sequential` gives them.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.configs import check_options
from cmjax.models import layers, resampling
from cmjax.models.latent_scaling import LARGEST_FACTOR, SMALLEST_FACTOR, check_factors

LATENTS_BOUND = 3.0  # the decoder takes 3 tanh(z / 3), which bounds its latents z


@dataclasses.dataclass(frozen=True)
class AutoencoderTinyConfig:
    """The configuration of an `AutoencoderTiny`; fields and defaults are those of diffusers.

    Attributes:
        in_channels: channels of the images that are encoded.
        out_channels: channels of the images that are decoded.
        encoder_block_out_channels: channels at each resolution of the encoder, all the same.
        decoder_block_out_channels: channels at each resolution of the decoder, all the same.
        latent_channels: channels of the latents.
        num_encoder_blocks: residual blocks at each resolution of the encoder, the highest first.
        num_decoder_blocks: residual blocks at each resolution of the decoder, the lowest first.
        latent_magnitude: with `latent_shift`, how latents are stored as bytes; not used here.
        latent_shift: see `latent_magnitude`.
        scaling_factor: what samplers see is `(latents - shift_factor) * scaling_factor`.
        shift_factor: see `scaling_factor`.
        force_upcast: whether float16 is computed in float32.
    """

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    latent_channels: int = 4
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_magnitude: float = 3.0
    latent_shift: float = 0.5
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    force_upcast: bool = False

    _domains = {
        "in_channels": (1, 65536),
        "out_channels": (1, 65536),
        "encoder_block_out_channels": (1, 65536),
        "decoder_block_out_channels": (1, 65536),
        "latent_channels": (1, 65536),
        "num_encoder_blocks": (0, 64),
        "num_decoder_blocks": (0, 64),
        "latent_magnitude": (-LARGEST_FACTOR, LARGEST_FACTOR),
        "latent_shift": (-LARGEST_FACTOR, LARGEST_FACTOR),
        "scaling_factor": (SMALLEST_FACTOR, LARGEST_FACTOR),
        "shift_factor": (-LARGEST_FACTOR, LARGEST_FACTOR),
    }

    def __post_init__(self):
        check_options(self)
        check_factors(self)
        for part in ("encoder", "decoder"):
            widths = getattr(self, f"{part}_block_out_channels")
            blocks = getattr(self, f"num_{part}_blocks")
            if not 1 <= len(widths) == len(blocks) <= 64:
                raise ValueError(
                    f"{part}_block_out_channels and num_{part}_blocks must have one entry per "
                    f"resolution, 1 to 64, got {len(widths)} and {len(blocks)}"
                )

            # diffusers' network takes one number of channels only: no layer would change it.
            if len(set(widths)) > 1:
                raise ValueError(
                    f"{part}_block_out_channels must be all the same, got {widths}"
                )
        if len(self.num_encoder_blocks) != len(self.num_decoder_blocks):
            raise ValueError(
                f"num_encoder_blocks and num_decoder_blocks must be of the same length, got "
                f"{len(self.num_encoder_blocks)} and {len(self.num_decoder_blocks)}"
            )

    @property
    def stride(self) -> int:
        """Pixels of an image per pixel of its latents, in height and in width."""
        return 2 ** (len(self.num_encoder_blocks) - 1)

    @property
    def num_blocks(self) -> int:
        """Number of residual blocks of the encoder and the decoder."""
        return sum(self.num_encoder_blocks) + sum(self.num_decoder_blocks)


class AutoencoderTiny(nnx.Module):
    """An encoder and a decoder of convolutions alone.

    Latents are the network's own here; `cmjax.Autoencoder` scales them for samplers.
    """

    def __init__(self, config: AutoencoderTinyConfig, *, rngs: nnx.Rngs):
        """Makes the network with float32 parameters drawn from `rngs`."""
        self.config = config
        self.encoder = _Layers(_encoder_layers(config, rngs))
        self.decoder = _Layers(_decoder_layers(config, rngs))

    def encode(self, images: jax.Array) -> jax.Array:
        """Maps images in [-1, 1], `[B, H, W, in_channels]`, to latents `[B, h, w, c]`."""
        return self.encoder((images + 1) / 2)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Maps latents `[B, h, w, latent_channels]` to images `[B, H, W, out_channels]`."""
        bounded = jnp.tanh(latents / LATENTS_BOUND) * LATENTS_BOUND
        return 2 * self.decoder(bounded) - 1

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encodes images and decodes their latents."""
        return self.decode(self.encode(images))


class _Layers(nnx.Module):
    """Layers in a row."""

    def __init__(self, made):
        self.layers = nnx.List(made)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def _encoder_layers(config, rngs):
    """Returns the layers of the encoder: residual blocks, with halvings between resolutions."""
    channels = config.encoder_block_out_channels[0]
    made = [layers.conv(config.in_channels, channels, rngs=rngs)]
    for i, blocks in enumerate(config.num_encoder_blocks):
        if i > 0:
            made.append(
                layers.conv(channels, channels, strides=2, use_bias=False, rngs=rngs)
            )
        made += [_Block(channels, rngs=rngs) for _ in range(blocks)]
    return [*made, layers.conv(channels, config.latent_channels, rngs=rngs)]


def _decoder_layers(config, rngs):
    """Returns the layers of the decoder, those without parameters too: they count."""
    channels = config.decoder_block_out_channels[0]
    made = [layers.conv(config.latent_channels, channels, rngs=rngs), _Relu()]
    for blocks in config.num_decoder_blocks[:-1]:
        made += [_Block(channels, rngs=rngs) for _ in range(blocks)]
        made += [_Double(), layers.conv(channels, channels, use_bias=False, rngs=rngs)]
    made += [_Block(channels, rngs=rngs) for _ in range(config.num_decoder_blocks[-1])]
    return [*made, layers.conv(channels, config.out_channels, rngs=rngs)]


class _Block(nnx.Module):
    """Three convolutions with rectifiers, and a residual."""

    def __init__(self, channels, *, rngs):
        convs = [layers.conv(channels, channels, rngs=rngs) for _ in range(3)]
        self.conv = nnx.List([convs[0], _Relu(), convs[1], _Relu(), convs[2]])

    def __call__(self, x):
        h = x
        for layer in self.conv:
            h = layer(h)
        return jax.nn.relu(h + x)


class _Relu(nnx.Module):
    """A rectifier."""

    def __call__(self, x):
        return jax.nn.relu(x)


class _Double(nnx.Module):
    """A doubling of height and width."""

    def __call__(self, x):
        return resampling.double(x)
