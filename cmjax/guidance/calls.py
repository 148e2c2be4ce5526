"""The calls of a guided network: two outputs, joined by a rule; one where no sample is guided."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.arrays import ApplyFn, as_reals, as_samples, at_least_float32
from cmjax.conditioning import with_null
from cmjax.configs import shown
from cmjax.guidance.rules import Rule
from cmjax.guidance.strength import Strength
from cmjax.meshes import cond_on_any_mesh
from cmjax.networks import (
    call_network,
    num_classes,
    parse_cond,
    with_attributes_of,
    with_guidance_mark,
)

# Number of guided networks to keep. The same network gives the same guided network again, so that
# programs that are compiled for it are found again.
_NETWORKS = 64


@functools.lru_cache(_NETWORKS)
def classifier_free_network(apply_fn, strength, null, rule, doubled):
    """The network of `classifier_free`, from checked arguments; the null is a `ByValue`."""

    # The output for the conditioning, and the output for its null.
    def outputs(params, x, times, cond, any_guided):
        cond = parse_cond(cond, x.shape[0], num_classes(apply_fn))
        without = with_null(cond, null.tree)
        call = functools.partial(_output, apply_fn, params)
        if doubled:
            return _of_one_call(call, x, times, cond, without, any_guided)
        return _of_two_calls(call, x, times, cond, without, any_guided)

    return _guided(apply_fn, strength, rule, outputs)


def _of_two_calls(call, x, times, cond, without, any_guided):
    """The outputs for a conditioning and for its null, by a call each."""
    output = call(x, times, cond)

    # Skipped at levels outside of the interval.
    def second_call():
        return call(x, times, without)

    return output, _other(any_guided, second_call, output, x)


def _of_one_call(call, x, times, cond, without, any_guided):
    """The outputs for a conditioning and for its null, by one call of twice as many samples."""

    # [2B, ...] with the pair of each sample side by side, then [B, 2, ...].
    def both():
        pairs = jax.tree.map(_interleaved, (x, times, cond), (x, times, without))
        joined = call(*pairs)
        outputs = joined.reshape(x.shape[0], 2, *joined.shape[1:])
        return outputs[:, 0], outputs[:, 1]

    # Of the samples alone, at levels outside of the interval.
    def alone():
        output = call(x, times, cond)
        return output, output

    return _either(any_guided, both, alone)


@functools.lru_cache(_NETWORKS)
def autoguided_network(apply_fn, strength, rule):
    """The network of `autoguidance`, from checked arguments."""

    def outputs(params, x, times, cond, any_guided):
        if not isinstance(params, tuple | list) or len(params) != 2:
            raise ValueError(
                f"params must be the pair (params, weaker_params), got {shown(params)}"
            )
        output = _output(apply_fn, params[0], x, times, cond)
        if strength.is_one:
            return output, output

        # The second call is skipped at levels outside of the interval.
        def weaker():
            return _output(apply_fn, params[1], x, times, cond)

        return output, _other(any_guided, weaker, output, x)

    return _guided(apply_fn, strength, rule, outputs)


def _guided(
    apply_fn: ApplyFn, strength: Strength, rule: Rule, outputs: Callable[..., Any]
) -> ApplyFn:
    """Returns the network that joins two outputs by a rule.

    Args:
        apply_fn: the network that is called.
        strength: of the guidance.
        rule: how the outputs become one.
        outputs: `(params, x, times, cond, any_guided) -> (output, other)`.
    """

    def guided(params, x, t, /, *second_time, **cond):
        # Flow maps take two times, of which the first is that of the sample.
        x = as_samples("x", x)
        t = as_reals("t", t)
        times = (t, *second_time)

        # How strongly each sample is guided, and what the network says with and without.
        scale, any_guided = strength.scale_at(x, t)
        output, other = outputs(params, x, times, cond, any_guided)
        if output.shape == x.shape:
            return rule(output, other, scale, x, t)

        # A learned variance, behind the prediction in the channels, is not guided.
        channels = x.shape[-1]
        mean = rule(output[..., :channels], other[..., :channels], scale, x, t)
        return jnp.concatenate([mean, output[..., channels:]], axis=-1)

    # By the mark, `cmjax.sample` refuses to read a guided network as a consistency function.
    guided = with_attributes_of(apply_fn, guided)
    return guided if strength.is_one else with_guidance_mark(guided)


def _output(apply_fn, params, x, times, cond):
    """The output of one call, `[B, ..., C]`, or `[B, ..., 2 C]` with a learned variance."""
    with_variance = None
    if x.ndim > 1:
        with_variance = (*x.shape[:-1], 2 * x.shape[-1])
    return call_network(apply_fn, params, x, times, cond, or_shape=with_variance)


def _other(
    any_guided: jax.Array | None,
    call: Callable[[], jax.Array],
    output: jax.Array,
    x: jax.Array,
) -> jax.Array:
    """The prediction `[B, ..., C]` of the second call, or of the first where no sample is guided.

    A weaker network may have parameters of another dtype, or no variance. The two branches of a
    `cond` must have one type: both are in at least float32, in which outputs are extrapolated.
    """
    wide = at_least_float32(output)

    # A variance is behind the prediction in the channels.
    def prediction(output):
        if output.shape != x.shape:
            output = output[..., : x.shape[-1]]
        return output.astype(wide.dtype)

    def of_second_call():
        return prediction(call())

    def of_first_call():
        return prediction(wide)

    return _either(any_guided, of_second_call, of_first_call)


def _either(
    is_wanted: jax.Array | None, one: Callable[[], Any], other: Callable[[], Any]
) -> Any:
    """Returns `one()` where `is_wanted`, bool[] or None for True; otherwise `other()`."""
    if is_wanted is None:
        return one()
    return cond_on_any_mesh(is_wanted, one, other)


def _interleaved(one: jax.Array, other: jax.Array) -> jax.Array:
    """Two arrays `[B, ...]` as one, `[2B, ...]`, with the rows of each sample side by side."""
    # Side by side, since a batch is divided over devices in order: both rows of a sample then stay
    # on its device.
    pairs = jnp.stack([one, other], axis=1)  # [B, 2, ...]
    return pairs.reshape(2 * one.shape[0], *one.shape[1:])
