"""The class-conditional transformer of diffusers, on the same weights."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from flax import nnx

import cmjax
from cmjax.checkpoints.checkpoint import flatten_named
from cmjax.checkpoints.diffusers_weights import layout
from cmjax.models import DiTTransformer2D, DiTTransformer2DConfig, from_nnx

CONFIG = DiTTransformer2DConfig(
    sample_size=8,
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=8,
    num_embeds_ada_norm=5,
    keep_variance=True,
)
X = np.random.default_rng(0).standard_normal((3, 8, 8, 4)).astype(np.float32)
T = np.array([0.0, 500.0, 999.0], np.float32)
LABELS = np.array([0, 5, 3], np.int32)  # 5 is no class


def reference(config):
    """diffusers' network with every tensor drawn."""
    options = dataclasses.asdict(config)
    del options["keep_variance"]
    torch.manual_seed(0)
    network = DiTTransformer2DModel(**options).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return network


def params_of(config, network):
    """The parameters of a network of diffusers, in the tree of cmjax's."""
    tensors = network.state_dict()
    _, params = from_nnx(DiTTransformer2D(config, rngs=nnx.Rngs(0)))
    leaves = []
    for name, leaf in flatten_named(params).items():
        stored, axes = layout(name, leaf.ndim)
        leaves.append(jnp.asarray(tensors[stored].numpy().transpose(np.argsort(axes))))
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


@pytest.mark.parametrize(
    "changes",
    [{}, {"patch_size": 4, "attention_bias": False, "out_channels": 4, "norm_eps": 0.1}],
)
def test_outputs_equal_those_of_diffusers(changes):
    config = dataclasses.replace(CONFIG, **changes)
    network = reference(config)
    apply_fn, _ = from_nnx(DiTTransformer2D(config, rngs=nnx.Rngs(0)))
    with torch.no_grad():
        x = torch.from_numpy(X.transpose(0, 3, 1, 2))
        theirs = network(x, torch.from_numpy(T), torch.from_numpy(LABELS)).sample
    theirs = theirs.numpy().transpose(0, 2, 3, 1)
    ours = apply_fn(params_of(config, network), X, T, class_labels=jnp.asarray(LABELS))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * theirs.std())


@pytest.mark.slow
def test_output_at_the_released_size_equals_that_of_diffusers():
    """DiT-XL/2 at 256x256 pixels: 675 million parameters, with the weights that it starts from."""
    config = DiTTransformer2DConfig(keep_variance=True)
    options = dataclasses.asdict(config)
    del options["keep_variance"]
    torch.manual_seed(0)
    network = DiTTransformer2DModel(**options).eval()
    apply_fn, params = from_nnx(DiTTransformer2D(config, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) > 6.7e8
    del params
    x = np.random.default_rng(1).standard_normal((2, 32, 32, 4), np.float32)
    t = np.array([30.0, 900.0], np.float32)
    labels = np.array([207, 1000], np.int32)  # the last is no class
    with torch.no_grad():
        images = torch.from_numpy(x.transpose(0, 3, 1, 2))
        theirs = network(images, torch.from_numpy(t), torch.from_numpy(labels)).sample
    theirs = theirs.numpy().transpose(0, 2, 3, 1)
    assert theirs.std() > 0.1
    ours = apply_fn(params_of(config, network), x, t, class_labels=jnp.asarray(labels))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * theirs.std())


def test_a_variance_is_dropped_unless_it_is_asked_for():
    network = reference(CONFIG)
    params = params_of(CONFIG, network)
    both, _ = from_nnx(DiTTransformer2D(CONFIG, rngs=nnx.Rngs(0)))
    config = dataclasses.replace(CONFIG, keep_variance=False)
    one, _ = from_nnx(DiTTransformer2D(config, rngs=nnx.Rngs(0)))
    labels = jnp.asarray(LABELS)
    np.testing.assert_array_equal(
        one(params, X, T, class_labels=labels),
        both(params, X, T, class_labels=labels)[..., :4],
    )


PIPELINE = {
    "_class_name": "DiTPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "id2label": {"0": "tench", "1": "crane", "2": "cat", "3": "dog", "4": "crane"},
}


