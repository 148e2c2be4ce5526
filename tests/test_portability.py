"""One exported sampler for CPU, GPU and TPU."""

import jax
import jax.export
import numpy as np

from tests.support import checkpoints

PLATFORMS = ("cpu", "cuda", "tpu")


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
