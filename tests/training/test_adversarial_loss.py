"""The adversarial loss against float64 arithmetic written out by hand, and on data whose law is known."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from click.testing import CliRunner
from flax import nnx

import cmjax
from cmjax.model import Model
from cmjax.models import UNet2D, UNet2DConfig, from_nnx
from cmjax.testing import gaussian_consistency_model
from cmjax.training import losses, trainer

SCHEDULER = cmjax.CMStochasticIterativeScheduler(clip_denoised=False)
CONFIG = losses.LossConfig(SCHEDULER, total_steps=100)
KEY = jax.random.key(5)
DATA = {"data": 0.3 * jax.random.normal(jax.random.key(1), (8, 3)), "shift": jnp.linspace(-1, 1, 8)}
PARAMS = losses.Judged(
    {"a": jnp.float32(0.7), "b": jnp.float32(0.2)},
    {"u": jnp.array([0.5, -1.0, 2.0]), "v": jnp.float32(0.6)},
)


def network(params, x, t, shift, xp=jnp):
    return xp.tanh(params["a"] * x) + params["b"] * shift[:, None] * t[:, None] / 1000


def judge(params, x, shift, xp=jnp):
    return xp.tanh(x @ params["u"]) * params["v"] + shift


def reference(params, sigma):
    """(network's loss, judge's loss), drawn from KEY as the loss draws, with penalty 0.5 and instance noise 0.1."""
    _, _, noise_key, real_key, made_key = jax.random.split(KEY, 5)
    z, of_real, of_made = (
        np.asarray(jax.random.normal(k, (8, 3)), np.float64)
        for k in (noise_key, real_key, made_key)
    )
    x, shift = np.asarray(DATA["data"], np.float64), np.asarray(DATA["shift"], np.float64)
    noisy, lifted = x + sigma[:, None] * z, sigma - 0.002
    c_skip, c_out = 0.25 / (lifted**2 + 0.25), 0.5 * lifted / np.sqrt(sigma**2 + 0.25)
    scaled = noisy / np.sqrt(sigma**2 + 0.25)[:, None]
    output = network(params.network, scaled, 250 * np.log(sigma), shift, np)
    real, made = (
        x + 0.1 * of_real,
        c_skip[:, None] * noisy + c_out[:, None] * output + 0.1 * of_made,
    )
    gap = judge(params.judge, real, shift, np) - judge(params.judge, made, shift, np)
    u, v = params.judge["u"], params.judge["v"]
    slope = (1 - np.tanh(real @ u) ** 2)[:, None] * v * u
    penalty = 0.5 / 2 * np.mean(np.sum(slope**2, axis=1))
    return np.mean(np.log1p(np.exp(gap))), np.mean(np.log1p(np.exp(-gap))) + penalty


def levels():
    """The first half at sigma_max; the others on the Karras grid of 80 to 0.7."""
    ramp = np.asarray(jax.random.uniform(jax.random.split(KEY, 5)[1], (8,)), np.float64)
    ramp[:4] = 0
    return (80 ** (1 / 7) + ramp * (0.7 ** (1 / 7) - 80 ** (1 / 7))) ** 7


def test_values_and_gradients_are_those_of_the_papers_and_do_not_mix():
    loss = losses.adversarial_loss(judge, penalty=0.5, instance_noise=0.1, lowest=0.7)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), PARAMS)
    sigma = levels()
    assert sigma[4:].min() > 0.7 and np.ptp(sigma[4:]) > 1

    def total(params):
        return loss(KEY, network, params, None, DATA, 0, CONFIG)

    (_, metrics), gradient = jax.value_and_grad(total, has_aux=True)(PARAMS)
    np.testing.assert_allclose(
        [metrics["loss"], metrics["judge_loss"]], reference(wide, sigma), rtol=1e-5
    )
    for part, own in ((0, 0), (1, 1)):  # a network's parameters move its own loss alone
        for name, value in wide[part].items():
            for index in np.ndindex(value.shape):
                step = np.zeros_like(value)
                step[index] = 1e-6

                def at(change, part=part, own=own, name=name, value=value):
                    moved = wide._replace(
                        **{wide._fields[part]: {**wide[part], name: value + change}}
                    )
                    return reference(moved, sigma)[own]

                expected = (at(step) - at(-step)) / 2e-6
                np.testing.assert_allclose(
                    np.asarray(gradient[part][name])[index], expected, rtol=2e-4, atol=1e-6
                )


def test_one_call_learns_the_law_of_the_data():
    """From the wrong mean and spread, by a judge that knows of means and squares alone."""

    def moments(params, x):
        return x[:, 0] * params["first"] + jnp.square(x[:, 0]) * params["second"]

    apply_fn, start = gaussian_consistency_model(SCHEDULER, mean=-0.2, std=0.3)
    zero = jnp.zeros(())
    recipe = losses.Recipe(
        losses.adversarial_loss(moments, penalty=0.05, instance_noise=0.0, lowest=20.0), {}
    )
    train_step = trainer.make_train_step(
        recipe, apply_fn, optax.adam(1e-2, b1=0.0), CONFIG, ema_decays=(0.98,)
    )
    state = train_step.init(KEY, losses.Judged(start, {"first": zero, "second": zero}))
    draw = jax.jit(
        lambda step: 0.3 + 0.5 * jax.random.normal(jax.random.fold_in(KEY, step), (512, 1))
    )
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam itself mixes dtypes
        for step in range(600):
            state, _ = train_step(state, {"data": draw(step)})
    learned = state.ema[0].network
    np.testing.assert_allclose((learned["mean"], learned["std"]), (0.3, 0.5), atol=0.04)
    x = cmjax.sample(KEY, apply_fn, learned, SCHEDULER, (4000, 1), num_inference_steps=1)
    np.testing.assert_allclose((jnp.mean(x), jnp.std(x)), (0.3, 0.5), atol=0.06)


@pytest.mark.parametrize("name", ["ect", "cd"])
def test_another_loss_is_added_and_handed_the_networks_alone(name):
    inner = losses.RECIPES[name]
    config = losses.LossConfig(SCHEDULER, 100, **inner.defaults)
    both = losses.adversarial_loss(judge, inner.loss, weight=0.25)
    alone = losses.adversarial_loss(judge)
    target = losses.Judged({"a": jnp.float32(0.5), "b": jnp.float32(0.1)}, PARAMS.judge)
    teacher = {"a": jnp.float32(-0.6), "b": jnp.float32(0.4)}
    fixed, inner_fixed = (
        ((target, teacher), (target.network, teacher))
        if inner.distils
        else (target, target.network)
    )
    added, _ = inner.loss(
        jax.random.split(KEY, 5)[0],
        network,
        PARAMS.network,
        inner_fixed,
        DATA,
        jnp.int32(3),
        config,
    )
    of_both, of_alone = (
        f(KEY, network, PARAMS, fixed, DATA, jnp.int32(3), config)[1] for f in (both, alone)
    )
    np.testing.assert_allclose(of_both["loss"], 0.25 * of_alone["loss"] + added, rtol=1e-6)
    np.testing.assert_allclose(of_both["judge_loss"], of_alone["judge_loss"], rtol=1e-6)

    recipe = losses.Recipe(both, {}, inner.target_decay, distils=inner.distils)
    train_step = trainer.make_train_step(
        recipe, network, optax.sgd(0.1), config, teacher=teacher if inner.distils else None
    )
    _, metrics = train_step(train_step.init(KEY, PARAMS), DATA)
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("lowest", [0.001, 80.0, float("nan")])
def test_a_lowest_level_outside_the_schedulers_is_refused(lowest):
    with pytest.raises(
        ValueError, match=r"lowest must be a noise level between 0\.002 and 80\.0, got "
    ):
        losses.adversarial_loss(judge, lowest=lowest)(KEY, network, PARAMS, None, DATA, 0, CONFIG)


def test_the_example_trains_its_parts_alone_and_goes_on(tmp_path):
    network = UNet2DConfig(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        down_block_types=("ResnetDownsampleBlock2D",),
        up_block_types=("ResnetUpsampleBlock2D",),
        norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=10,
        patch_size=2,
    )
    first = Model(*from_nnx(UNet2D(network, rngs=nnx.Rngs(0))), SCHEDULER, network)
    cmjax.save(tmp_path / "first", first)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 28, 28), np.uint8)
    np.savez(tmp_path / "data.npz", x_train=images, y_train=rng.integers(0, 10, 64))
    main = runpy.run_path(str(Path(__file__).parents[2] / "examples/adversarial_digits.py"))["main"]
    options = f"{tmp_path}/data.npz --out {tmp_path}/run --init {tmp_path}/first --parts conv_norm_out,conv_out"
    for steps in (2, 3):
        with jax.numpy_dtype_promotion("standard"):
            result = CliRunner().invoke(
                main, [*options.split(), "--steps", str(steps)], catch_exceptions=False
            )
        assert result.exit_code == 0 and f"Step {steps} of {steps}" in result.output
    finished = cmjax.load(tmp_path / "run/model").params
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), first.params, finished)
    assert all(jax.tree.leaves(moved.pop("conv_out"))) and all(
        jax.tree.leaves(moved.pop("conv_norm_out"))
    )
    assert moved and not any(jax.tree.leaves(moved))
