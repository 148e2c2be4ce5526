"""Pixel MeanFlow: as its reference computes, given everything in another way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cmjax
from cmjax.models import PIXEL_MEAN_FLOWS, PixelMeanFlow, PixelMeanFlowConfig
from cmjax.models.registry import network_parts
from cmjax.models.token_layers import rotary_angles, rotated
from tests.support import pixel_mean_flow as reference

GOLDEN = np.load(reference.GOLDEN / "pixel_mean_flow.npz")
CONFIG = PixelMeanFlowConfig(
    sample_size=12,
    patch_size=4,
    num_layers=3,
    num_attention_heads=2,
    attention_head_dim=16,
    mlp_channels=85,
    num_class_embeds=5,
    noise_scale=2.0,
    guidance_scale=3.0,
    guidance_interval=(0.2, 0.6),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The reference's toy network, out of a file as the reference writes it."""
    path = reference.save(tmp_path_factory.mktemp("pmf") / "toy.pt", "toy")
    loaded = cmjax.load(path, config=CONFIG)
    return dataclasses.replace(loaded, apply_fn=jax.jit(loaded.apply_fn))


def reference_inputs(name):
    """What the reference was given, as cmjax's network takes it."""
    stored = {
        key: GOLDEN[f"{name}/{key}"] for key in ("t", "h", "w", "t_min", "t_max", "y")
    }
    times = (1000 * stored["t"], 1000 * (stored["t"] - stored["h"]))
    cond = {
        "class_labels": stored["y"],
        "guidance_scale": stored["w"],
        "guidance_interval": np.stack([stored["t_min"], stored["t_max"]], axis=1),
    }
    return jax.tree.map(jnp.asarray, (times, cond))