def save_pipeline(folder, network):
    """Writes what a pipeline's folder holds of a transformer, by diffusers."""
    network.save_pretrained(folder / "transformer")
    DDIMScheduler(clip_sample=False).save_pretrained(folder / "scheduler")
    index = {**PIPELINE, "transformer": ["diffusers", "DiTTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))


def outputs(network):
    """The outputs of a network of diffusers, channels-last."""
    with torch.no_grad():
        x = torch.from_numpy(X.transpose(0, 3, 1, 2))
        theirs = network(x, torch.from_numpy(T), torch.from_numpy(LABELS)).sample
    return theirs.numpy().transpose(0, 2, 3, 1)


def test_folders_of_diffusers_are_read_and_written(tmp_path):
    network = reference(CONFIG)
    save_pipeline(tmp_path / "theirs", network)
    model = cmjax.load(tmp_path / "theirs")
    assert model.config == dataclasses.replace(CONFIG, keep_variance=False)
    assert model.class_names == ("tench", "crane", "cat", "dog", "crane (4)")
    assert model.sample_shape == (8, 8, 4)
    assert type(model.scheduler) is cmjax.DDIMScheduler

    # The same outputs, but for the variance, which the pipeline drops too.
    expected = outputs(network)
    ours = model.apply_fn(model.params, X, T, class_labels=jnp.asarray(LABELS))
    np.testing.assert_allclose(ours, expected[..., :4], rtol=0, atol=1e-4 * expected.std())

    # Back, and read by diffusers: bit for bit.
    cmjax.save(tmp_path / "ours", model, to="diffusers")
    back = DiTTransformer2DModel.from_pretrained(tmp_path / "ours" / "transformer").eval()
    np.testing.assert_array_equal(outputs(back), expected)
    assert (
        DDIMScheduler.from_pretrained(tmp_path / "ours" / "scheduler").config.clip_sample
        is False
    )
    index = json.loads((tmp_path / "ours" / "model_index.json").read_text())
    assert index["id2label"] == {**PIPELINE["id2label"], "4": "crane (4)"}
    cmjax.save(tmp_path / "ours", model, to="diffusers")  # a folder of ours may be replaced


def test_the_former_class_and_a_network_alone_are_read(tmp_path):
    network = reference(CONFIG)
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"_class_name": "Transformer2DModel", "cross_attention_dim": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = cmjax.load(tmp_path)
    assert model.config == dataclasses.replace(CONFIG, keep_variance=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_type": "layer_norm"}, "norm_type 'layer_norm' is not supported"),
        ({"dropout": 0.1}, "dropout 0.1 is not supported, only 0; for sampling set it"),
        ({"cross_attention_dim": 768}, "cross_attention_dim 768 is not supported"),
        ({"keep_variance": True}, "DiTTransformer2DModel has no option 'keep_variance'"),
        ({"out_channels": 5}, "out_channels 5 must be in_channels 4, or twice that"),
    ],
)
def test_options_that_are_not_supported(tmp_path, change, message):
    reference(CONFIG).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        cmjax.load(tmp_path)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_samples_equal_those_of_the_loop_of_diffusers(tmp_path, scale):
    """Five steps of DDIM, as its pipeline takes them: guided away from no class, which is 5."""
    save_pipeline(tmp_path, reference(CONFIG))
    model = cmjax.load(tmp_path)
    network = DiTTransformer2DModel.from_pretrained(tmp_path / "transformer").eval()
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "scheduler")
    scheduler.set_timesteps(5)
    x = torch.from_numpy(X.transpose(0, 3, 1, 2))
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = network(x, t.expand(3), torch.tensor([0, 1, 3])).sample[:, :4]
            null = network(x, t.expand(3), torch.full((3,), 5)).sample[:, :4]
            output = null + scale * (output - null)
            x = scheduler.step(output, t, x).prev_sample
    theirs = x.numpy().transpose(0, 2, 3, 1)
    options = {"labels": [0, 1, 3], "num_inference_steps": 5, "init": X}
    ours = model.sample(jax.random.key(0), 3, guidance=scale, **options)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * theirs.std())
