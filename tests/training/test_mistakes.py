"""Wrong arguments of losses and of the training step: each is named before anything is trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cmjax
from cmjax import testing
from cmjax.guidance import autoguidance
from cmjax.networks import with_classes
from cmjax.parametrization import adapt, denoise, edm_denoiser
from cmjax.training import losses, trainer
from tests.support.flow_maps import SCHEDULERS
from tests.support.training import EDM, KEY, value

DATA = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
GAIN = jnp.float32(0.5)
LOSSES = {
    name: losses.make(name, SCHEDULERS.get(name, EDM), total_steps=100)
    for name in losses.LOSSES
    if name not in ("sct", "scd")
}
LOSSES["sct"] = losses.SimplifiedConsistencyTraining(cmjax.SCMScheduler())
LOSSES["scd"] = losses.SimplifiedConsistencyDistillation(EDM)


class Tensor:
    """What errors know of a tensor of PyTorch."""

    __module__ = "torch"

    def __init__(self, array):
        self.dtype = f"torch.{array.dtype}"
        self.shape = array.shape


def network(params, x, *times):
    return params * x


def loss_of(name, batch, apply_fn=network):
    """Returns the loss without computing it: its shapes say what is wrong."""
    return jax.eval_shape(
        lambda params: value(
            LOSSES[name],
            apply_fn,
            LOSSES[name].prepare_params(params),
            batch,
            teacher=params,
        ),
        GAIN,
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "batch, message",
    [
        (
            {"data": (DATA * 255).astype(np.uint8)},
            r"\['data'\] must be floats.*uint8\[4, 3",
        ),
        ({"data": DATA.astype(np.int32)}, "must be floats .* got int32"),
        ({"data": DATA.tolist()}, "must be floats .* got list"),
        ({"data": np.float32(1)}, r"must be floats .* got float32\[\]"),
        ({"labels": DATA}, r"mapping with \"data\", got \['labels'\]"),
        (DATA, "mapping with \"data\", got 'ndarray'"),
        ({"data": DATA, "labels": np.zeros(1, int)}, r"\['labels'\] .* each of 4 samples"),
        (
            {"data": DATA, "scale": 2.0},
            r"batch\['scale'\] must have one value for each of 4",
        ),
        ({"data": DATA[:0]}, r"batch\['data'\] must be .* at least 1, got shape \(0, 3\)"),
        ({"data": DATA[:, :0]}, r"batch\['data'\] must be .* at least 1, got shape \(4, 0"),
        ({"data": Tensor(DATA)}, r"must be floats .* which becomes an array by .numpy\(\)"),
        ({"data": np.ma.masked_array(DATA)}, "must be floats .* got a masked array, which"),
        ({"data": DATA.astype(">f4")}, "must be floats .* got >f4"),
        (
            {"data": DATA, "labels": np.array(list("abcd"))},
            r"batch\['labels'\] must be an array of numbers.* got <U1\[4\]",
        ),
        (
            {"data": DATA, "labels": ["a", "b", "c", "d"]},
            r"batch\['labels'\] must be an array of numbers.* got str",
        ),
        ({"data": DATA, "labels": Tensor(DATA)}, r"\['labels'\] .* array by .numpy\(\)"),
        ({"data": DATA, 0: DATA}, "batch must map names to arrays, got the name 0"),
    ],
)
def test_batches(name, batch, message):
    with pytest.raises(ValueError, match=message):
        loss_of(name, batch)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "apply_fn",
    [
        lambda params, x, *times: params * x.mean(-1, keepdims=True),
        lambda params, x, *times: params,
        lambda params, x, *times: params * x[:1],
    ],
    ids=["one number per sample", "one number", "one sample"],
)
def test_networks_whose_output_would_be_broadcast(name, apply_fn):
    with pytest.raises(ValueError, match="model_output"):
        loss_of(name, {"data": DATA}, apply_fn)


@pytest.mark.parametrize("name", ["cd", "ct", "ict", "ect"])
@pytest.mark.parametrize(
    "metric",
    [
        lambda a, b: jnp.square(a - b),
        lambda a, b: jnp.mean(jnp.square(a - b)),
        lambda a, b: jnp.square(a - b).mean(-1, keepdims=True),
        lambda a, b: (a > b).any(-1),
        lambda a, b: None,
    ],
)
def test_metrics(name, metric):
    loss = dataclasses.replace(LOSSES[name], metric=metric)
    with pytest.raises(ValueError, match=r"metric must return a number per sample, f32\[4"):
        value(loss, network, GAIN, {"data": DATA}, teacher=GAIN)


@pytest.mark.parametrize(
    "discriminator",
    [lambda p, x: x.mean(), lambda p, x: p * x.mean(-1, keepdims=True), lambda p, x: x],
)
def test_discriminators(discriminator):
    loss = losses.Adversarial(EDM, discriminator)
    params = losses.AdversarialParams(GAIN, GAIN)
    with pytest.raises(
        ValueError, match="discriminator_fn must return a number per sample"
    ):
        value(loss, network, params, {"data": DATA})
    with pytest.raises(ValueError, match="params must be losses.AdversarialParams"):
        value(loss, network, GAIN, {"data": DATA})


@pytest.mark.parametrize("total_steps", [0, -5, "x", float("nan"), 1.5, None])
@pytest.mark.parametrize("name", ["ct", "ict", "ect"])
def test_lengths_of_runs(name, total_steps):
    with pytest.raises(ValueError, match="total_steps must be an integer of at least 1"):
        losses.make(name, EDM, total_steps=total_steps)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: losses.Denoising(type(EDM)), "scheduler must be an instance.*the class"),
        (lambda: losses.Denoising(None), "scheduler must have sigma_data"),
        (lambda: losses.ConsistencyDistillation(EDM, teacher_fn=3), "teacher_fn must be a"),
        (
            lambda: losses.ConsistencyTraining(EDM, 9, initial_levels=5, final_levels=4),
            "final_levels must be at least initial_levels=5, got 4",
        ),
        (lambda: losses.Adversarial(EDM, 3), "discriminator_fn must be a function, got 3"),
        (lambda: losses.Adversarial(EDM, network, inner="cd"), "inner must be a Loss or"),
        (
            lambda: losses.Adversarial(EDM, network, lowest_sigma="x"),
            "lowest_sigma must be",
        ),
    ],
)
def test_fields_of_losses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def make_step(loss=LOSSES["denoising"], apply_fn=network, optimizer=None, **options):
    optimizer = optax.sgd(0.1) if optimizer is None else optimizer
    return trainer.make_train_step(loss, apply_fn, optimizer, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"optimizer": "adam"}, "optimizer must be a transformation of optax.*got 'adam'"),
        ({"optimizer": optax.adam}, "optimizer must be a transformation of optax"),
        ({"apply_fn": None}, "apply_fn must be a function"),
        ({"accumulate": 1.5}, "accumulate must be an integer of at least 1, got 1.5"),
        ({"accumulate": True}, "accumulate must be an integer of at least 1, got True"),
        ({"accumulate": 10**5000}, "accumulate must be at most 2147483647, got <int>"),
        ({"ema_decays": 0.99}, r"ema_decays must be numbers in \[0, 1\).*got 0.99"),
        ({"ema_decays": ["x"]}, "ema_decays must be numbers"),
        ({"ema_decays": [float("nan")]}, "ema_decays must be numbers"),
        ({"mesh": "cpu"}, "mesh must be a jax.sharding.Mesh or None, got 'cpu'"),
    ],
)
def test_arguments_of_the_training_step(options, message):
    with pytest.raises(ValueError, match=message):
        make_step(**options)


@pytest.mark.parametrize(
    "params, message",
    [
        ({}, "params holds no arrays"),
        (None, "params holds no arrays"),
        ({"a": jnp.ones(2), "b": jnp.arange(3)}, r"params\['b'\] must be .* got int32"),
        ({"a": "x"}, r"params\['a'\] must be an array of floats, got str"),
    ],
)
def test_parameters(params, message):
    with pytest.raises(ValueError, match=message):
        make_step().init(KEY, params)


def test_states_and_batches_of_the_training_step():
    train_step = make_step()
    state = train_step.init(KEY, GAIN)
    with pytest.raises(ValueError, match="state must be a TrainState, from init, got dict"):
        train_step({"step": 0}, {"data": DATA})
    with pytest.raises(ValueError, match="batch must be a mapping"):
        train_step(state, DATA)
    with pytest.raises(ValueError, match=r"batch\['data'\] must be floats .* uint8"):
        train_step(state, {"data": DATA.astype(np.uint8)})


@pytest.mark.parametrize(
    "labels", [[3, 0, 1, 2], [0, -1, 1, 2], [0, 2**32, 1, 2], DATA[:, 0]]
)
def test_labels_that_are_no_classes_of_the_network(labels):
    train_step = make_step(apply_fn=with_classes(lambda p, x, t, class_labels: p * x, 3))
    batch = {"data": DATA, "class_labels": np.asarray(labels)}
    with pytest.raises(ValueError, match=r"batch\['class_labels'\]"):
        train_step.shard(batch)


@pytest.mark.parametrize(
    "result, message",
    [
        (lambda x: x.mean(), r"must return \(loss, metrics\)"),
        (lambda x: (x.mean(), x.mean()), r"must return \(loss, metrics\)"),
        (lambda x: (x.mean(-1), {}), r"must return numbers, got loss of \(4,\)"),
        (lambda x: (x.mean(), {"a": x}), r"got metrics\['a'\] of \(4, 3\)"),
        (lambda x: (None, {}), "got loss of NoneType"),
    ],
)
def test_what_a_loss_returns(result, message):
    def loss(key, apply_fn, params, frozen, batch, step):
        return result(params * batch["data"])

    train_step = make_step(loss)
    with pytest.raises(ValueError, match=message):
        train_step(train_step.init(KEY, GAIN), {"data": DATA})


def test_dropout_of_networks_that_have_none():
    train_step = make_step(dropout=True)
    state = train_step.init(KEY, GAIN)
    with pytest.raises(
        ValueError, match="with dropout_key=, a key, which this one does not"
    ):
        train_step(state, {"data": DATA})


@pytest.mark.parametrize("name", LOSSES)
def test_frozen_parameters_that_are_missing(name):
    # In a training loop of the user's own. Which losses have a target, docs/losses.md says.
    loss = LOSSES[name]

    def compute(params, frozen):
        trained = loss.prepare_params(params)
        batch = {"data": jnp.asarray(DATA)}
        return loss(KEY, network, trained, frozen, batch, jnp.int32(3))[0]

    if loss.needs_teacher:
        with pytest.raises(ValueError, match=r"frozen.teacher is None, .* Frozen\(teacher"):
            jax.eval_shape(compute, GAIN, losses.Frozen(target=GAIN))
    without_target = (
        "denoising",
        "progressive",
        "flow_matching",
        "mean_flow",
        "imf",
        "dmd",
    )
    if name not in without_target:
        frozen = losses.Frozen(teacher=GAIN)
        with pytest.raises(ValueError, match=r"frozen.target is None, .* Frozen\(target="):
            jax.eval_shape(compute, GAIN, frozen)


def test_a_state_that_an_earlier_step_has_taken():
    step = trainer.make_train_step(losses.Denoising(EDM), network, optax.sgd(0.1))
    state = step.init(KEY, GAIN)
    batch = {"data": DATA}
    step(state, batch)
    with pytest.raises(
        ValueError, match="state was given to an earlier step, which reuses"
    ):
        step(state, batch)


def test_parameters_in_place_of_frozen_ones():
    loss = LOSSES["ect"]
    with pytest.raises(ValueError, match="frozen must be a Frozen, such as Frozen"):
        loss(KEY, network, GAIN, {"w": GAIN}, {"data": jnp.asarray(DATA)}, jnp.int32(0))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "key, message",
    [
        (jax.random.split(KEY, 3), r"must be one key, got keys of shape \(3,\)"),
        (0, r"must be a JAX PRNG key, got 0; make one with jax.random.key\(0\)"),
    ],
    ids=["several", "number"],
)
def test_keys_of_losses(name, key, message):
    # In a training loop of the user's own.
    loss = LOSSES[name]
    params = loss.prepare_params(GAIN)
    frozen = losses.Frozen(params, GAIN)
    with pytest.raises(ValueError, match=message):
        loss(key, network, params, frozen, {"data": jnp.asarray(DATA)}, jnp.int32(3))


def test_several_keys_of_a_run():
    with pytest.raises(ValueError, match=r"must be one key, got keys of shape \(3,\)"):
        make_step().init(jax.random.split(KEY, 3), GAIN)


def test_targets_of_losses_with_further_parameters():
    def score(discriminator, x):
        return jnp.sum(x, axis=-1) * discriminator

    adversarial = losses.Adversarial(EDM, score, LOSSES["ect"])
    pair = losses.AdversarialParams(GAIN, GAIN)
    with pytest.raises(ValueError, match="frozen.target must be losses.AdversarialParams"):
        value(adversarial, network, pair, {"data": DATA}, target=GAIN)

    weighted = dataclasses.replace(LOSSES["sct"], adaptive_weight=True)
    params = weighted.prepare_params(GAIN)
    with pytest.raises(
        ValueError, match=r"loss.prepare_params\(params\) returns, as params and"
    ):
        value(weighted, network, params, {"data": DATA}, target=GAIN)
    inside = losses.Adversarial(EDM, score, dataclasses.replace(weighted, scheduler=EDM))
    with pytest.raises(ValueError, match="adaptive_weight=True trains a weighting"):
        value(inside, network, pair, {"data": DATA}, target=pair)


@pytest.mark.parametrize("name", ["adversarial", "dmd"])
def test_losses_of_pairs_without_frozen_parameters(name):
    loss = losses.Adversarial(EDM, network) if name == "adversarial" else LOSSES[name]
    params = losses.AdversarialParams(GAIN, GAIN)
    if name == "dmd":
        params = loss.prepare_params(GAIN)
    with pytest.raises(ValueError, match=r"frozen must be a Frozen, .* got NoneType"):
        loss(KEY, network, params, None, {"data": jnp.asarray(DATA)}, jnp.int32(3))


def test_an_inner_loss_for_another_scheduler():
    other = losses.Denoising(cmjax.CMStochasticIterativeScheduler(sigma_data=1.0))
    with pytest.raises(ValueError, match="inner must be a loss for networks of this loss"):
        losses.Adversarial(EDM, network, other)
    losses.Adversarial(EDM, network, losses.Denoising(dataclasses.replace(EDM, rho=5.0)))


@pytest.mark.parametrize("name", ["cd", "progressive", "scd", "continuous_cd", "dmd"])
def test_teachers_that_are_adapted_to_consistency_models(name):
    source = cmjax.EDMHeunScheduler()
    adapted = adapt(network, source, EDM, edm_denoiser)
    loss = dataclasses.replace(LOSSES[name], teacher_fn=adapted)
    message = (
        r"teacher_fn is adapted to something else .* pass teacher_fn=adapt\(network, source"
    )
    with pytest.raises(ValueError, match=message):
        value(loss, network, loss.prepare_params(GAIN), {"data": DATA}, teacher=GAIN)

    # So would be a denoiser in other terms, and a student that is the teacher's network too.
    other = dataclasses.replace(loss, teacher_fn=adapt(network, EDM, source, edm_denoiser))
    with pytest.raises(ValueError, match=message):
        value(other, network, loss.prepare_params(GAIN), {"data": DATA}, teacher=GAIN)
    own = dataclasses.replace(loss, teacher_fn=None)
    with pytest.raises(
        ValueError, match="apply_fn, the teacher's network too, is adapted to"
    ):
        value(own, adapted, loss.prepare_params(GAIN), {"data": DATA}, teacher=GAIN)

    # Guidance, and dropout that is left out, keep what the network was adapted to.
    guided = autoguidance(adapted, 2.0)
    loss = dataclasses.replace(loss, teacher_fn=guided)
    with pytest.raises(ValueError, match=message):
        value(
            loss, network, loss.prepare_params(GAIN), {"data": DATA}, teacher=(GAIN, GAIN)
        )


@pytest.mark.parametrize("scheduler", [EDM, cmjax.CTMScheduler(clip_denoised=False)])
def test_a_teacher_is_adapted_as_a_denoiser(scheduler):
    # The denoiser of N(0, 1/4), in EDM's terms and in those of the scheduler, to its lowest level.
    def denoiser(params, x, sigma):
        return 0.25 / (0.25 + sigma**2) * x

    source = cmjax.EDMHeunScheduler()
    own = testing.network_of(source.parametrization, denoiser)
    target = scheduler.parametrization.without_boundary()
    adapted = adapt(own, source, target, edm_denoiser)
    sigma = jnp.array([0.002, 0.0025, 0.02, 1.0, 80.0])
    x = jax.random.normal(KEY, (5, 3)) * sigma[:, None]
    found = denoise(adapted, None, target, x, sigma)
    np.testing.assert_allclose(
        found, denoiser(None, x, sigma[:, None]), rtol=1e-4, atol=1e-6
    )
