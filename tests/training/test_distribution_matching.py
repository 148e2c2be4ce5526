"""Distribution matching distillation: against the authors' code, and on Gaussian data."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import cmjax
from cmjax import random, testing
from cmjax.parametrization import consistency_function
from cmjax.training import losses, reports, trainer
from cmjax.training.losses import DistributionMatchingParams
from cmjax.training.losses.base import Preview
from cmjax.training.losses.dropout import WithDropout
from tests.support.flow_maps import tiny, tiny_params
from tests.support.training import EDM, KEY, STD, evaluate

GOLDENS = np.load(Path(__file__).parent.parent / "golden" / "distribution_matching.npz")
MEAN = 0.3
TRUTH = {"mean": jnp.float32(MEAN), "std": jnp.float32(STD)}
BATCH = {"data": jnp.zeros((512, 3))}  # only its shape counts


def gaussian_x0(params, x, sigma):
    """At sigma_max a sample of N(mean, std^2) from the noise, elsewhere its denoiser."""
    mean, std = params["mean"], params["std"]
    sample = mean + std * x / sigma
    denoised = (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)
    return jnp.where(sigma > 79.99, sample, denoised)


gaussian = testing.network_of(EDM.parametrization.without_boundary(), gaussian_x0)


def exact(**changes):
    """Parameters of a network, and of the exact denoiser of its samples."""
    params = {**TRUTH, **changes}
    return DistributionMatchingParams(params, params)


@pytest.mark.parametrize("term", ["matching", "fake"])
def test_losses_equal_those_of_the_authors_code(term):
    """See make_distribution_matching_goldens.py."""

    def network(params, x, t, class_labels):
        return tiny(params, x, t / 250, t / 250, class_labels)

    given = {
        name: jnp.asarray(GOLDENS[name], jnp.float32)
        for name in ("generated", "noise", "sigma")
    }
    cond = {"class_labels": jnp.asarray(GOLDENS["labels"])}
    fake, teacher = (
        jax.tree.map(lambda leaf, f=f: f * leaf, tiny_params()) for f in (0.9, 0.8)
    )
    loss = losses.DistributionMatching(EDM)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def at(fake, generated):
        params = DistributionMatchingParams(None, fake)
        draws = (generated, given["noise"], given["sigma"], cond)
        if term == "matching":
            return loss.matching_loss(network, params, teacher, *draws)
        return loss.fake_loss(network, params, *draws)

    found, (by_fake, by_generated) = at(fake, given["generated"])
    assert found == pytest.approx(float(GOLDENS[f"{term}/loss"]), rel=1e-5)
    if term == "matching":
        expected = GOLDENS["matching/generated"]
        tolerance = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(by_generated, expected, rtol=1e-5, atol=tolerance)
        chex.assert_trees_all_equal(by_fake, jax.tree.map(jnp.zeros_like, by_fake))
    else:
        for name in ("gain", "shift"):
            np.testing.assert_allclose(
                by_fake[name], GOLDENS[f"fake/{name}"], rtol=1e-5, atol=1e-6
            )
        np.testing.assert_array_equal(by_generated, jnp.zeros_like(by_generated))


@pytest.mark.parametrize("name, factor", [("mean", 0.1), ("std", 0.1)])
def test_the_gradient_vanishes_only_where_the_samples_are_the_teachers(name, factor):
    loss = losses.DistributionMatching(EDM, fake_steps=1, teacher_fn=gaussian)

    @jax.jit
    @jax.grad
    def gradient(value):
        # The fake denoiser is exact for the samples, wherever the network is.
        network = {**TRUTH, name: value}
        params = DistributionMatchingParams(network, jax.lax.stop_gradient(network))
        return evaluate(loss, gaussian, params, BATCH, teacher=TRUTH)[1]["loss"]

    value = TRUTH[name]
    low, at_truth, high = (float(gradient(value + d)) for d in (-factor, 0.0, factor))
    assert low < 0 < high
    # Teacher and fake denoiser are the same function there, so that nothing is left to round.
    assert at_truth == 0


def test_each_network_is_trained_by_its_own_term_and_the_network_at_its_turn():
    loss = losses.DistributionMatching(EDM, fake_steps=3, teacher_fn=gaussian)
    params = exact(std=jnp.float32(0.5))

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(params, step):
        return evaluate(loss, gaussian, params, BATCH, teacher=TRUTH, step=step)

    for step in range(6):
        by, metrics = gradient(params, step)
        is_turn = step % 3 == 2
        assert bool(by.network["std"] != 0) == is_turn
        assert by.fake["std"] != 0
        assert bool(metrics["loss"] > 0) == is_turn
        assert metrics["fake_loss"] > 0

    # What the network's term says of the fake denoiser is not its gradient.
    other = params._replace(fake={**params.fake, "std": params.fake["std"] * 1.2})
    alone, _ = gradient(other, 0)
    together, _ = gradient(other, 2)
    np.testing.assert_allclose(together.fake["std"], alone.fake["std"], rtol=1e-5)


def test_training_ends_at_the_teachers_moments():
    loss = losses.DistributionMatching(EDM, fake_steps=2, teacher_fn=gaussian)
    train_step = trainer.make_train_step(
        loss, gaussian, optax.adam(0.01), teacher=TRUTH, ema_decays=(0.98,)
    )
    start = {"mean": jnp.float32(-0.4), "std": jnp.float32(0.3)}
    state = train_step.init(KEY, start)

    @jax.jit
    def run(state):
        return jax.lax.scan(lambda s, _: train_step(s, BATCH), state, length=600)

    state, _ = run(state)
    for params in (state.ema[0].network, state.ema[0].fake):
        # The last steps of a run vary by about a hundredth.
        assert float(params["mean"]) == pytest.approx(MEAN, abs=0.03)
        assert float(params["std"]) == pytest.approx(STD, abs=0.03)

    # The network alone is what samplers get.
    network = loss.network_params(state.ema[0])
    x0 = cmjax.sample(KEY, gaussian, network, EDM, (4096, 3))
    assert float(x0.std()) == pytest.approx(STD, abs=0.04)


def test_the_networks_optimizer_is_called_at_its_turns_alone():
    # One optimizer for both would count the steps in between, as gradients of 0.
    loss = losses.DistributionMatching(EDM, fake_steps=3, teacher_fn=gaussian)
    lengths = []

    def make(num_steps):
        lengths.append(num_steps)
        return optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))

    optimizer = loss.make_optimizer(make, num_steps=7)
    assert sorted(lengths) == [2, 7]
    train_step = trainer.make_train_step(loss, gaussian, optimizer, teacher=TRUTH)
    state = train_step.init(KEY, {**TRUTH, "std": jnp.float32(0.4)})

    def distance(first, second):
        (after, _), (before, _) = ravel_pytree(first), ravel_pytree(second)
        return float(jnp.linalg.norm(after - before))

    moves = []
    for _ in range(6):
        before = jax.tree.map(jnp.copy, state.params)
        state, _ = train_step(state, BATCH)
        moves.append(distance(state.params.network, before.network))
        assert distance(state.params.fake, before.fake) == pytest.approx(1e-3, rel=1e-3)

    # Each gradient is clipped by itself, at its full length.
    expected = [0, 0, 1e-3] * 2
    np.testing.assert_allclose(moves, expected, rtol=1e-3, atol=0)


def test_the_networks_optimizer_sees_the_loss_and_no_step_between_its_turns():
    # A gradient of 0 is NaN to some optimizers, as to Adam without its epsilon.
    loss = losses.DistributionMatching(EDM, fake_steps=2, teacher_fn=gaussian)

    def follow(updates, state, params=None, *, value, **further):
        norm = jnp.linalg.norm(ravel_pytree(updates)[0])
        return jax.tree.map(lambda update: -1e-3 * update / norm, updates), value

    optimizer = loss.make_optimizer(
        lambda _: optax.GradientTransformationExtraArgs(lambda _: jnp.zeros(()), follow), 4
    )
    train_step = trainer.make_train_step(loss, gaussian, optimizer, teacher=TRUTH)
    state = train_step.init(KEY, {**TRUTH, "std": jnp.float32(0.4)})
    stds = []
    for _ in range(4):
        state, _ = train_step(state, BATCH)
        stds.append(float(state.params.network["std"]))
    assert stds[0] == pytest.approx(0.4) and stds[2] == stds[1]
    assert len(set(stds)) == 3 and np.all(np.isfinite(stds))


def test_the_network_must_have_a_turn():
    loss = losses.DistributionMatching(EDM, fake_steps=5)
    with pytest.raises(ValueError, match="fake_steps must be at most .* 4, got 5"):
        loss.make_optimizer(lambda _: optax.adam(1e-3), 4)


def test_calls_see_what_the_sampler_makes():
    sigmas = (80.0, 2.5, 0.7)
    loss = losses.DistributionMatching(EDM, sigmas=sigmas)
    apply_fn, params = testing.gaussian_consistency_model(EDM, MEAN, STD)
    data = jnp.zeros((48, 3))
    found, sigma = jax.jit(partial(loss.call_inputs, apply_fn=apply_fn, cond={}))(
        KEY, network=params, data=data
    )

    # The first of the sampler's levels is the noise itself.
    sample_key, _ = random.split(KEY)
    state = EDM.set_timesteps(sigmas=sigmas)
    _, first = EDM.init(sample_key, state, data.shape)
    _, trajectory = cmjax.sample(
        sample_key, apply_fn, params, EDM, data.shape, sigmas=sigmas, return_trajectory=True
    )
    seen = [first, *trajectory.prev_sample[:-1]]
    for level, x in zip(sigmas, seen, strict=True):
        rows = np.flatnonzero(np.isclose(sigma, level))
        assert 5 < len(rows) < 30
        np.testing.assert_allclose(found[rows], x[rows], rtol=1e-5, atol=1e-5)

    # And what a call makes of it is of the data.
    x0 = consistency_function(apply_fn, params, EDM, found, sigma)
    assert float(x0.mean()) == pytest.approx(MEAN, abs=0.3)


def test_pictures_are_drawn_at_the_levels_that_are_trained(tmp_path, monkeypatch):
    loss = losses.DistributionMatching(EDM, sigmas=(80.0, 2.5))
    model = SimpleNamespace(
        apply_fn=None,
        params=None,
        config=None,
        scheduler=EDM,
        num_classes=None,
        sample_shape=(4, 4, 1),
        picture_shape=(4, 4, 1),
        decode=lambda samples, batch_size: samples,
    )
    run = SimpleNamespace(
        model_of=lambda params: model,
        train_step=SimpleNamespace(loss=loss),
        config=SimpleNamespace(run=SimpleNamespace(ema_decays=(0.9,))),
    )
    drawn = []

    def sample(key, apply_fn, params, scheduler, shape, **options):
        drawn.append(options["sigmas"])
        return jnp.zeros(shape)

    monkeypatch.setattr(reports, "sample", sample)
    state = SimpleNamespace(step=3, ema=(None,))
    assert reports.save_samples(run, state, tmp_path / "x.png")
    assert drawn == [(80.0, 2.5)]


def test_it_is_an_inner_loss_of_the_adversarial_one():
    def discriminator(params, x):
        return params * jnp.mean(jnp.square(x), axis=1)

    inner = losses.DistributionMatching(EDM, fake_steps=1, teacher_fn=gaussian)
    loss = losses.Adversarial(EDM, discriminator, inner)
    train_step = trainer.make_train_step(loss, gaussian, optax.sgd(0.01), teacher=TRUTH)
    start = losses.AdversarialParams({**TRUTH, "std": jnp.float32(0.4)}, jnp.float32(0.1))
    before = train_step.init(KEY, start).params
    state, metrics = train_step(
        train_step.init(KEY, start), {"data": jax.random.normal(KEY, (64, 3))}
    )
    assert all(np.isfinite(value) for value in metrics.values())
    moved = jax.tree.map(lambda a, b: bool(a != b), state.params, before)
    assert all(jax.tree.leaves(moved))
    assert loss.network_params(state.params).keys() == TRUTH.keys()


def test_no_sample_of_the_teachers_own_leads_to_nan():
    # Where the teacher returns the sample itself, there is no distance to divide by.
    zero = {"mean": jnp.float32(0), "std": jnp.float32(0)}
    loss = losses.DistributionMatching(EDM, fake_steps=1, teacher_fn=gaussian)
    params = DistributionMatchingParams(zero, zero)
    found, metrics = evaluate(loss, gaussian, params, BATCH, teacher=zero)
    assert np.isfinite(found) and metrics["loss"] == 0


@pytest.mark.parametrize(
    "sigmas",
    [(), 80.0, "80", (2.5, 80.0), (80.0, 80.0), (90.0,), (80.0, 0.001), (float("nan"),)],
)
def test_levels_that_no_sampler_can_take_are_refused(sigmas):
    with pytest.raises(ValueError, match="sigmas must"):
        losses.DistributionMatching(EDM, sigmas=sigmas)


def test_levels_are_compared_in_float32_as_samplers_do():
    # float32's 14.6 is above Python's.
    scheduler = cmjax.CMStochasticIterativeScheduler(sigma_max=14.6)
    levels = scheduler.set_timesteps(2).sigmas[:-1]
    loss = losses.DistributionMatching(scheduler, sigmas=levels)
    np.testing.assert_array_equal(jnp.float32(loss.sigmas), levels)
    with pytest.raises(ValueError, match="sigmas must be strictly descending"):
        losses.DistributionMatching(EDM, sigmas=(80.0, 79.9999999))


def test_levels_that_are_traced_are_refused():
    with pytest.raises(ValueError, match="sigmas must be known when the loss is made"):
        jax.eval_shape(lambda s: losses.DistributionMatching(EDM, sigmas=s), jnp.ones(2))


@pytest.mark.parametrize("scheduler", [cmjax.EDMHeunScheduler(), cmjax.CTMScheduler()])
def test_schedulers_of_other_networks_are_refused(scheduler):
    with pytest.raises(ValueError, match="scheduler must sample consistency models of one"):
        losses.DistributionMatching(scheduler)


def test_the_calls_before_are_without_dropout():
    def network(params, x, t, dropout_key=None):
        return params * x if dropout_key is None else jnp.full_like(x, jnp.nan)

    loss = losses.DistributionMatching(EDM, sigmas=(80.0, 2.5))
    data = jnp.zeros((8, 3))
    apply_fn = WithDropout(network, KEY)
    found = loss.call_inputs(KEY, apply_fn, jnp.float32(0.5), data, {})
    expected = loss.call_inputs(KEY, network, jnp.float32(0.5), data, {})
    chex.assert_trees_all_equal(found, expected)


@pytest.mark.parametrize("sigmas", [None, (80.0, 2.5)])
def test_devices_of_a_mesh_share_the_work_although_data_enter_no_sample(sigmas):
    loss = losses.DistributionMatching(EDM, sigmas=sigmas, fake_steps=1)
    batch = {"data": np.zeros((64, 3), np.float32)}

    def run(mesh):
        step = trainer.make_train_step(
            loss, lambda w, x, t: x @ w, optax.sgd(0.1), mesh=mesh, teacher=jnp.eye(3) / 2
        )
        state = step.init(KEY, jnp.eye(3))
        compiled = step.lower(state, batch).compile()
        return compiled.cost_analysis()["flops"], step(state, batch)[1]

    alone, expected = run(None)
    shared, metrics = run(trainer.data_mesh())
    assert shared < alone / 6
    chex.assert_trees_all_close(metrics, expected, rtol=1e-5)


def test_parameters_that_were_not_prepared_are_refused():
    loss = losses.DistributionMatching(EDM, teacher_fn=gaussian)
    with pytest.raises(ValueError, match=r"pass params=loss\.prepare_params\(params\)"):
        evaluate(loss, gaussian, TRUTH, BATCH, teacher=TRUTH)


def test_parameters_of_an_earlier_run_are_kept():
    loss = losses.DistributionMatching(EDM, teacher_fn=gaussian)
    params = DistributionMatchingParams({"std": 1.0}, {"std": 2.0})
    assert loss.prepare_params(params) == params


def test_a_file_gives_levels_as_a_list():
    made = losses.make("dmd", EDM, total_steps=10, sigmas=[80, 2.5], fake_steps=2)
    assert made == losses.DistributionMatching(EDM, sigmas=(80.0, 2.5), fake_steps=2)
    assert made.preview == Preview((2,), sigmas=(80.0, 2.5))
    assert losses.DistributionMatching(EDM).preview == Preview((1,))
