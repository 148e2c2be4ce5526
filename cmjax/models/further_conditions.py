"""Conditions besides a time and a class: a second time, for flow maps, and a guidance scale."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.arrays import as_reals
from cmjax.models.embeddings import TimestepEmbedding, sinusoidal_embedding

# What is embedded of the second time r: r itself, t - r, or how many such steps there are.
SECOND_TIMES = ("end", "span", "log_steps")
MOST_LOG_STEPS = 7  # of shortcut models, whose shortest steps are 1 / 128 long

# The unit of embedded guidance scales: about as finely as the embedding tells two of them apart.
SCALE_STEP = 0.1


class FurtherConditions(nnx.Module):
    """The embeddings of a second time and of a guidance scale, as far as a config has them.

    Their last layers start at zero. So a network that is given these conditions later, such as a
    denoiser that becomes a flow map, starts with the outputs that it had; see `extend`.
    """

    def __init__(self, config: Any, features: int, width: int, *, rngs: nnx.Rngs):
        """Makes the embeddings.

        Args:
            config: of the network: `second_time`, `guidance_embeds` and `time_scale`.
            features: number of sines and cosines of a time.
            width: features of the embedding.
            rngs: that parameters are drawn from.
        """
        self.config = config
        self.features = features
        second_time = None
        if config.second_time is not None:
            second_time = _zero_embedding(features, width, rngs)
        guidance = None
        if config.guidance_embeds:
            guidance = _zero_embedding(features, width, rngs)
        self.second_time = second_time
        self.guidance = guidance

    def __call__(
        self, embedding: jax.Array, t: jax.Array, r: Any, guidance_scale: Any
    ) -> jax.Array:
        """Returns the embedding of the time with those of these conditions added, f32[B, width].

        Args:
            embedding: of the time, f32[B, width].
            t: times, f32[B].
            r: second times, f32[B], or None.
            guidance_scale: f32[B], or None.

        Raises:
            ValueError: if one is missing, or given to a network without it.
        """
        _check_given("r", r, "second_time", self.second_time)
        _check_given("guidance_scale", guidance_scale, "guidance_embeds", self.guidance)

        # The second time, in the units of its kind.
        if self.second_time is not None:
            scaled = self._second(t, r)
            embedding = embedding + self._embedded(self.second_time, scaled)

        # The guidance scale of each sample.
        if self.guidance is not None:
            guidance_scale = as_reals("guidance_scale", guidance_scale)
            if guidance_scale.shape != t.shape:
                raise ValueError(
                    f"guidance_scale must be one per sample {t.shape}, got shape "
                    f"{guidance_scale.shape}"
                )
            scaled = guidance_scale / SCALE_STEP
            embedding = embedding + self._embedded(self.guidance, scaled)
        return embedding

    def _second(self, t, r):
        """Returns what is embedded of the second time, f32[B]."""
        if self.config.second_time == "end":
            return r * self.config.time_scale
        span = (t - r) * self.config.time_scale
        if self.config.second_time == "span":
            return span

        # The whole part of log2(1 / span), with which steps of a third count as halves. It is
        # constant almost everywhere, and rounding must not make 1.9999 of 2.
        shortest = 2.0**-MOST_LOG_STEPS
        log_steps = -jnp.log2(jnp.maximum(jax.lax.stop_gradient(span), shortest))
        return jnp.maximum(jnp.floor(log_steps + 1e-3), 0.0)

    def _embedded(self, embedding, value):
        """Returns the embedding of one number per sample, f32[B, width]."""
        return embedding(sinusoidal_embedding(value, self.features))


def _check_given(name, value, option, part):
    """Raises ValueError unless a condition is given to exactly the networks that have it."""
    if part is None and value is not None:
        raise ValueError(
            f"{name} is given to a network without it; set {option} in its config, or name the "
            "arguments after the time, such as class_labels="
        )
    if part is not None and value is None:
        raise ValueError(f"{name} is missing: the network's config has {option}")


def _zero_embedding(features, width, rngs):
    """Returns the embedding of a time whose output is zero until it is trained."""
    embedding = TimestepEmbedding(features, width, rngs=rngs)
    kernel = embedding.linear_2.kernel
    embedding.linear_2.kernel = nnx.Param(jnp.zeros_like(kernel[...]))
    return embedding
