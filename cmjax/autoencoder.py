"""`Autoencoder`: from pictures to the latents of a sampler, and back."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.arrays import (
    as_samples,
    at_least_float32,
    check_pixels,
    is_symbolic,
    other_shapes,
)
from cmjax.configs import is_int, shown
from cmjax.meshes import replicated_array, sharded_like, with_automatic_axes
from cmjax.models.latent_scaling import deviation_to_samplers, to_network, to_samplers
from cmjax.models.registry import autoencoder_name, network_parts, sample_shape
from cmjax.random import level_noise, sample_keys
from cmjax.tracing import is_tracing

# Bounds of the log variance, as diffusers' `DiagonalGaussianDistribution` has them.
LOWEST_LOG_VARIANCE = -30.0
HIGHEST_LOG_VARIANCE = 20.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Autoencoder:
    """An encoder of pictures to latents and a decoder; `cmjax.load_autoencoder` makes one.

    A pytree whose leaves are those of `params`. It computes in the dtype of what it is given,
    whatever that of its parameters. All methods can be called under `jax.jit` and the like.

    Attributes:
        config: the config of its network, an `AutoencoderKLConfig` or `AutoencoderTinyConfig`.
        params: the parameters of its network, a pytree of arrays.

    Raises:
        ValueError: if `config` is not the config of an autoencoder.
    """

    config: Any = dataclasses.field(metadata={"static": True})
    params: Any

    def __post_init__(self):
        autoencoder_name(self.config)

    def encode(
        self,
        images: Any,
        key: jax.Array | None = None,
        *,
        first_index: int | jax.Array = 0,
        batch_size: int | None = None,
    ) -> jax.Array:
        """Encodes images to latents as samplers want them: shifted and scaled.

        Args:
            images: `[B, H, W, in_channels]` in [-1, 1]; H and W are multiples of `stride`.
            key: draws the latents from the encoder's normal distribution: one key, from which image
                i gets `fold_in(key, first_index + i)`, or one key per image, `[B]`. None returns
                the mean, which also is the mode. An `AutoencoderTiny` has no such distribution,
                and takes no key.
            first_index: global index of the first image.
            batch_size: number of images at a time, which bounds the memory; None takes all at once.

        Returns:
            Latents `[B, H / stride, W / stride, latent_channels]`, in the dtype of the images.

        Raises:
            ValueError: for images of another shape, bytes, or a key that the network has no use
                for.
        """
        mean, std = self.moments(images, batch_size=batch_size)
        if key is None:
            return mean
        if std is None:
            raise ValueError(
                f"key is of no use: the latents of an {autoencoder_name(self.config)} are not "
                "random; leave it out"
            )
        keys = sample_keys(key, mean.shape[0], first_index)
        return mean + std * level_noise(keys, 0, mean.shape, mean.dtype)

    def moments(
        self, images: Any, *, batch_size: int | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns mean and standard deviation of the latents that images are encoded to.

        Args:
            images: as of `encode`.
            batch_size: as of `encode`.

        Returns:
            The mean and the standard deviation, `[B, H / stride, W / stride, latent_channels]`
            each, shifted and scaled as samplers want latents. The latter is None for an
            `AutoencoderTiny`, whose latents are not random.

        Raises:
            ValueError: as of `encode`.
        """
        images = as_samples("images", images)
        check_pixels("images", images)
        self._check_images(images)
        batch_size = parse_batch_size(batch_size)
        encoded = _computed("encode", self.config, self.params, images, batch_size)
        if encoded.shape[-1] == self.config.latent_channels:
            return to_samplers(self.config, encoded), None

        # The network says log sigma^2; the mean needs no more than what the dtype has.
        mean, log_variance = jnp.split(encoded, 2, axis=-1)
        bounded = jnp.clip(
            at_least_float32(log_variance), LOWEST_LOG_VARIANCE, HIGHEST_LOG_VARIANCE
        )
        std = deviation_to_samplers(self.config, jnp.exp(bounded / 2))
        return to_samplers(self.config, mean), std.astype(images.dtype)

    def decode(
        self, latents: Any, *, batch_size: int | None = None, progress: bool = False
    ) -> jax.Array:
        """Decodes latents, as samplers return them, to images.

        Args:
            latents: `[B, h, w, latent_channels]`.
            batch_size: number of latents at a time, which bounds the memory; None takes all at
                once, or with `progress` one.
            progress: whether to show a progress bar on stderr, of the images that are done. Under
                `jax.jit` and the like nothing is done yet, so that there is none.

        Returns:
            Images `[B, h * stride, w * stride, out_channels]`, in the dtype of the latents. They
            lie in [-1, 1] as nearly as the network was trained to: they are not clipped.

        Raises:
            ValueError: for latents of another shape.
        """
        latents = as_samples("latents", latents)
        channels = self.config.latent_channels
        if latents.ndim != 4 or latents.shape[-1] != channels:
            raise ValueError(
                f"latents must be [B, h, w, {channels}], channels last, got {latents.shape}"
            )
        batch_size = parse_batch_size(batch_size)
        if not isinstance(progress, bool):
            raise ValueError(f"progress must be True or False, got {shown(progress)}")
        unscaled = to_network(self.config, latents)
        decode = functools.partial(_computed, "decode", self.config, self.params)
        if progress and not is_tracing() and len(latents):
            return _one_after_the_other(decode, unscaled, batch_size or 1)
        return decode(unscaled, batch_size)

    @property
    def stride(self) -> int:
        """Pixels of an image per pixel of its latents, in height and in width."""
        return self.config.stride

    def _check_images(self, images):
        """Raises ValueError unless images have the channels and a size of the network."""
        channels = self.config.in_channels
        if images.ndim != 4 or images.shape[-1] != channels:
            raise ValueError(
                f"images must be [B, H, W, {channels}], channels last, got {images.shape}"
            )
        height, width = images.shape[1:3]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"images must have a height and width that {self.stride} divides, got "
                f"{height} x {width}; crop or resize them"
            )

    def __repr__(self) -> str:
        """Describes the autoencoder in a line, without its arrays."""
        leaves = [leaf for leaf in jax.tree.leaves(self.params) if hasattr(leaf, "size")]
        count = sum(leaf.size for leaf in leaves)
        dtypes = " and ".join(sorted({str(leaf.dtype) for leaf in leaves}))
        return (
            f"Autoencoder({autoencoder_name(self.config)}, {count:,} parameters, {dtypes}, "
            f"{self.config.latent_channels} latent channels, stride {self.stride})"
        )


