"""Embeddings of times and of classes: what a network is conditioned on, as features `[B, F]`."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cmjax.labels import check_class_labels
from cmjax.models.layers import linear


def sinusoidal_embedding(
    t: jax.Array,
    features: int,
    *,
    flip_sin_to_cos: bool = True,
    freq_shift: float = 0,
    max_period: float = 10000.0,
) -> jax.Array:
    """Returns sines and cosines of times, at geometric frequencies (Vaswani et al. 2017, 3.5).

    Args:
        t: times, f32[B].
        features: number F of features; the last one of an odd number is zero.
        flip_sin_to_cos: whether the cosines come first.
        freq_shift: subtracted from the number of frequencies in the exponent's denominator.
        max_period: the largest period, in units of `t`, divided by 2 pi.

    Returns:
        The embedding, f32[B, F].
    """
    # frequency_i = max_period^(-i / (half - freq_shift)), i = 0 .. half - 1. A time multiplies the
    # rounding of a frequency by up to 1000. So frequencies are constants of the program, which no
    # compiler rearranges: exponents are rounded to float32, as networks were trained with, and
    # their exponentials are exact.
    half = features // 2
    indices = np.arange(half, dtype=np.float32)
    exponents = -np.float32(math.log(max_period)) * indices / np.float32(half - freq_shift)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)

    # Products with large times need float32, whatever the dtype of the network: [B, half].
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]

    # [B, half] each; together [B, F] with the zero of an odd F.
    parts = (jnp.sin(angles), jnp.cos(angles))
    if flip_sin_to_cos:
        parts = parts[::-1]
    return jnp.pad(jnp.concatenate(parts, axis=-1), ((0, 0), (0, features % 2)))


class TimestepEmbedding(nnx.Module):
    """Two dense layers with a SiLU between them, applied to the sinusoidal embedding."""

    def __init__(self, features_in: int, features_out: int, *, rngs: nnx.Rngs):
        """Makes a map from `[B, features_in]` to `[B, features_out]`."""
        self.linear_1 = linear(features_in, features_out, rngs=rngs)
        self.linear_2 = linear(features_out, features_out, rngs=rngs)

    def __call__(self, embedding: jax.Array) -> jax.Array:
        """Maps `[B, features_in]` to `[B, features_out]`."""
        return self.linear_2(jax.nn.silu(self.linear_1(embedding)))


def class_table(config: Any, features: int, *, rngs: nnx.Rngs) -> nnx.Embed | None:
    """Returns the embeddings of the classes of a network's config; None for one without classes.

    Args:
        config: its `num_class_embeds` says how many classes there are; with `null_class` one more
            row, the last, is that of no class.
        features: length F of a row.
        rngs: of the initial values.
    """
    if config.num_class_embeds is None:
        return None
    return nnx.Embed(config.num_class_embeds + config.null_class, features, rngs=rngs)


def add_class_embedding(
    embedding: jax.Array, table: nnx.Embed | None, class_labels: jax.Array | None
) -> jax.Array:
    """Adds the embedding of the classes to that of the times, in a model with classes.

    Args:
        embedding: of the times, f32[B, F].
        table: one row of F features per class; None for an unconditional model.
        class_labels: classes, i32[B]; None for an unconditional model.

    Returns:
        The sum, f32[B, F].

    Raises:
        ValueError: if labels are missing, or given to an unconditional model, or are not one class
            of the model for each sample.
    """
    if table is None:
        if class_labels is not None:
            raise ValueError("class_labels given to an unconditional model; leave them out")
        return embedding
    return embedding + class_features(table, class_labels, embedding.shape[0])


def class_features(
    table: nnx.Embed, class_labels: jax.Array | None, batch: int
) -> jax.Array:
    """Returns the embedding of one class per sample, f32[B, F].

    Args:
        table: one row of F features per label.
        class_labels: classes, i32[B].
        batch: number B of samples.

    Raises:
        ValueError: if labels are missing, or are not one class of the model for each sample.
    """
    if class_labels is None:
        raise ValueError(
            f"the model has {table.num_embeddings} classes: say which by "
            "cond={'class_labels': i32[B]}"
        )

    # A label for each sample: [1] would be broadcast. Values are checked where they are known.
    check_class_labels("class_labels", class_labels, table.num_embeddings)
    if class_labels.shape != (batch,):
        raise ValueError(
            f"class_labels must be one per sample, {(batch,)}, "
            f"got shape {class_labels.shape}"
        )

    # Where they are not known, -1 would be the last class. Beyond all classes it is NaN, as any
    # other label that is no class.
    labels = jnp.asarray(class_labels).astype(jnp.int32)
    labels = jnp.where(labels < 0, table.num_embeddings, labels)

    # The table may be stored in less than float32; a sum with it is not rounded to that.
    return table(labels).astype(jnp.float32)
