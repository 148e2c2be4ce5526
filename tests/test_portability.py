"""One exported sampler for CPU, GPU and TPU."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

import cmjax

PLATFORMS = ("cpu", "cuda", "tpu")


def test_the_sampler_exports_for_every_platform_and_gives_the_same_samples_again():
    from tests.models.test_unet import SMALL, random_network

    apply_fn, params = random_network(SMALL)
    scheduler = cmjax.CMStochasticIterativeScheduler()

    @jax.jit
    def sampler(key_data, params, class_labels):
        key = jax.random.wrap_key_data(key_data)
        cond = {"class_labels": class_labels}
        return cmjax.sample(
            key, apply_fn, params, scheduler, (3, 8, 8, 1), num_inference_steps=2, cond=cond
        )

    arguments = (jax.random.key_data(jax.random.key(0)), jax.tree.leaves(params), jnp.arange(3))
    tree = jax.tree.structure(params)
    flat = jax.jit(
        lambda key_data, leaves, labels: sampler(key_data, jax.tree.unflatten(tree, leaves), labels)
    )
    exported = jax.export.export(flat, platforms=PLATFORMS)(*arguments)
    assert set(exported.platforms) == set(PLATFORMS)
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_allclose(again.call(*arguments), flat(*arguments), rtol=1e-5, atol=1e-5)
