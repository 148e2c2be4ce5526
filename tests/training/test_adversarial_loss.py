"""The adversarial loss against float64 arithmetic by hand, and on data whose law is known."""

import runpy
from pathlib import Path

import chex
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
from tests.support.flow_maps import CTM, gaussian_trajectory
from tests.support.training import EDM, STD, evaluate, finite_differences, value, wide

KEY = jax.random.key(5)
DATA = {
    "data": 0.3 * jax.random.normal(jax.random.key(1), (8, 3)),
    "shift": jnp.linspace(-1, 1, 8),
}
PARAMS = losses.AdversarialParams(
    {"a": jnp.float32(0.7), "b": jnp.float32(0.2)},
    {"u": jnp.array([0.5, -1.0, 2.0]), "v": jnp.float32(0.6)},
)


def network(params, x, t, shift, xp=jnp):
    return xp.tanh(params["a"] * x) + params["b"] * shift[:, None] * t[:, None] / 1000


def discriminator(params, x, shift, xp=jnp):
    return xp.tanh(x @ params["u"]) * params["v"] + shift


def reference(network_params, discriminator_params, sigma):
    """Returns (the network's loss, the discriminator's), drawn from KEY as the loss draws.

    With gradient penalty 0.5 and instance noise 0.1.
    """
    _, _, noise_key, real_key, fake_key = jax.random.split(KEY, 5)
    noise, real_noise, fake_noise = (
        np.asarray(jax.random.normal(key, (8, 3)), np.float64)
        for key in (noise_key, real_key, fake_key)
    )
    x, shift = np.asarray(DATA["data"], np.float64), np.asarray(DATA["shift"], np.float64)

    # A single call of the network.
    noisy = x + sigma[:, None] * noise
    lifted = sigma - 0.002
    c_skip, c_out = 0.25 / (lifted**2 + 0.25), 0.5 * lifted / np.sqrt(sigma**2 + 0.25)
    scaled = noisy / np.sqrt(sigma**2 + 0.25)[:, None]
    output = network(network_params, scaled, 250 * np.log(sigma), shift, np)
    real = x + 0.1 * real_noise
    fake = c_skip[:, None] * noisy + c_out[:, None] * output + 0.1 * fake_noise

    gap = discriminator(discriminator_params, real, shift, np) - discriminator(
        discriminator_params, fake, shift, np
    )
    u, v = discriminator_params["u"], discriminator_params["v"]
    slope = (1 - np.tanh(real @ u) ** 2)[:, None] * v * u
    penalty = 0.5 / 2 * np.mean(np.sum(slope**2, axis=1))
    return np.mean(np.log1p(np.exp(gap))), np.mean(np.log1p(np.exp(-gap))) + penalty


def levels():
    """The first half at sigma_max; the others on the Karras grid of 80 to 0.7."""
    ramp_key, _ = jax.random.split(jax.random.split(KEY, 5)[1])
    ramp = np.asarray(jax.random.uniform(ramp_key, (8,)), np.float64)
    ramp[:4] = 0
    return (80 ** (1 / 7) + ramp * (0.7 ** (1 / 7) - 80 ** (1 / 7))) ** 7


def test_values_and_gradients_are_those_of_the_papers_and_do_not_mix():
    loss = losses.Adversarial(
        EDM, discriminator, gradient_penalty=0.5, instance_noise=0.1, lowest_sigma=0.7
    )
    sigma = levels()
    assert sigma[4:].min() > 0.7 and np.ptp(sigma[4:]) > 1

    at = jax.jit(
        jax.value_and_grad(
            lambda p: evaluate(loss, network, p, DATA, key=KEY), has_aux=True
        )
    )
    (_, metrics), gradient = at(PARAMS)
    net, disc = wide(PARAMS)
    found = [metrics["loss"], metrics["discriminator_loss"]]
    np.testing.assert_allclose(found, reference(net, disc, sigma), rtol=1e-5)

    # The parameters of each move its own loss alone.
    expected = losses.AdversarialParams(
        finite_differences(lambda p: reference(p, disc, sigma)[0], net),
        finite_differences(lambda p: reference(net, p, sigma)[1], disc),
    )
    for ours, theirs in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-6)


def test_one_call_learns_the_law_of_the_data():
    """From the wrong mean and spread, by a discriminator of means and squares alone."""

    def moments(params, x):
        return x[:, 0] * params["first"] + jnp.square(x[:, 0]) * params["second"]

    apply_fn, start = gaussian_consistency_model(EDM, mean=-0.2, std=0.3)
    zero = jnp.zeros(())
    loss = losses.Adversarial(
        EDM, moments, gradient_penalty=0.05, instance_noise=0.0, lowest_sigma=20.0
    )
    optimizer = optax.adam(1e-2, b1=0.0)
    train_step = trainer.make_train_step(loss, apply_fn, optimizer, ema_decays=(0.98,))

    @jax.jit
    def train(state):
        def body(state, step):
            noise = jax.random.normal(jax.random.fold_in(KEY, step), (512, 1))
            return train_step(state, {"data": 0.3 + 0.5 * noise})[0], None

        return jax.lax.scan(body, state, jnp.arange(600))[0]

    with jax.numpy_dtype_promotion("standard"):  # optax's Adam itself mixes dtypes
        params = losses.AdversarialParams(start, {"first": zero, "second": zero})
        state = train(train_step.init(KEY, params))
    learned = loss.network_params(state.ema[0])
    np.testing.assert_allclose((learned["mean"], learned["std"]), (0.3, 0.5), atol=0.04)
    x = cmjax.sample(KEY, apply_fn, learned, EDM, (4000, 1), num_inference_steps=1)
    np.testing.assert_allclose((jnp.mean(x), jnp.std(x)), (0.3, 0.5), atol=0.06)