def picture_shape(config: Any, autoencoder: Any) -> tuple[int, ...]:
    """Returns the shape of a picture: a sample's, or that of what it is decoded to.

    Args:
        config: the config of the network.
        autoencoder: the config of its autoencoder, or None.

    Raises:
        ValueError: if the config does not say the shape of a sample.
    """
    shape = sample_shape(config)
    if autoencoder is None:
        return shape
    height, width, _ = shape
    stride = autoencoder.stride
    return (height * stride, width * stride, autoencoder.out_channels)


def check_latents(config: Any, autoencoder: Any) -> None:
    """Checks that an autoencoder decodes the samples of a network, by the configs of both.

    Raises:
        ValueError: if its latents have another number of channels, or the samples are no images.
    """
    shape = sample_shape(config)
    channels = autoencoder.latent_channels
    if len(shape) != 3 or shape[-1] != channels:
        raise ValueError(
            f"autoencoder has latents of {channels} channels, but the network's samples have the "
            f"shape {shape}; give the autoencoder that the network was trained with, or None"
        )


def parse_batch_size(batch_size: Any) -> int | None:
    """Returns the number of images to compute at a time, or None for all.

    Raises:
        ValueError: for anything but a positive integer or None.
    """
    if batch_size is None:
        return None
    if not is_int(batch_size, 1):
        raise ValueError(
            f"batch_size must be a positive integer or None, got {shown(batch_size)}"
        )
    return int(batch_size)  # NumPy's small integers would overflow


def _one_after_the_other(decode, latents, batch_size):
    """Returns the images of latents, decoded in pieces that a progress bar counts."""
    # tqdm, which bars are made of, is imported by those who show one.
    from cmjax.progress import Bar

    num = len(latents)
    images = []

    # A batch that is divided along an explicit axis of a mesh cannot be cut.
    given = latents
    latents = replicated_array(latents)
    with Bar(num, unit="picture", doing="decoding") as bar:
        for first in range(0, num, batch_size):
            # A smaller piece at the end would be compiled again: it repeats latents before it.
            start = max(0, min(first, num - batch_size))
            made = decode(latents[start : start + batch_size], None)[first - start :]
            images.append(jax.block_until_ready(made))
            bar.advance_to(first + len(made))
    return sharded_like(jnp.concatenate(images), given)


@functools.partial(jax.jit, static_argnames=("method", "config", "batch_size"))
def _computed(method, config, params, x, batch_size):
    """Returns what a method of the network, "encode" or "decode", makes of `x`, `[B, ...]`.

    Jitted, since one operation after the other would keep many maps of the full size in memory.
    """
    # Some networks overflow in float16, which has the exponents of 5 bits; bfloat16 has 8.
    dtype = x.dtype
    if config.force_upcast and dtype == jnp.float16:
        x = x.astype(jnp.float32)

    def compute(x, params):
        network = _network(config, params)
        return getattr(network, method)(x)

    def compute_in_pieces(x, params):
        # `map` takes no batch size where the number of samples is a symbol: one at a time then.
        size = x.shape[0]
        at_once = None if is_symbolic(size) else batch_size
        if batch_size is None or (at_once is not None and at_once >= size):
            return compute(x, params)

        def compute_one(sample):
            return compute(sample[None], params)[0]

        return jax.lax.map(compute_one, x, batch_size=at_once)

    return with_automatic_axes(compute_in_pieces, x, params).astype(dtype)


def _network(config, params):
    """Returns the network with these parameters; raises ValueError if they are another's."""
    graph, like = network_parts(config)
    difference = other_shapes(params, like)
    if difference is not None:
        raise ValueError(
            f"params must be those of the {autoencoder_name(config)} of this config, got "
            f"{difference}; load_autoencoder returns both"
        )
    return nnx.merge(graph, params)
