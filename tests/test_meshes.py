"""Divided as you like: explicit meshes, automatic ones and `jax.shard_map` equal one device."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import cmjax
from cmjax import categorical, editing, testing
from cmjax.generation import Request
from cmjax.generation.batches import BatchSampler
from cmjax.guidance import autoguidance
from cmjax.parametrization import adapt, denoise
from cmjax.parametrization.conversion import edm_denoiser
from cmjax.random import sample_keys
from cmjax.schedulers import SCHEDULERS
from cmjax.training import losses, trainer
from tests.support.autoencoders import TINY, autoencoder
from tests.support.draws import draws
from tests.support.flow_maps import FLOW_MAP
from tests.support.flow_maps import SCHEDULERS as FLOW_SCHEDULERS
from tests.support.networks import DIT, UNET, network, tiny_model
from tests.support.tiers import every_scheduler

CM = cmjax.CMStochasticIterativeScheduler()
KEY = jax.random.key(0)
SHAPE = (8, 4, 4, 1)
IMAGES = np.linspace(-1, 1, math.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
BIAS = np.linspace(0, 1, 8, dtype=np.float32)
PARAMS = jnp.float32(0.5)
UNCONDITIONAL = dataclasses.replace(UNET, num_class_embeds=None)
LONG_SKIPS = dataclasses.replace(DIT, num_layers=2, long_skips=True)


def mesh_of(kind, sizes=(4,), names=("data",)):
    axis_type = AxisType.Explicit if kind == "explicit" else AxisType.Auto
    return jax.make_mesh(sizes, names, axis_types=(axis_type,) * len(sizes))


def divided(mesh, tree, spec=P("data")):  # noqa: B008
    return jax.device_put(tree, NamedSharding(mesh, spec))


def toy(params, x, *times, bias=None):
    """Looks at one sample at a time, as networks under `jax.vmap` do."""

    def one(x, times, bias):
        shift = sum(1e-4 * t for t in times)
        return params * jnp.tanh(x) + shift + (0 if bias is None else bias)

    return jax.vmap(one)(x, times, bias)


def draw(keys, bias, scheduler=CM, **options):
    options = {"num_inference_steps": 3, "return_trajectory": True, **options}
    return cmjax.sample(keys, toy, PARAMS, scheduler, SHAPE, cond={"bias": bias}, **options)


@every_scheduler
def test_every_sampler_is_traced_on_an_explicit_mesh(name):
    scheduler = SCHEDULERS[name]()
    mesh = mesh_of("explicit")
    run = jax.jit(functools.partial(draw, scheduler=scheduler))
    keys = divided(mesh, sample_keys(KEY, 8))
    bias = divided(mesh, BIAS)
    cases = [(keys, bias), (keys, None), (KEY, bias)]
    for arguments in cases[: draws(len(cases))]:
        run.trace(*arguments)
        with jax.set_mesh(mesh):
            assert jax.typeof(run.eval_shape(*arguments)[0]).sharding.spec[0] == "data"


ONE_TIME = [name for name, kind in SCHEDULERS.items() if kind.num_times == 1]


@pytest.mark.parametrize("name", ONE_TIME)
def test_adapted_networks_are_traced_on_an_explicit_mesh(name):
    # Those of training times look their levels up in a table.
    keys = divided(mesh_of("explicit"), sample_keys(KEY, 8))
    for source, target in ((CM, SCHEDULERS[name]()), (SCHEDULERS[name](), CM)):
        adapted = adapt(toy, source, target, edm_denoiser)
        one_step = functools.partial(cmjax.sample, shape=SHAPE, num_inference_steps=1)
        run = jax.jit(one_step, static_argnums=(1, 3))
        found = run.eval_shape(keys, adapted, PARAMS, target)
        assert jax.typeof(found).sharding.spec[0] == "data"


@pytest.mark.parametrize("name", ["CMStochasticIterativeScheduler", "PNDMScheduler"])
def test_samples_and_parameters_along_different_axes(name):
    # Nothing but the arrays says what the mesh is, and PNDM remembers three estimates.
    mesh = mesh_of("explicit", (4, 2), ("data", "model"))
    keys = sample_keys(KEY, 8)
    params = jnp.linspace(0.1, 0.6, 6)

    def draw(keys, params):
        return cmjax.sample(
            keys,
            lambda params, x, t: params[None] * x,
            params,
            SCHEDULERS[name](),
            (8, 6),
            num_inference_steps=6,
        )

    found = draw(divided(mesh, keys), divided(mesh, params, P("model")))
    assert found.sharding.spec == P("data", "model")
    np.testing.assert_allclose(found, draw(keys, params), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["sample", "posterior"])
def test_arguments_on_different_devices_are_named(method):
    first, second = jax.devices()[:2]
    params = jax.device_put(PARAMS, first)
    bias = jax.device_put(jnp.asarray(BIAS), second)
    options = {"cond": {"bias": bias}, "num_inference_steps": 2}
    message = f"params on {first}.*; move them to the same by jax.device_put"
    with pytest.raises(ValueError, match=rf"cond on {second}.*{message}"):
        if method == "sample":
            cmjax.sample(KEY, toy, params, CM, SHAPE, **options)
        else:
            known = cmjax.constraints.inpaint(IMAGES, IMAGES > 0)
            editing.edit(KEY, toy, params, CM, known, SHAPE, method="posterior", **options)


def test_outside_of_programs_on_an_explicit_mesh():
    # Each call is a program of its own, without the caller's `jax.set_mesh`.
    mesh = mesh_of("explicit")
    keys = sample_keys(KEY, 8)

    def loop(keys):
        state, x = CM.init(keys, CM.set_timesteps(2), SHAPE)
        for _ in range(state.num_steps):
            model_output = CM.predict(toy, PARAMS, state, x)
            state, (x, _) = CM.step(keys, state, model_output, x)
        return x

    np.testing.assert_array_equal(loop(divided(mesh, keys)), loop(keys))

    # One level for all samples, and a loss.
    loss = losses.EasyConsistencyTuning(CM, total_steps=10)
    frozen = losses.Frozen(target=PARAMS)

    def denoised_and_loss(images):
        denoised = denoise(toy, PARAMS, CM.parametrization, images, jnp.full(8, 1.0))
        value, _ = loss(KEY, toy, PARAMS, frozen, {"data": images}, 0)
        return denoised, value

    found = denoised_and_loss(divided(mesh, jnp.asarray(IMAGES)))
    expected = denoised_and_loss(jnp.asarray(IMAGES))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("scheduler", [CM, cmjax.EDMHeunScheduler(s_churn=2.0)])
def test_one_key_for_samples_that_are_divided(scheduler):
    expected = draw(KEY, BIAS, scheduler)
    for kind in ("explicit", "auto"):
        mesh = mesh_of(kind)
        with jax.set_mesh(mesh):
            found = jax.jit(functools.partial(draw, scheduler=scheduler))(
                KEY, divided(mesh, BIAS)
            )
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-4)
    assert len(found[0].sharding.device_set) == 4


@pytest.mark.parametrize("kind", ["explicit", "auto"])
def test_inside_of_shard_map(kind):
    mesh = mesh_of(kind)

    def part(key, bias):
        first = 2 * jax.lax.axis_index("data")
        options = {"num_inference_steps": 2, "cond": {"bias": bias}, "first_index": first}
        return cmjax.sample(key, toy, PARAMS, CM, (2, *SHAPE[1:]), **options)

    mapped = jax.shard_map(part, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
    found = jax.jit(mapped)(KEY, divided(mesh, BIAS))
    expected = draw(KEY, BIAS, num_inference_steps=2, return_trajectory=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("edits", [False, True])
def test_inside_of_shard_map_with_one_key_for_all_devices(edits):
    # The noise is the same on all devices and what the network makes of it is not, which a scan
    # refused as its carry.
    def part(key, bias):
        shape = (2, *SHAPE[1:])
        options = {"sigmas": [20.0, 2.0], "cond": {"bias": bias}}
        if not edits:
            return cmjax.sample(key, toy, PARAMS, CM, shape, **options)
        known = editing.inpaint(jnp.ones(shape[1:]), jnp.eye(shape[1])[..., None])
        options |= {"method": "posterior", "candidates": 1, "iterations": 1}
        return editing.edit(key, toy, PARAMS, CM, known, shape, **options)

    mapped = jax.shard_map(
        part, mesh=mesh_of("auto"), in_specs=(P(), P("data")), out_specs=P("data")
    )
    found = jax.jit(mapped)(KEY, BIAS)
    np.testing.assert_allclose(found[2:4], jax.jit(part)(KEY, BIAS[2:4]), atol=1e-5)


def test_inside_of_shard_map_with_parameters_of_each_device():
    # A branch of the guidance and the categories differed from device to device, and the other
    # branch and the first categories did not.
    path = cmjax.EDMHeunScheduler().parametrization
    guided = autoguidance(
        lambda params, x, t: params * x,
        2.0,
        interval=(0.1, 100.0),
        parametrization=path,
    )
    categories = cmjax.VQDiffusionScheduler(num_vec_classes=5)

    def logits(params, x, t):
        return params * jax.nn.one_hot(x, 4)

    def part(key, params):
        own = params[0]
        moved = guided((own, 0.3), jnp.ones((2, 3)), jnp.zeros(2))
        drawn = categorical.sample(
            key, logits, own, categories, (2, 3), num_inference_steps=2
        )
        return moved, drawn

    mapped = jax.shard_map(
        part, mesh=mesh_of("auto"), in_specs=(P(), P("data")), out_specs=P("data")
    )
    params = jnp.linspace(0.2, 2, 4)
    moved, drawn = jax.jit(mapped)(KEY, params)
    wanted, wanted_drawn = part(KEY, params[1:2])
    np.testing.assert_allclose(moved[2:4], wanted, rtol=1e-6)
    np.testing.assert_array_equal(drawn[2:4], wanted_drawn)


CONSTRAINTS = {
    "inpaint": lambda x: editing.inpaint(x, x > 0),
    "colorize": lambda x: editing.colorize(x, [1.0]),
    "super-resolve": lambda x: editing.super_resolve(x[:, ::2, ::2], 2),
}


def edit(images, keys, fractions):
    """Results of every constraint, and of the functions without one."""
    results = {}
    for name, make in CONSTRAINTS.items():
        results[name] = editing.edit(
            keys, toy, PARAMS, CM, make(images), SHAPE, num_inference_steps=2
        )
    results["stroke"] = editing.stroke_to_image(keys, toy, PARAMS, CM, images)
    results["denoise"] = editing.denoise(toy, PARAMS, CM, images, 1.0)
    first, second = jnp.asarray(IMAGES[:2])
    results["interpolate"] = editing.interpolate(toy, PARAMS, CM, first, second, fractions)
    return results


@pytest.mark.thorough
def test_editing_on_an_explicit_mesh_equals_one_device():
    expected = jax.jit(edit)(IMAGES, KEY, BIAS)
    mesh = mesh_of("explicit")
    with jax.set_mesh(mesh):
        found = jax.jit(edit)(*divided(mesh, (IMAGES, sample_keys(KEY, 8), BIAS)))
        jax.jit(edit).trace(divided(mesh, IMAGES), KEY, BIAS)
        jax.jit(edit).trace(IMAGES, divided(mesh, sample_keys(KEY, 8)), BIAS)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
def test_following_the_posterior_on_an_explicit_mesh_equals_one_device():
    def run(images, keys):
        options = {"method": "posterior", "sigmas": [80.0, 1.0], "sigma_y": 0.1}
        constraint = editing.inpaint(images, images > 0)
        return editing.edit(keys, toy, PARAMS, CM, constraint, SHAPE, **options)

    expected = jax.jit(run)(IMAGES, KEY)
    mesh = mesh_of("explicit")
    with jax.set_mesh(mesh):
        found = jax.jit(run)(*divided(mesh, (IMAGES, sample_keys(KEY, 8))))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_divided_along_rows_of_pixels_too():
    mesh = mesh_of("explicit", (4, 2), ("data", "rows"))
    images = divided(mesh, IMAGES, P("data", "rows"))
    constraint = editing.super_resolve(IMAGES[:, ::2, ::2], 2)
    found = jax.jit(constraint)(images)
    np.testing.assert_allclose(found, constraint(IMAGES), rtol=1e-5, atol=1e-6)
    threshold = functools.partial(
        cmjax.schedulers.bounds.dynamic_threshold, ratio=0.8, largest=2.0
    )
    np.testing.assert_allclose(
        jax.jit(threshold)(3 * images), threshold(3 * IMAGES), rtol=1e-6
    )


def divide_last(mesh, leaf):
    """Divides the last axis of a parameter in two, where its size is even."""
    axis = "model" if leaf.shape[-1] % 2 == 0 else None
    return divided(mesh, leaf, P(*[None] * (leaf.ndim - 1), axis))


@pytest.mark.thorough
def test_dividing_what_a_network_gets_and_has():
    """Images, classes and parameters along whatever axes, of a mesh of two."""
    for config in (UNET, UNCONDITIONAL, LONG_SKIPS):
        by_name, params = network(config)

        @jax.jit
        def apply_fn(params, x, t, class_labels=None, by_name=by_name):
            return by_name(params, x, t, class_labels=class_labels)

        shape = (8, 8, 8, config.in_channels)
        x = np.linspace(-1, 1, math.prod(shape), dtype=np.float32).reshape(shape)
        arguments = [x, np.linspace(1, 2, 8, dtype=np.float32)]
        if config.num_class_embeds:
            arguments.append(np.arange(8) % 3)
        expected = apply_fn(params, *arguments)

        mesh = mesh_of("explicit", (4, 2), ("data", "model"))
        placed = jax.tree.map(functools.partial(divide_last, mesh), params)
        found = apply_fn(placed, *divided(mesh, arguments))
        assert jax.typeof(found).sharding.spec == P("data", None, None, None)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

        # Traced only: images by rows, one of the arguments alone, and derivatives.
        jax.jit(apply_fn).trace(
            params, divided(mesh, x, P("data", "model")), *arguments[1:]
        )
        for i, argument in enumerate(arguments):
            one = [*arguments]
            one[i] = divided(mesh, argument)
            assert apply_fn.eval_shape(params, *one).sharding.spec[0] == "data"

        def total(params, x, rest, apply_fn=apply_fn):
            _, tangent = jax.jvp(lambda x: apply_fn(params, x, *rest), (x,), (x,))
            return tangent.sum()

        jax.jit(jax.grad(total)).trace(placed, *divided(mesh, (x, arguments[1:])))


def all_losses():
    made = {
        name: losses.make(name, FLOW_SCHEDULERS.get(name, CM), total_steps=10)
        for name in losses.LOSSES
    }
    # Under shard_map a batch is that of one device, with two samples.
    made["imm"] = dataclasses.replace(made["imm"], group_size=2)
    made["dmd"] = dataclasses.replace(made["dmd"], sigmas=(80.0, 2.5))
    return {**made, "adversarial": losses.Adversarial(CM, discriminator, inner=made["cd"])}


def discriminator(params, x, bias=None):
    del bias
    return params * x.mean(axis=(1, 2, 3))


def gradients(batch, key, rank=None):
    """Value, gradient and metrics of every loss, in one program."""
    results = {}
    for name, loss in all_losses().items():
        params = PARAMS
        if name == "adversarial":
            params = losses.AdversarialParams(PARAMS, jnp.float32(0.3))
        params = loss.prepare_params(params)
        teacher = jnp.float32(0.4) if loss.needs_teacher else None

        def objective(params, loss=loss, target=params, teacher=teacher):
            frozen = losses.Frozen(target, teacher)
            return loss(key, toy, params, frozen, batch, jnp.int32(3))

        results[name] = jax.grad(objective, has_aux=True)(params)
    return results


@pytest.mark.thorough
def test_every_loss_on_a_mesh_equals_one_device():
    batch = {"data": IMAGES, "bias": BIAS}
    expected = jax.jit(gradients)(batch, KEY)
    mesh = mesh_of("explicit")
    found = jax.jit(gradients)(divided(mesh, batch), KEY)
    chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-4)

    # Traced only, as the numbers of a shard are those of its own batch.
    with jax.set_mesh(mesh):
        jax.jit(gradients).trace(divided(mesh, batch), KEY)
    mapped = jax.shard_map(
        lambda batch, key: jax.lax.pmean(gradients(batch, key), "data"),
        mesh=mesh,
        in_specs=(P("data"), P()),
        out_specs=P(),
    )
    jax.jit(mapped).trace(divided(mesh, batch), KEY)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_on_any_mesh_equals_one_device(accumulate):
    batch = {"data": IMAGES, "bias": BIAS}

    def step(mesh):
        loss = losses.make("ect", CM, total_steps=10)
        options = {"accumulate": accumulate, "mesh": mesh}
        train_step = trainer.make_train_step(loss, toy, optax.sgd(1e-3), **options)
        return train_step(train_step.init(KEY, PARAMS), batch)[1]

    expected = step(None)
    for mesh in (
        mesh_of("explicit", (2,), ("anything",)),
        mesh_of("auto", (2, 2), ("a", "b")),
    ):
        chex.assert_trees_all_close(step(mesh), expected, rtol=1e-4)


def test_generation_within_the_callers_mesh():
    model = tiny_model(num_classes=3)
    indices = np.arange(8, dtype=np.uint32)

    def pixels(model):
        sampler = BatchSampler(model, Request(labels=[0, 1, 2]), batch_size=1)
        return next(sampler.batches([indices]))

    expected = pixels(model)
    mesh = mesh_of("explicit", (8,))
    with jax.set_mesh(mesh):
        placed = dataclasses.replace(model, params=divided(mesh, model.params, P()))
        np.testing.assert_array_equal(pixels(placed), expected)


def test_a_model_of_closed_form_on_an_explicit_mesh():
    apply_fn, params = testing.gaussian_consistency_model(CM)
    mesh = Mesh(np.array(jax.devices()), ("x",), axis_types=(AxisType.Explicit,))
    keys = sample_keys(KEY, 8)

    def run(keys):
        return cmjax.sample(keys, apply_fn, params, CM, (8, 3), num_inference_steps=2)

    found = jax.jit(run)(divided(mesh, keys, P("x")))
    np.testing.assert_allclose(found, run(keys), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["explicit", "auto"])
def test_a_divided_batch_is_decoded_with_a_progress_bar(kind):
    vae = autoencoder(TINY)
    latents = jax.random.normal(KEY, (8, 4, 4, 4))
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        given = divided(mesh, latents)
        found = vae.decode(given, batch_size=3, progress=True)
    np.testing.assert_allclose(found, vae.decode(latents), atol=1e-5)
    if kind == "explicit":
        assert jax.typeof(found).sharding.spec[0] == "data"


@pytest.mark.parametrize("kind", ["explicit", "automatic"])
def test_levels_that_one_mesh_has_used_are_used_on_another(kind):
    def run():
        return cmjax.sample(KEY, toy, 0.5, CM, (8, 3), sigmas=[80.0, 3.25])

    for count in (2, 4):
        mesh = mesh_of(kind, (count,))
        with jax.set_mesh(mesh):
            on_mesh = run()
    chex.assert_trees_all_close(jax.device_get(on_mesh), jax.device_get(run()), rtol=1e-5)


class WithUnits(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x, t, r):
        return self.dropout(self.dense(x))


def test_dropout_of_shortcut_models_on_an_explicit_mesh():
    apply_fn, params = cmjax.from_nnx(WithUnits())
    train_step = trainer.make_train_step(
        losses.Shortcut(FLOW_MAP),
        apply_fn,
        optax.sgd(0.1),
        dropout=True,
        mesh=mesh_of("explicit"),
    )
    state = train_step.init(KEY, params)
    _, metrics = train_step(state, {"data": jnp.ones((16, 2))})
    assert np.isfinite(metrics["loss"]) and metrics["consistency_loss"] > 0
