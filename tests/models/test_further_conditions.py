"""Networks given a second time or a guidance scale: what matters, and how they begin."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.models import UNet2DConfig, extend
from cmjax.training import losses
from cmjax.training.losses.flow_paths import mean_velocity
from cmjax.training.losses.mean_flow import time_derivative
from tests.support.networks import DIT, UNET, network
from tests.support.training import KEY, value

T, R = jnp.array([900.0, 400.0]), jnp.array([0.0, 400.0])
SCALE = jnp.array([1.0, 4.0])
DIT = dataclasses.replace(DIT, num_layers=2, num_class_embeds=None, patch_size=4)
UNET = dataclasses.replace(UNET, num_class_embeds=None)
# With channels enough for convolutions that are products of matrices, on CPUs.
WIDE = UNet2DConfig(
    sample_size=8,
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    block_out_channels=(32,),
    layers_per_block=1,
    time_scale=0.01,
)
SCHEDULER = cmjax.FlowMapEulerDiscreteScheduler()


def images(config, count=2):
    shape = (count, 8, 8, config.in_channels)
    return jax.random.normal(jax.random.key(1), shape)


@pytest.mark.parametrize("second_time", ["end", "span"])
def test_both_times_and_the_scale_matter(second_time):
    config = dataclasses.replace(DIT, second_time=second_time, guidance_embeds=True)
    apply_fn, params = network(config)
    x = images(config)
    output = apply_fn(params, x, T, R, guidance_scale=SCALE)
    for other in (
        apply_fn(params, x, T + 50, R, guidance_scale=SCALE),
        apply_fn(params, x, T, R + 50, guidance_scale=SCALE),
        apply_fn(params, x, T, R, guidance_scale=SCALE + 1),
    ):
        # Each of both samples.
        assert float(jnp.abs(output - other).max((1, 2, 3)).min()) > 1e-3

    # Of the length, only the length: with the first time hidden, both moved together say nothing.
    if second_time == "span":
        hidden = jax.tree_util.tree_map_with_path(
            lambda path, leaf: 0 * leaf if "time_embedding" in str(path) else leaf, params
        )
        np.testing.assert_allclose(
            apply_fn(hidden, x, T, R, guidance_scale=SCALE),
            apply_fn(hidden, x, T + 50, R + 50, guidance_scale=SCALE),
            atol=1e-4,
        )


@pytest.mark.parametrize(
    "config", [DIT, pytest.param(UNET, marks=pytest.mark.thorough)], ids=["DiT", "UNet"]
)
def test_a_trained_network_is_extended_without_a_change(config):
    apply_fn, params = network(config)
    x = images(config)
    expected = apply_fn(params, x, T)
    changes = {"second_time": "span", "guidance_embeds": True}
    flow_map, extended, new = extend(config, params, **changes)
    assert new == dataclasses.replace(config, **changes)
    flow_map = jax.jit(flow_map)
    for r in (T, R):
        found = flow_map(extended, x, T, r, guidance_scale=SCALE)
        np.testing.assert_allclose(found, expected, atol=1e-6)

    # And all that is new can be trained: only the last layer starts at zero.
    def loss(params):
        return jnp.square(flow_map(params, x, T, R, guidance_scale=SCALE)).sum()

    gradient = jax.tree_util.tree_leaves_with_path(jax.grad(loss)(extended))
    last = [
        float(jnp.abs(leaf).max())
        for path, leaf in gradient
        if "further" in str(path) and "linear_2" in str(path)
    ]
    assert len(last) == 4 and min(last) > 0

    # The sampler tells it both times.
    cond = {"guidance_scale": SCALE}
    cmjax.sample(KEY, flow_map, extended, SCHEDULER, x.shape, cond=cond)


def test_what_cannot_be_extended():
    _, params = network(DIT)
    with pytest.raises(ValueError, match="num_layers cannot be changed"):
        extend(DIT, params, num_layers=3)
    wider = dataclasses.replace(DIT, num_attention_heads=4)
    with pytest.raises(ValueError, match="params.* has shape .*, and config needs"):
        extend(wider, params, second_time="end")
    with pytest.raises(ValueError, match="params has .*blocks.*, and config has not"):
        extend(dataclasses.replace(DIT, num_layers=1), params, second_time="end")
    with pytest.raises(
        ValueError, match="second_time must be 'end' or 'span' or 'log_steps'"
    ):
        extend(DIT, params, second_time="length")
    with pytest.raises(ValueError, match="rngs must be flax.nnx.Rngs.* or None, got 3"):
        extend(DIT, params, rngs=3, second_time="end")
    counts = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, jnp.int32), params)
    with pytest.raises(ValueError, match="params.* must be an array of floats, got int32"):
        extend(DIT, counts, second_time="end")

    # What is missing was drawn anew.
    for partial in (None, {}):
        with pytest.raises(ValueError, match="params has no .*, which config needs"):
            extend(DIT, partial, second_time="span")

    # The shapes are the same, but the outputs would be others.
    _, flow_map, spans = extend(DIT, params, second_time="span")
    with pytest.raises(
        ValueError, match="second_time='end' cannot take the place of 'span'"
    ):
        extend(spans, flow_map, second_time="end")


@pytest.mark.parametrize(
    "changes, arguments, message",
    [
        ({}, (R,), "r is given to a network without it; set second_time in its config"),
        ({"second_time": "end"}, (), "r is missing: the network's config has second_time"),
        ({"guidance_embeds": True}, (), "guidance_scale is missing"),
    ],
)
def test_missing_and_needless_conditions(changes, arguments, message):
    apply_fn, params = network(dataclasses.replace(DIT, **changes))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(apply_fn, params, images(DIT), T, *arguments)


@pytest.mark.parametrize(
    "config", [DIT, pytest.param(WIDE, marks=pytest.mark.thorough)], ids=["DiT", "UNet"]
)
def test_mean_flow_trains_the_networks(config):
    """The gradient of a loss with a forward-mode derivative in its target, and that derivative."""
    apply_fn, params = network(dataclasses.replace(config, second_time="span"))
    u = mean_velocity(apply_fn, SCHEDULER)
    x = images(config)
    velocity = jax.random.normal(KEY, x.shape)
    t, r = T / 1000, R / 1000

    @jax.jit
    def derivative_and_gradient(params):
        slope = time_derivative(u, params, x, t, r, velocity, {})
        loss = losses.MeanFlow(SCHEDULER)
        return slope, jax.grad(lambda p: value(loss, apply_fn, p, {"data": x}))(params)

    slope, gradient = derivative_and_gradient(params)
    h = 1e-3
    ahead, behind = (u(params, x + s * velocity, t + s, r, {}) for s in (h, -h))
    scale = float(jnp.abs(slope).max())
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), atol=0.01 * scale)
    used = {
        jax.tree_util.keystr(path): float(jnp.abs(leaf).max())
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
    }
    assert all(np.isfinite(size) and size > 0 for size in used.values()), used


def test_scales_of_other_dtypes_and_shapes():
    apply_fn, params = network(dataclasses.replace(DIT, guidance_embeds=True))
    x = jnp.ones((2, DIT.sample_size, DIT.sample_size, DIT.in_channels))

    def of(scale):
        return apply_fn(params, x, jnp.ones(2), guidance_scale=scale)

    np.testing.assert_array_equal(of(jnp.array([2, 3])), of(jnp.array([2.0, 3.0])))
    for scale in (jnp.ones((2, 1)), jnp.float32(2), jnp.ones(2, bool)):
        with pytest.raises(ValueError, match="guidance_scale must be"):
            of(scale)
