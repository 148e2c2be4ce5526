"""The transformer: its contract, its derivative, and its checkpoints."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cmjax
from cmjax.models import DIT_SIZES, DiT, DiTConfig
from cmjax.models.attention import attend
from cmjax.models.dit_blocks import position_embedding
from tests.support.networks import DIT, network
from tests.support.tiers import thorough

X = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
T, LABELS = jnp.array([-100.0, 250.0]), jnp.array([0, 2])


def drawn(**changes):
    """A network whose parameters are drawn, so that every part of it matters."""
    config = dataclasses.replace(DIT, **changes)
    return config, *network(config)


@pytest.mark.thorough
def test_an_untrained_network_returns_zero():
    config = dataclasses.replace(DIT, num_layers=1)
    output = DiT(config, rngs=nnx.Rngs(0))(X, T, class_labels=LABELS)
    np.testing.assert_array_equal(output, np.zeros_like(X))


@pytest.mark.parametrize(
    "changes",
    [
        {"long_skips": True},
        thorough({}),
        thorough({"patch_size": 4, "out_channels": 6}),
    ],
)
def test_every_input_matters(changes):
    config, apply_fn, params = drawn(**changes)
    output = apply_fn(params, X, T, class_labels=LABELS)
    assert output.shape == (2, 8, 8, config.out_channels) and output.dtype == jnp.float32
    for other in (
        apply_fn(params, X[:, ::-1], T, class_labels=LABELS),
        apply_fn(params, X, T + 50, class_labels=LABELS),
        apply_fn(params, X, T, class_labels=LABELS[::-1]),
    ):
        assert float(jnp.abs(output - other).max()) > 1e-3
    alone = apply_fn(params, X[1:], T[1:], class_labels=LABELS[1:])
    np.testing.assert_allclose(alone, output[1:], atol=1e-5)

    def loss(params):
        return jnp.square(apply_fn(params, X, T, class_labels=LABELS)).sum()

    gradient = jax.jit(jax.grad(loss))(params)
    used = {
        jax.tree_util.keystr(path): float(jnp.abs(g).max())
        for path, g in jax.tree_util.tree_leaves_with_path(gradient)
    }
    assert all(value > 0 for value in used.values()), used


def test_long_skips_join_the_halves():
    for count, skips in ((4, 2), (5, 2)):
        _, params = network(dataclasses.replace(DIT, num_layers=count, long_skips=True))
        assert len(params["skips"]) == skips


def test_bfloat16_in_bfloat16_out():
    _, apply_fn, params = drawn()
    output = apply_fn(params, X.astype(jnp.bfloat16), T, class_labels=LABELS)
    exact = apply_fn(params, X, T, class_labels=LABELS)
    assert output.dtype == jnp.bfloat16
    assert float(jnp.abs(output.astype(jnp.float32) - exact).max()) < 0.05 * float(
        jnp.abs(exact).max()
    )


def test_forward_mode_equals_finite_differences():
    _, apply_fn, params = drawn(num_class_embeds=None)
    direction = jax.random.normal(jax.random.key(2), X.shape)

    def f(x, t):
        return apply_fn(params, x, t)

    _, tangent = jax.jvp(f, (X, T), (direction, jnp.ones(2)))
    h = 1e-2
    slope = (f(X + h * direction, T + h) - f(X - h * direction, T - h)) / (2 * h)
    np.testing.assert_allclose(tangent, slope, atol=2e-3 * float(jnp.abs(tangent).max()))


def test_attention_by_definition():
    q, k, v = np.asarray(jax.random.normal(jax.random.key(3), (3, 2, 5, 4, 6)), np.float64)
    expected = np.zeros_like(q)
    for b in range(2):
        for head in range(4):
            scores = q[b, :, head] @ k[b, :, head].T / 6**0.5
            weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
            expected[b, :, head] = weights @ v[b, :, head]
    found = attend(*(jnp.asarray(a, jnp.float32) for a in (q, k, v)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_positions_tell_all_tokens_apart():
    table = position_embedding(5, 16)
    assert table.shape == (25, 16) and table.dtype == np.float32
    np.testing.assert_allclose(
        table[7, :4], np.sin(2 * 10000.0 ** -(np.arange(4) / 4)), rtol=1e-6
    )  # column 2
    np.testing.assert_allclose(
        table[7, 8:12], np.sin(1 * 10000.0 ** -(np.arange(4) / 4)), rtol=1e-6
    )  # row 1
    gaps = np.abs(table[:, None] - table[None]).max(-1) + np.eye(25)
    assert gaps.min() > 1e-2


def test_the_papers_sizes():
    # Peebles & Xie 2023, table 1: widths 384, 768, 1024, 1152.
    assert [DiTConfig(**size).width for size in DIT_SIZES.values()] == [
        384,
        768,
        1024,
        1152,
    ]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"patch_size": 3}, "patch_size 3 does not divide sample_size 8"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_attention_heads": 1, "attention_head_dim": 6}, "must be a multiple of 4"),
        (
            {"num_class_embeds": 0},
            "num_class_embeds",
        ),
        ({"long_skips": 1}, "long_skips"),
    ],
)
def test_configs_that_make_no_network(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DIT, **changes)


def test_inputs_that_do_not_fit():
    apply_fn, params = network(DIT)
    with pytest.raises(ValueError, match=r"x must be \[B, 8, 8, 3\], got \(2, 4, 8, 3\)"):
        apply_fn(params, X[:, :4], T, class_labels=LABELS)
    with pytest.raises(ValueError, match="3 classes"):
        apply_fn(params, X, T)
    apply_fn, params = network(dataclasses.replace(DIT, num_class_embeds=None))
    with pytest.raises(ValueError, match="unconditional model"):
        apply_fn(params, X, T, class_labels=LABELS)


def test_it_is_saved_loaded_and_sampled(tmp_path):
    config, apply_fn, params = drawn(long_skips=True)
    model = cmjax.Model(apply_fn, params, cmjax.CMStochasticIterativeScheduler(), config)
    cmjax.save(tmp_path / "dit", model)
    again = cmjax.load(tmp_path / "dit")
    assert (
        again.config == config
        and again.num_classes == 3
        and again.sample_shape == (8, 8, 3)
    )
    chex.assert_trees_all_equal(jax.tree.leaves(again.params), jax.tree.leaves(params))
    x = cmjax.sample(
        jax.random.key(0),
        again.apply_fn,
        again.params,
        again.scheduler,
        (2, 8, 8, 3),
        cond={"class_labels": LABELS},
    )
    assert np.isfinite(x).all()
    with pytest.raises(
        ValueError,
        match="no pipeline for a DiT; save the model as a cmjax folder",
    ):
        cmjax.save(tmp_path / "other", model, to="diffusers")
    file = tmp_path / "dit" / "config.json"
    file.write_text(file.read_text().replace('"num_layers": 4', '"num_layers": 3'))
    with pytest.raises(ValueError):
        cmjax.load(tmp_path / "dit")