@pytest.mark.parametrize("name", ["ect", "cd", "sct"])
def test_an_inner_loss_is_added_and_gets_the_networks_alone(name):
    inner = losses.make(name, EDM, total_steps=100)
    both = losses.Adversarial(EDM, discriminator, inner, weight=0.25)
    alone = losses.Adversarial(EDM, discriminator)
    params = both.prepare_params(PARAMS)
    target = both.prepare_params(
        losses.AdversarialParams({"a": jnp.float32(0.5), "b": jnp.float32(0.1)}, PARAMS[1])
    )
    teacher = {"a": jnp.float32(-0.6), "b": jnp.float32(0.4)} if name == "cd" else None

    added = value(
        inner,
        network,
        params.network,
        DATA,
        target=target.network,
        teacher=teacher,
        step=3,
        key=jax.random.split(KEY, 5)[0],
    )
    of_both = evaluate(
        both, network, params, DATA, target=target, teacher=teacher, step=3, key=KEY
    )[1]
    of_alone = evaluate(alone, network, PARAMS, DATA, key=KEY)[1]
    np.testing.assert_allclose(of_both["loss"], 0.25 * of_alone["loss"] + added, rtol=1e-6)
    np.testing.assert_allclose(
        of_both["discriminator_loss"], of_alone["discriminator_loss"], rtol=1e-6
    )

    train_step = trainer.make_train_step(both, network, optax.sgd(0.1), teacher=teacher)
    _, metrics = train_step(train_step.init(KEY, PARAMS), DATA)
    assert all(np.isfinite(value) for value in metrics.values())


def test_trajectory_models_are_judged_by_their_jumps_to_the_data():
    """The exact jump of Gaussian data is their exact consistency function: the same samples."""
    apply_fn, gaussian = gaussian_consistency_model(EDM, mean=0.0, std=STD)

    def discriminator(params, x):
        return jnp.tanh(x @ params["u"])

    def metrics_of(scheduler, network, params):
        loss = losses.Adversarial(scheduler, discriminator, lowest_sigma=0.7)
        params = losses.AdversarialParams(params, PARAMS.discriminator)
        return evaluate(loss, network, params, {"data": DATA["data"]}, key=KEY)[1]

    expected = metrics_of(EDM, apply_fn, gaussian)
    found = metrics_of(CTM, gaussian_trajectory, jnp.float32(STD))
    chex.assert_trees_all_close(found, expected, rtol=1e-4)


def test_ctm_is_the_trajectory_loss_with_an_adversary():
    def two_times(params, x, t, s=None, shift=None):
        return network(params, x, t, shift) + (0.0 if s is None else s[:, None] / 500)

    inner = losses.ConsistencyTrajectory(CTM, target_decay=0.9)
    loss = losses.Adversarial(CTM, discriminator, inner, weight=0.25)
    train_step = trainer.make_train_step(
        loss, two_times, optax.sgd(0.1), teacher=PARAMS.network
    )
    state, metrics = train_step(train_step.init(KEY, PARAMS), DATA)
    assert all(np.isfinite(value) for value in metrics.values())
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), state.params, PARAMS)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("lowest", [0.001, 80.0, float("nan")])
def test_a_lowest_level_outside_the_schedulers_is_refused(lowest):
    with pytest.raises(
        ValueError,
        match=r"lowest_sigma must be a noise level between 0\.002 and 80\.0, got ",
    ):
        losses.Adversarial(EDM, discriminator, lowest_sigma=lowest)


@pytest.mark.thorough
def test_the_example_trains_its_parts_alone_and_resumes(tmp_path, monkeypatch):
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
    first = Model(*from_nnx(UNet2D(network, rngs=nnx.Rngs(0))), EDM, network)
    cmjax.save(tmp_path / "first", first)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 28, 28), np.uint8)
    np.savez(tmp_path / "data.npz", x_train=images, y_train=rng.integers(0, 10, 16))
    path = Path(__file__).parents[2] / "examples/adversarial_digits.py"
    main = runpy.run_path(str(path))["main"]
    monkeypatch.setitem(main.callback.__globals__, "BATCH_SIZE", 8)
    options = f"{tmp_path}/data.npz --out {tmp_path}/run --init {tmp_path}/first"
    options += " --parts conv_norm_out,conv_out"
    for steps in (2, 3):
        with jax.numpy_dtype_promotion("standard"):
            result = CliRunner().invoke(
                main, [*options.split(), "--steps", str(steps)], catch_exceptions=False
            )
        assert result.exit_code == 0 and f"Step {steps} of {steps}" in result.output
    finished = cmjax.load(tmp_path / "run/model").params
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), first.params, finished)
    assert all(jax.tree.leaves(moved.pop("conv_out")))
    assert all(jax.tree.leaves(moved.pop("conv_norm_out")))
    assert moved and not any(jax.tree.leaves(moved))
