"""Improved MeanFlow's checkpoints: recognised by names and shapes, of the JAX and PyTorch code."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

import cmjax
from cmjax.checkpoints import improved_mean_flow, open_checkpoint
from cmjax.checkpoints.flax_names import as_torch
from cmjax.checkpoints.tensors import StoredTensor
from cmjax.cli import main
from cmjax.models import IMPROVED_MEAN_FLOWS, latent_scaling
from cmjax.models.registry import preset_name
from tests.support import autoencoders, flax_files, flax_networks, torch_zip
from tests.support.cli import succeeded


def unread(shapes):
    """Tensors of these shapes without values, under the names of PyTorch."""
    float32 = np.dtype(np.float32)
    stored = {name: StoredTensor(tuple(s), float32, None) for name, s in shapes.items()}
    return as_torch("x", stored)


@pytest.mark.parametrize("preset", IMPROVED_MEAN_FLOWS)
def test_names_and_shapes_tell_which_model_it_is(tmp_path, preset):
    stored = unread(flax_networks.shapes("improved_mean_flow", preset))
    checkpoint = improved_mean_flow.from_tensors(tmp_path / "x", stored)
    assert preset_name(checkpoint.config) == preset
    assert checkpoint.scheduler == cmjax.FlowMapEulerDiscreteScheduler()
    assert re.fullmatch(
        r"ignored: \d+ tensors of the second head, which only training uses",
        checkpoint.note,
    )
    if preset == "iMF-B/2":
        checkpoint.check()


@pytest.fixture(scope="module")
def state():
    return flax_files.state("improved_mean_flow")


@pytest.fixture(scope="module")
def file(tmp_path_factory, state):
    return flax_files.write_msgpack(tmp_path_factory.mktemp("imf") / "checkpoint_9", state)


def test_files_of_pytorch_are_read_the_same(tmp_path, file, state):
    shapes = flax_networks.shapes("improved_mean_flow", "toy")
    drawn = flax_networks.drawn(shapes)
    read = {
        name: StoredTensor(a.shape, a.dtype, lambda a=a: a) for name, a in drawn.items()
    }
    tensors = {name: tensor.read() for name, tensor in as_torch("x", read).items()}
    # Without the blocks of the second head, as the authors' PyTorch code is for sampling.
    tensors = {n: np.ascontiguousarray(a) for n, a in tensors.items() if "v_heads" not in n}
    path = torch_zip.save(tmp_path / "toy.pth", tensors)
    found, expected = (cmjax.load(source) for source in (path, file))
    assert found.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_what_is_read_is_said(file):
    said = succeeded(CliRunner().invoke(main, ["info", str(file)])).stdout
    assert re.search(r"^network +ImprovedMeanFlow$", said, re.MULTILINE)
    for words in (
        "ema_params, the moving average of the parameters, is used; ignored: opt_state, params",
        "tensors of the second head",
        "no released model has this size: it is sampled with guidance of scale 1",
        "its samples are latents of stabilityai/sd-vae-ft-mse",
    ):
        assert words in said


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / "kl"
    cmjax.save_autoencoder(path, autoencoders.autoencoder(autoencoders.KL))
    return path


def test_latents_are_scaled_by_their_own_statistics(tmp_path, file, vae):
    model = cmjax.load(file, autoencoder=vae)
    latents = jax.random.normal(jax.random.key(0), (1, 4, 4, 4))

    # utils/vae_util.py: latents * std + mean goes to the decoder.
    mean = jnp.array([0.86488, -0.27787343, 0.21616915, 0.3738409]).reshape(1, 1, 1, 4)
    std = jnp.array([4.85503674, 5.31922414, 3.93725398, 3.9870003]).reshape(1, 1, 1, 4)
    found = latent_scaling.to_network(model.autoencoder.config, latents)
    np.testing.assert_allclose(found, latents * std + mean, rtol=1e-5, atol=1e-6)

    # They stay with the model where it is saved.
    cmjax.save(tmp_path / "imf", model)
    again = cmjax.load(tmp_path / "imf")
    assert again.autoencoder.config == model.autoencoder.config
    assert again.config == model.config


def test_an_autoencoder_without_statistics_is_refused(tmp_path, file):
    tiny = tmp_path / "tiny"
    cmjax.save_autoencoder(tiny, autoencoders.autoencoder(autoencoders.TINY))
    with pytest.raises(
        ValueError, match="is a AutoencoderTiny, the latents of which have no"
    ):
        open_checkpoint(file, autoencoder=tiny)


@pytest.mark.thorough
def test_one_command_makes_a_picture(tmp_path, file, vae):
    args = ["sample", "--model", str(file), "--vae", str(vae), "--labels", "2", "-n", "1"]
    out = tmp_path / "one.png"
    result = succeeded(CliRunner().invoke(main, [*args, "--out", str(out)]))
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert "1 network call" in result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("net.t_min_tokens"), "'net.t_min_tokens'"),
        (
            lambda s: s.pop("net.u_heads_0.norm1.kernel"),
            r"missing net.u_heads.0.norm1.weight",
        ),
        (lambda s: s.update({"net.pos_embed": (1, 29, 32)}), "unexpected net.pos_embed"),
    ],
)
def test_checkpoints_that_are_not_whole(tmp_path, change, message):
    shapes = flax_networks.shapes("improved_mean_flow", "toy")
    change(shapes)
    path = tmp_path / "x"
    with pytest.raises(ValueError, match=message) as caught:
        improved_mean_flow.from_tensors(path, unread(shapes)).check()
    assert str(path) in str(caught.value)


def test_configs_given(file):
    with pytest.raises(ValueError, match="'lsun256' is not a preset of improved MeanFlow"):
        open_checkpoint(file, config="lsun256")
    with pytest.raises(ValueError, match="must be a ImprovedMeanFlowConfig or the name"):
        open_checkpoint(file, config=cmjax.models.PRESETS["lsun256"])
