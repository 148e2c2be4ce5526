"""Self-attention: among tokens, and among the pixels of a map.

Scores grow with the square of the number of tokens. So of many tokens only some scores are computed
at a time.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.arrays import is_symbolic
from cmjax.models import amx
from cmjax.models.layers import GroupNorm, add_residual, linear

# 24 MiB in float32, about what CPUs keep near. XLA's products copy a factor of this size. If that
# copy took 32 MiB, glibc would return it to the system once it is freed, and every product would
# get new pages: a quarter of the time of the ImageNet-64 network at batch 4.
SCORES_IN_CACHE = 6 * 1024 * 1024

# Tokens whose scores are computed for all queries at once: 64 MB for each head in float32.
TOKENS_AT_ONCE = 64 * 64


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Returns softmax(q k^T / sqrt(C)) v for each head, with the softmax in float32.

    The attention of Vaswani et al. 2017, equation 1. Of many tokens, a part of the queries attends
    at a time, so that memory grows with T and not with its square.

    Args:
        q: queries, `[B, T, heads, C]`.
        k: keys, of the same shape.
        v: values, of the same shape.

    Returns:
        The mixed values, `[B, T, heads, C]`, in the dtype of `v`.
    """
    batch, tokens, heads, channels = q.shape

    # Heads first, so that each is a plain product of matrices: [B * heads, T, C].
    def heads_first(x):
        return x.swapaxes(1, 2).reshape(batch * heads, tokens, channels)

    q = heads_first(q)
    k = heads_first(k)
    v = heads_first(v)

    # All at once where the number of tokens is a symbol, of which nothing can be decided.
    if is_symbolic(tokens):
        mixed = _attend(q, k, v)
    elif tokens > TOKENS_AT_ONCE:
        mixed = _attend_in_pieces(q, k, v)
    else:
        mixed = jax.lax.platform_dependent(q, k, v, cpu=_attend_in_cache, default=_attend)
    return mixed.reshape(batch, heads, tokens, channels).swapaxes(1, 2)


def _attend(q, k, v):
    """Attends within each head, `[..., T, C]`."""
    # Fused kernels do not differentiate in forward mode, which the continuous-time losses need.
    scores = amx.matmul(q / math.sqrt(q.shape[-1]), k.swapaxes(-2, -1))
    scores = scores.astype(jnp.float32)

    # softmax(scores) v. The division by the sum comes last: it is a pass over [T, C] then, and not
    # over [T, T]. The largest score is taken off so that exp does not overflow; it cancels, and so
    # has no gradient.
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    total = weights.sum(axis=-1, keepdims=True)
    mixed = amx.matmul(weights.astype(v.dtype), v).astype(jnp.float32) / total
    return mixed.astype(v.dtype)


def _attend_in_cache(q, k, v):
    """Attends within as many heads at a time as have scores that a CPU's cache holds."""
    most = max(1, SCORES_IN_CACHE // q.shape[1] ** 2)
    heads = q.shape[0]

    # All at once also where the number of samples is a symbol, which `map` does not take.
    if is_symbolic(heads) or heads <= most:
        return _attend(q, k, v)

    # Parts of about the same size: a part that is smaller than the others is compiled on its own.
    at_once = math.ceil(heads / math.ceil(heads / most))
    return jax.lax.map(lambda head: _attend(*head), (q, k, v), batch_size=at_once)


def _attend_in_pieces(q, k, v):
    """Attends within one head at a time, in pieces of queries with `SCORES_IN_CACHE` scores."""
    # Zeros fill the last piece of queries up: [heads, pieces, at_once, C].
    heads, tokens, channels = q.shape
    at_once = SCORES_IN_CACHE // tokens or 1
    padded = jnp.pad(q, ((0, 0), (0, -tokens % at_once), (0, 0)))
    num_padded = padded.shape[1]
    pieces = padded.reshape(heads, num_padded // at_once, at_once, channels)

    def attend_head(head):
        queries, keys, values = head
        return jax.lax.map(lambda piece: _attend(piece, keys, values), queries)

    # The rows that belong to the zeros are cut off again: [heads, T, C].
    mixed = jax.lax.map(attend_head, (pieces, k, v))
    return mixed.reshape(heads, num_padded, channels)[:, :tokens]


class Attention(nnx.Module):
    """Multi-head self-attention among the pixels of a map, with normalisation and residual."""

    def __init__(
        self,
        channels: int,
        head_dim: int,
        *,
        groups: int | None,
        epsilon: float,
        rescale: bool = False,
        rngs: nnx.Rngs,
    ):
        """Makes attention with `channels // head_dim` heads.

        Args:
            channels: channels of the map.
            head_dim: channels per head.
            groups: groups of the normalisation; None for no normalisation.
            epsilon: epsilon of the normalisation.
            rescale: whether the sum with the residual is divided by sqrt(2).
            rngs: for the parameters.
        """
        if channels % head_dim:
            raise ValueError(
                f"attention_head_dim {head_dim} does not divide the {channels} channels of a block "
                "with attention, which the middle block always is; set it to a divisor"
            )
        self.heads = channels // head_dim
        self.rescale = rescale
        group_norm = None
        if groups is not None:
            group_norm = GroupNorm(channels, groups, epsilon, rngs=rngs)
        self.group_norm = group_norm

        # diffusers' names: `to_out` is a list there because dropout follows.
        self.to_q = linear(channels, channels, rngs=rngs)
        self.to_k = linear(channels, channels, rngs=rngs)
        self.to_v = linear(channels, channels, rngs=rngs)
        self.to_out = nnx.List([linear(channels, channels, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to the same shape."""
        # Pixels are the tokens: [B, H * W, C].
        batch, height, width, channels = x.shape
        pixels = x if self.group_norm is None else self.group_norm(x)
        pixels = pixels.reshape(batch, height * width, channels)

        # Channels are divided among the heads: [B, H * W, heads, head_dim] each.
        by_head = (batch, height * width, self.heads, channels // self.heads)
        q = self.to_q(pixels).reshape(by_head)
        k = self.to_k(pixels).reshape(by_head)
        v = self.to_v(pixels).reshape(by_head)

        # Heads side by side again: [B, H * W, C].
        mixed = attend(q, k, v).reshape(batch, height * width, channels)
        return add_residual(x, self.to_out[0](mixed).reshape(x.shape), self.rescale)
