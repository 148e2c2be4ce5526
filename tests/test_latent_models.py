"""Models of latents: sampled, decoded, written, read and produced in bulk."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

import cmjax
from cmjax.cli import main
from cmjax.generation import (
    BatchSampler,
    Request,
    generate,
    generate_folder,
    verify,
)
from cmjax.generation.settings import model_digest
from cmjax.images import to_uint8
from cmjax.models import DiTTransformer2DConfig
from cmjax.models.registry import abstract_network
from tests.support import checkpoints
from tests.support.autoencoders import KL, TINY, autoencoder
from tests.support.cli import succeeded
from tests.support.generation import assert_nearly_equal, images

KEY = jax.random.key(0)
ONE_STEP = {"num_inference_steps": 1}  # a solver warns of it as a default
CONFIG = DiTTransformer2DConfig(
    sample_size=4,
    num_layers=1,
    num_attention_heads=1,
    attention_head_dim=4,
    num_embeds_ada_norm=3,
)


@functools.cache
def model():
    """A transformer with every tensor drawn, and an autoencoder."""
    apply_fn, abstract = cmjax.from_nnx(abstract_network(CONFIG))
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype)

    params = jax.tree.map(draw, abstract)
    scheduler = cmjax.DDIMScheduler(clip_sample=False)
    vae = autoencoder(TINY)
    return cmjax.Model(apply_fn, params, scheduler, CONFIG, autoencoder=vae)


def assert_same_leaves(one, other):
    """Two models have the same arrays, those of their autoencoders too."""
    assert one.autoencoder.config == other.autoencoder.config
    jax.tree.map(
        np.testing.assert_array_equal, jax.tree.leaves(one), jax.tree.leaves(other)
    )


def test_samples_are_decoded_unless_latents_are_asked_for():
    latents = model().sample(KEY, 3, labels=1, latents=True, **ONE_STEP)
    assert latents.shape == (3, *model().sample_shape) == (3, 4, 4, 4)
    expected = model().autoencoder.decode(latents)
    assert expected.shape == (3, *model().picture_shape) == (3, 8, 8, 3)
    np.testing.assert_array_equal(model().sample(KEY, 3, labels=1, **ONE_STEP), expected)

    # A trajectory is of what the sampler draws; its end is what was decoded.
    pictures, trajectory = model().sample(
        KEY, 3, labels=1, return_trajectory=True, **ONE_STEP
    )
    np.testing.assert_allclose(pictures, expected, atol=1e-5)
    assert trajectory.prev_sample.shape == (1, 3, 4, 4, 4)
    np.testing.assert_allclose(
        model().decode(trajectory.prev_sample[-1], batch_size=2), expected, atol=1e-5
    )


def test_without_an_autoencoder_samples_are_what_they_were():
    plain = checkpoints.model()
    assert plain.picture_shape == plain.sample_shape == (4, 4, 1)
    samples = plain.sample(KEY, 2, **ONE_STEP)
    assert plain.decode(samples) is samples
    np.testing.assert_array_equal(plain.sample(KEY, 2, latents=True, **ONE_STEP), samples)
    assert "autoencoder" not in repr(plain)


def test_the_autoencoder_is_part_of_the_tree():
    doubled = jax.tree.map(lambda leaf: 2 * leaf, model())
    ours = jax.tree.leaves(model().autoencoder)
    theirs = jax.tree.leaves(doubled.autoencoder)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(2 * a, b), ours, theirs)
    assert len(jax.tree.leaves(model())) == len(jax.tree.leaves(model().params)) + len(ours)
    assert "autoencoder=Autoencoder(AutoencoderTiny" in repr(model()).replace(": ", "=")

    # Another sampler keeps it.
    other = model().with_scheduler(cmjax.LCMScheduler())
    assert other.autoencoder is model().autoencoder


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: model().sample(KEY, 1, latents=1), "latents must be True or False, got 1"),
        (
            lambda: model().decode(jnp.zeros((2, 4, 4, 3))),
            r"samples must be \[B, 4, 4, 4\]",
        ),
        (
            lambda: model().decode(jnp.zeros((2, 4, 4, 4)), batch_size=0),
            "batch_size must be",
        ),
        (
            lambda: dataclasses.replace(model(), autoencoder=TINY).picture_shape,
            "autoencoder must be a cmjax.Autoencoder or None",
        ),
        (
            lambda: dataclasses.replace(checkpoints.model(), autoencoder=autoencoder(TINY)),
            "latents of 4 channels, but the network's samples have the shape",
        ),
        (
            lambda: cmjax.save("unused", dataclasses.replace(model(), autoencoder="vae")),
            "autoencoder must be a cmjax.Autoencoder, got 'vae'; open one by",
        ),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("to", ["cmjax", "diffusers"])
def test_folders_hold_the_autoencoder(tmp_path, to):
    for decoder in (TINY, KL):
        written = dataclasses.replace(model(), autoencoder=autoencoder(decoder))
        cmjax.save(tmp_path / "model", written, to=to)  # the second replaces the first
        assert_same_leaves(cmjax.load(tmp_path / "model"), written)
        assert cmjax.load_autoencoder(tmp_path / "model").config == decoder
    half = cmjax.load(tmp_path / "model", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("bfloat16")}


def test_what_the_index_of_a_pipeline_names_must_be_there(tmp_path):
    cmjax.save(tmp_path / "model", model(), to="diffusers")
    index = tmp_path / "model" / "model_index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "vae": ["diffusers", "AutoencoderDC"]}))
    with pytest.raises(ValueError, match="the vae must be an AutoencoderKL or"):
        cmjax.load(tmp_path / "model")
    index.write_text(json.dumps(content))
    shutil.rmtree(tmp_path / "model" / "vae")
    with pytest.raises(ValueError, match="model/vae is not a whole model"):
        cmjax.load(tmp_path / "model")
    index.write_text(json.dumps({**content, "vae": [None, None]}))
    assert cmjax.load(tmp_path / "model").autoencoder is None


def test_a_unet_keeps_its_autoencoder_too(tmp_path):
    config = dataclasses.replace(checkpoints.CONFIG, in_channels=4, out_channels=4)
    apply_fn, abstract = cmjax.from_nnx(abstract_network(config))
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1, leaf.dtype), abstract)
    scheduler = cmjax.CMStochasticIterativeScheduler(timestep_spacing="leading")
    vae = autoencoder(TINY)
    unet = cmjax.Model(apply_fn, params, scheduler, config, autoencoder=vae)
    cmjax.save(tmp_path / "unet", unet, to="diffusers")
    assert_same_leaves(cmjax.load(tmp_path / "unet"), unet)


def test_info_tells_of_the_autoencoder(tmp_path):
    cmjax.save(tmp_path / "model", model())
    text = succeeded(CliRunner().invoke(main, ["info", str(tmp_path / "model")])).stdout
    assert "AutoencoderTiny" in text and "8x8x3" in text and "vae/diffusion_py" in text
    command = ["info", "--json", str(tmp_path / "model")]
    described = json.loads(succeeded(CliRunner().invoke(main, command)).stdout)
    assert described["sample_shape"] == [4, 4, 4]
    assert described["picture_shape"] == [8, 8, 3]
    assert described["autoencoder"]["class"] == "AutoencoderTiny"
    assert len(described["files"]) == 2


def test_pictures_are_produced_in_bulk(tmp_path):
    request = Request(labels=[0, 2], seed=3)
    folder = tmp_path / "run"
    generate_folder(folder, model(), request, 6, batch_size=3, shard_size=4)
    made = images(folder)
    assert made.shape == (6, 8, 8, 3)

    # As model.sample makes them, and as they are made again.
    key = cmjax.random.key_of_seed(3)
    expected = to_uint8(np.asarray(model().sample(key, 6, labels=[0, 2], **ONE_STEP)))
    assert_nearly_equal(made, expected)
    assert verify(folder, model(), batch_size=3).reproduced

    # The autoencoder is part of what the samples depend on.
    other = dataclasses.replace(model(), autoencoder=autoencoder(TINY, seed=1))
    assert model_digest(other) != model_digest(model())
    with pytest.raises(ValueError, match="another model"):
        verify(folder, other)


def test_each_device_decodes_its_own_samples():
    request = Request(labels=[0])
    one = BatchSampler(model(), request, batch_size=4, devices=jax.devices()[:1])
    two = BatchSampler(
        model(), request, batch_size=2, devices=jax.devices()[:2], shard_params=True
    )
    batch = [np.arange(4, dtype=np.uint32)]
    assert_nearly_equal(next(one.batches(batch)), next(two.batches(batch)))


def test_progress_is_said_while_a_batch_is_decoded(capsys, monkeypatch):
    monkeypatch.setattr("cmjax.generation.decoding.DECODED_AT_ONCE", 2)
    sampler = BatchSampler(model(), Request(labels=[0, 1]), batch_size=6)
    counts = []
    batches = [np.arange(6, dtype=np.uint32), np.arange(6, 9, dtype=np.uint32)]
    made = np.concatenate(list(sampler.batches(batches, counts.append)))

    # In pieces of two of each of the devices; the second batch is half padding.
    piece = 2 * len(jax.devices())
    assert sum(counts) == 9 and max(counts) <= piece
    whole = model().sample(cmjax.random.key_of_seed(0), 9, labels=[0, 1], **ONE_STEP)
    assert_nearly_equal(made, to_uint8(np.asarray(whole)))

    monkeypatch.setattr("cmjax.progress.PERIOD", 0.0)
    generate(model(), Request(labels=[0, 1]), 5, batch_size=4, progress=True)
    lines = [line.split(" pictures")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == [f"sampling: {n} of 5" for n in (0, 2, 4, 5)]