def test_output_of_the_reference(model):
    times, cond = reference_inputs("toy")
    assert 5 in cond["class_labels"]  # the class that stands for none
    u = model.apply_fn(model.params, GOLDEN["toy/x"].transpose(0, 2, 3, 1), *times, **cond)
    expected = GOLDEN["toy/u"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(u, expected, atol=1e-4 * expected.std())


def test_every_input_matters(model):
    times, cond = reference_inputs("toy")
    x = jnp.asarray(GOLDEN["toy/x"].transpose(0, 2, 3, 1))
    u = model.apply_fn(model.params, x, *times, **cond)

    def difference(times=times, **changes):
        other = model.apply_fn(model.params, x, *times, **(cond | changes))
        return np.abs(other - u).max(axis=(1, 2, 3)).min()

    assert difference(times=(times[0], times[1] - 20)) > 1e-3
    assert difference(class_labels=(cond["class_labels"] + 1) % 6) > 1e-3
    assert difference(guidance_scale=2 * cond["guidance_scale"]) > 1e-3
    for change in ([0.1, 0], [0, 0.1]):
        interval = cond["guidance_interval"] + jnp.asarray(change)[None]
        assert difference(guidance_interval=interval) > 1e-4


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_samples_of_the_reference(model, steps):
    labels = GOLDEN["samples/y"]
    noise = 2.0 * GOLDEN["samples/noise"].transpose(0, 2, 3, 1)
    x = cmjax.sample(
        jax.random.key(0),
        model.apply_fn,
        model.params,
        model.scheduler,
        (3, 12, 12, 3),
        num_inference_steps=steps,
        cond={"class_labels": labels},
        init=noise,
    )
    expected = GOLDEN[f"samples/{steps}"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(x, expected, atol=1e-4 * expected.std())


def test_labels_alone_get_what_the_config_says(model):
    times, cond = reference_inputs("toy")
    x = jnp.asarray(GOLDEN["toy/x"].transpose(0, 2, 3, 1))
    alone = {"class_labels": cond["class_labels"]}
    scale = jnp.full(6, 3.0)
    interval = jnp.broadcast_to(jnp.array([[0.2, 0.6]]), (6, 2))
    np.testing.assert_array_equal(
        model.apply_fn(model.params, x, *times, **alone),
        model.apply_fn(
            model.params,
            x,
            *times,
            guidance_scale=scale,
            guidance_interval=interval,
            **alone,
        ),
    )
    assert model.scheduler.init_noise_sigma == CONFIG.noise_scale


def test_a_model_may_be_asked_for_no_class(model):
    x = model.sample(jax.random.key(1), 3, cond={"class_labels": [5, 5, 0]})
    assert np.isfinite(x).all() and model.num_classes == 5
    with pytest.raises(ValueError, match=r"classes are 0..5, got 6"):
        model.sample(jax.random.key(1), 2, cond={"class_labels": [5, 6]})
    with pytest.raises(ValueError, match=r"classes are 0..4, got 5"):
        model.sample(jax.random.key(1), 2, labels=5)


def test_guidance_is_an_input(model):
    cond = {
        "class_labels": jnp.array([1, 2]),
        "guidance_scale": jnp.full(2, 2.0),
        "guidance_interval": jnp.tile(jnp.array([0.2, 0.6]), (2, 1)),
    }
    expected = model.sample(jax.random.key(1), 2, cond=cond)
    options = {"labels": [1, 2], "guidance": 2.0, "guidance_interval": (0.2, 0.6)}
    found = model.sample(jax.random.key(1), 2, **options)
    np.testing.assert_array_equal(found, expected)


def test_the_velocity_is_that_towards_x0(model):
    # With parameters of zero x0 is zero, as in an untrained network.
    times, cond = reference_inputs("toy")
    x = jnp.asarray(GOLDEN["toy/x"].transpose(0, 2, 3, 1))
    u = model.apply_fn(jax.tree.map(jnp.zeros_like, model.params), x, *times, **cond)
    t = np.maximum(GOLDEN["toy/t"], 0.05)  # no velocity of a shorter time
    assert GOLDEN["toy/t"].min() < 0.05
    np.testing.assert_allclose(u, x / t[:, None, None, None], rtol=1e-6)


def test_the_second_head_branches_off_before_the_last_blocks(model):
    config = dataclasses.replace(CONFIG, second_head_layers=2)
    graph, state = network_parts(config)
    first = nnx.to_pure_dict(model.params)

    # The second head has the parameters of the first, but for its last bias.
    blocks = {i: first["blocks"][1 + i] for i in range(2)}
    last = {**first["proj_out"], "bias": first["proj_out"]["bias"] + 0.5}
    head = {"blocks": blocks, "norm_out": first["norm_out"], "proj_out": last}
    nnx.replace_by_pure_dict(state, {**first, "second_head": head})
    apply_fn, params = cmjax.from_nnx(nnx.merge(graph, state))

    times, cond = reference_inputs("toy")
    x = jnp.asarray(GOLDEN["toy/x"].transpose(0, 2, 3, 1))

    @jax.jit
    def outputs(params):
        return [apply_fn(params, x, *times, second_head=b, **cond) for b in (False, True)]

    u = model.apply_fn(model.params, x, *times, **cond)
    t = np.maximum(GOLDEN["toy/t"], 0.05)[:, None, None, None]
    one, both = outputs(params)
    np.testing.assert_allclose(one, u, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(both[..., :3], u, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(both[..., 3:], u - 0.5 / t, rtol=1e-4, atol=1e-4)


def test_both_heads_of_a_network_with_one(model):
    times, cond = reference_inputs("toy")
    x = jnp.asarray(GOLDEN["toy/x"].transpose(0, 2, 3, 1))
    with pytest.raises(ValueError, match="without one; set second_head_layers"):
        network = model.apply_fn.__wrapped__  # not compiled
        network(model.params, x, *times, second_head=True, **cond)


def test_bfloat16_in_bfloat16_out(model):
    times, cond = reference_inputs("toy")
    x = jnp.asarray(GOLDEN["toy/x"].transpose(0, 2, 3, 1))
    exact = model.apply_fn(model.params, x, *times, **cond)
    u = model.apply_fn(model.params, x.astype(jnp.bfloat16), *times, **cond)
    assert u.dtype == jnp.bfloat16
    off = jnp.abs(u.astype(jnp.float32) - exact).max(axis=(1, 2, 3))
    assert float((off * jnp.maximum(times[0] / 1000, 0.05)).max()) < 0.15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"guidance_scale": jnp.ones(1)},
            r"guidance_scale must have shape \(6,\), got \(1,\)",
        ),
        ({"guidance_interval": jnp.ones(6)}, r"guidance_interval must have shape \(6, 2\)"),
        ({"class_labels": None}, "the model has 6 classes: say which"),
    ],
)
def test_inputs_that_do_not_fit(model, changes, message):
    times, cond = reference_inputs("toy")
    x = jnp.asarray(GOLDEN["toy/x"].transpose(0, 2, 3, 1))
    with pytest.raises(ValueError, match=message):
        model.apply_fn(model.params, x, *times, **(cond | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 5}, "patch_size 5 does not divide sample_size 12"),
        ({"attention_head_dim": 6}, "must be a multiple of 4"),
        ({"context_tokens": (8, 4)}, "context_tokens must have 5 entries, got 2"),
        ({"guidance_interval": (0.1, 0.2, 0.3)}, "guidance_interval must have 2 entries"),
        ({"guidance_interval": (0.9, 0.1)}, "lowest time first, got 0.9, 0.1"),
        ({"guidance_scale": 0.0}, "guidance_scale must be"),
        ({"noise_scale": float("nan")}, "noise_scale must be"),
        ({"second_head_layers": 4}, "second_head_layers 4 must be at most num_layers 3"),
    ],
)
def test_configs_that_make_no_network(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_rotary_positions_turn_pairs_by_row_and_column():
    angles = rotary_angles(3, 8)
    np.testing.assert_allclose(angles[5], [1, 0.01, 2, 0.02], rtol=1e-6)  # row 1, column 2

    # Two tokens without a place stay; pair 2 of the last token turns by its column.
    x = np.random.RandomState(0).standard_normal((1, 11, 2, 8)).astype(np.float32)
    turned = np.asarray(rotated(jnp.asarray(x), angles))
    np.testing.assert_array_equal(turned[:, :2], x[:, :2])
    point = (x[0, 10, :, 4] + 1j * x[0, 10, :, 5]) * np.exp(2j)
    np.testing.assert_allclose(turned[0, 10, :, 4], point.real, atol=1e-6)
    np.testing.assert_allclose(turned[0, 10, :, 5], point.imag, atol=1e-6)


def test_the_released_sizes():
    # Of their files, the shapes of all tensors are compared in tests/checkpoints.
    assert [preset.width for preset in PIXEL_MEAN_FLOWS.values()] == 2 * [768, 1024, 1280]
    assert {preset.num_tokens for preset in PIXEL_MEAN_FLOWS.values()} == {256 + 20}


@pytest.mark.thorough
def test_output_of_the_reference_at_the_smallest_released_size(tmp_path):
    loaded = cmjax.load(reference.save(tmp_path / "pMF-B-16.pt", "B_16"))
    times, cond = reference_inputs("B_16")
    x = 1.5 * np.random.RandomState(0).standard_normal((2, 3, 256, 256))
    x = jnp.asarray(x.astype(np.float32).transpose(0, 2, 3, 1))
    u = jax.jit(loaded.apply_fn)(loaded.params, x, *times, **cond)
    expected = GOLDEN["B_16/u"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(
        u[:, 5::32, 9::32], expected, atol=1e-4 * float(GOLDEN["B_16/std"])
    )


def test_a_scale_of_0_is_refused_where_it_is_known():
    config = PixelMeanFlowConfig(
        sample_size=4,
        patch_size=2,
        num_layers=1,
        num_attention_heads=1,
        attention_head_dim=4,
        mlp_channels=4,
        num_class_embeds=2,
    )
    module = PixelMeanFlow(config, rngs=nnx.Rngs(0))
    x = jnp.zeros((2, 4, 4, 3))
    t = jnp.full(2, 500.0)
    conditions = (jnp.array([0, 1]), jnp.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="guidance_scale must be above 0"):
        module(x, t, t, *conditions)
