"""One exported sampler for CPU, GPU and TPU, and for batches of any size."""

import chex
import jax
import jax.export
import numpy as np
import pytest

import cmjax
from cmjax import guidance
from cmjax.editing import edit, inpaint
from cmjax.models import (
    DiTTransformer2DConfig,
    ImprovedMeanFlowConfig,
    PixelMeanFlowConfig,
)
from cmjax.schedulers import SCHEDULERS
from tests.support import autoencoders, checkpoints, ncsnpp, networks

PLATFORMS = ("cpu", "cuda", "tpu")
BATCH = jax.export.symbolic_shape("batch")[0]
KEY = np.array([0, 1], np.uint32)
SMALL = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
ONE_TIME = {
    "UNet2D": networks.UNET,
    "DiT": networks.DIT,
    "NCSNpp": ncsnpp.CONFIGS["toy"],
    "DiTTransformer2D": DiTTransformer2DConfig(
        sample_size=8, num_embeds_ada_norm=3, **SMALL
    ),
}
TWO_TIMES = {
    "ImprovedMeanFlow": ImprovedMeanFlowConfig(
        sample_size=8, mlp_channels=24, num_class_embeds=3, **SMALL
    ),
    "PixelMeanFlow": PixelMeanFlowConfig(
        sample_size=8, patch_size=4, mlp_channels=24, num_class_embeds=3, **SMALL
    ),
}


def test_the_sampler_exports_for_every_platform_and_gives_the_same_samples_again():
    model = checkpoints.model()
    leaves, tree = jax.tree.flatten(model)

    @jax.jit
    def sampler(key_data, leaves):
        key = jax.random.wrap_key_data(key_data)
        return jax.tree.unflatten(tree, leaves).sample(key, 3, num_inference_steps=2)

    arguments = (jax.random.key_data(jax.random.key(0)), leaves)
    exported = jax.export.export(sampler, platforms=PLATFORMS)(*arguments)
    assert set(exported.platforms) == set(PLATFORMS)
    again = jax.export.deserialize(exported.serialize())
    expected = sampler(*arguments)
    np.testing.assert_allclose(again.call(*arguments), expected, rtol=1e-5, atol=1e-5)


def works_for_any_batch(function, *arguments, per_sample):
    """Exports a function for batches of any size, and compares its results for one of 3 samples.

    Args:
        function: of `arguments`, and then those per sample.
        arguments: of a fixed shape.
        per_sample: arrays `[3, ...]`, of which the first axis may have any size.
    """
    symbols = [jax.ShapeDtypeStruct((BATCH, *x.shape[1:]), x.dtype) for x in per_sample]
    exported = jax.export.export(jax.jit(function))(*arguments, *symbols)
    actual = exported.call(*arguments, *per_sample)
    expected = jax.jit(function)(*arguments, *per_sample)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)


def drawn(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_works_for_any_batch(name):
    scheduler = SCHEDULERS[name]()

    def step(key_data, model_output, x):
        key = jax.random.wrap_key_data(key_data)
        state, noise = scheduler.init(key, scheduler.set_timesteps(3), x.shape)
        scaled = scheduler.scale_input(state, x)
        return noise, scaled, scheduler.step(key, state, model_output, x)

    x = drawn(3, 4, 4, 3)
    model_output = drawn(*scheduler.output_shape(x.shape))
    works_for_any_batch(step, KEY, per_sample=(model_output, x))


@pytest.mark.parametrize("name", [*ONE_TIME, *TWO_TIMES])
def test_every_network_works_for_any_batch(name):
    config = {**ONE_TIME, **TWO_TIMES}[name]
    apply_fn, params = networks.network(config)
    t = np.array([900, 500, 100], np.float32)
    times = (t,) if name in ONE_TIME else (t, t / 2)
    labels = np.arange(3)
    takes_labels = name != "NCSNpp"

    def call(params, x, labels, *times):
        cond = {"class_labels": labels} if takes_labels else {}
        return apply_fn(params, x, *times, **cond)

    x = drawn(3, *cmjax.models.registry.sample_shape(config))
    works_for_any_batch(call, params, per_sample=(x, labels, *times))


def test_samples_work_for_any_batch():
    model = networks.model()

    def sample(key_data, params, labels):
        key = jax.random.wrap_key_data(key_data)
        shape = (labels.shape[0], 8, 8, 1)
        cond = {"class_labels": labels}
        network = (model.apply_fn, params, model.scheduler)
        return cmjax.sample(key, *network, shape, num_inference_steps=2, cond=cond)

    works_for_any_batch(sample, KEY, model.params, per_sample=(np.arange(3),))


def test_guidance_works_for_any_batch():
    model = networks.model()
    guided = guidance.classifier_free(model.apply_fn, 2.0, null={"class_labels": 0})

    def call(params, x, t, labels):
        return guided(params, x, t, class_labels=labels)

    x = drawn(3, 8, 8, 1)
    t = np.array([900, 500, 100], np.float32)
    works_for_any_batch(call, model.params, per_sample=(x, t, np.arange(3)))


def test_samples_of_a_model_work_for_any_batch():
    model = networks.model()
    leaves, tree = jax.tree.flatten(model)

    def sample(key_data, leaves, any_array):
        key = jax.random.wrap_key_data(key_data)
        return jax.tree.unflatten(tree, leaves).sample(key, any_array.shape[0])

    works_for_any_batch(sample, KEY, leaves, per_sample=(drawn(3),))


@pytest.mark.parametrize("method", ["projection", "posterior"])
def test_editing_works_for_any_batch(method):
    model = networks.model()

    def edited(key_data, params, image, labels):
        known = inpaint(image, np.arange(8)[:, None, None] < 4)
        return edit(
            jax.random.wrap_key_data(key_data),
            model.apply_fn,
            params,
            model.scheduler,
            known,
            image.shape,
            cond={"class_labels": labels},
            num_inference_steps=2,
            method=method,
        )

    images = drawn(3, 8, 8, 1).clip(-1, 1)
    works_for_any_batch(edited, KEY, model.params, per_sample=(images, np.arange(3)))


@pytest.mark.parametrize("batch_size", [None, 2])
def test_decoding_works_for_any_batch(batch_size):
    autoencoder = autoencoders.autoencoder(autoencoders.TINY)

    def decode(latents):
        return autoencoder.decode(latents, batch_size=batch_size)

    latents = drawn(3, 2, 2, autoencoders.TINY.latent_channels)
    works_for_any_batch(decode, per_sample=(latents,))
