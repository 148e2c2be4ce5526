"""Pixel MeanFlow's files: recognised by names and shapes, and whole or not read at all."""

import dataclasses
import json
import re
import shutil
import tracemalloc

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import cmjax
from cmjax.checkpoints import open_checkpoint, pixel_mean_flow
from cmjax.checkpoints.tensors import StoredTensor
from cmjax.cli import main
from cmjax.models import PIXEL_MEAN_FLOWS, PixelMeanFlowConfig
from cmjax.models.registry import preset_name
from tests.support import flax_files, flax_networks, torch_zip
from tests.support import pixel_mean_flow as reference
from tests.support.cli import assert_one_line, succeeded
from tests.support.mutations import fuzz, mutations


@pytest.fixture(scope="module")
def tensors():
    return reference.tensors("toy", second_head=True)


@pytest.fixture
def file(tmp_path, tensors):
    return torch_zip.save(tmp_path / "toy.pt", tensors)


def unread(shapes):
    """Tensors of these shapes without values, but for the frequencies."""
    found = {}
    for name, shape in shapes.items():
        dtype = np.dtype(np.float32)
        read = None
        if name == "net.rope_freqs":
            values = reference.frequencies(2 * shape[1], int(shape[0] ** 0.5))
            dtype = values.dtype
            read = values.copy
        found[name] = StoredTensor(tuple(shape), dtype, read)
    return found


@pytest.mark.parametrize("preset", PIXEL_MEAN_FLOWS)
def test_names_and_shapes_tell_which_model_it_is(tmp_path, preset):
    size = preset.removeprefix("pMF-").replace("/", "_")
    stored = unread(reference.shapes(size))
    checkpoint = pixel_mean_flow.from_tensors(tmp_path / "x.pt", stored)
    assert preset_name(checkpoint.config) == preset
    assert checkpoint.scheduler == cmjax.FlowMapEulerDiscreteScheduler(
        noise_scale=checkpoint.config.noise_scale
    )


@pytest.mark.parametrize(
    "size",
    [
        "B_16",
        pytest.param("L_32", marks=pytest.mark.thorough),
        pytest.param("H_16", marks=pytest.mark.thorough),
    ],
)
def test_every_tensor_has_its_place(tmp_path, size):
    stored = unread(reference.shapes(size))
    pixel_mean_flow.from_tensors(tmp_path / "x.pt", stored).check()


def test_a_network_of_no_released_size_says_so(file):
    checkpoint = open_checkpoint(file)
    assert checkpoint.config == PixelMeanFlowConfig(
        sample_size=12,
        patch_size=4,
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=16,
        mlp_channels=85,
        num_class_embeds=5,
        guidance_scale=1.0,
        guidance_interval=(0.0, 1.0),
    )
    assert "no released model has this size" in checkpoint.note


def test_what_is_not_read_is_said(file):
    said = succeeded(CliRunner().invoke(main, ["info", str(file)])).stdout
    assert re.search(r"^network +PixelMeanFlow$", said, re.MULTILINE)
    assert re.search(
        r"^note +ignored: 16 tensors of the second head, which only", said, re.M
    )
    assert "net.rope_freqs, which the network computes itself" in said
    described = json.loads(
        succeeded(CliRunner().invoke(main, ["info", str(file), "--json"])).stdout
    )
    assert described["preset"] is None
    assert described["dtypes"] == {"float32": described["num_tensors"]}


def test_names_of_the_network_alone(tmp_path, file, tensors):
    alone = {name.removeprefix("net."): tensor for name, tensor in tensors.items()}
    other = torch_zip.save(tmp_path / "alone.pt", alone)
    found, expected = (cmjax.load(path).params for path in (other, file))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_saved_and_loaded_again(tmp_path, file):
    model = cmjax.load(file)
    cmjax.save(tmp_path / "folder", model)
    again = cmjax.load(tmp_path / "folder")
    assert (again.config, again.scheduler) == (model.config, model.scheduler)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_one_command_makes_a_picture(tmp_path, file):
    args = ["sample", "--model", str(file), "--labels", "2", "-n", "2", "--batch-size", "2"]
    out = tmp_path / "two.png"
    result = succeeded(CliRunner().invoke(main, [*args, "--out", str(out)]))
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert "1 network call" in result.output
    assert "Note: ignored: 16 tensors of the second head" in result.stderr


def in_flax(name, tensor):
    """A tensor under its name in the JAX code, with its axes there."""
    name = re.sub(r"(shared_blocks|u_heads|v_heads)\.", r"\1_", name)
    name = re.sub(r"mlp\.(?=[0-9])", "mlp.layers_", name)
    if "embedding_table" in name:
        return "net.y_embedder.embedding_table.embedding", tensor[None]
    if tensor.ndim == 4:
        tensor = tensor.transpose(2, 3, 1, 0)
    elif tensor.ndim == 2:
        tensor = tensor.T
    return name.replace(".weight", ".kernel"), np.ascontiguousarray(tensor)


def test_zips_of_the_jax_code(tmp_path, file, tensors):
    flat = dict(in_flax(*item) for item in tensors.items() if item[0] != "net.rope_freqs")
    state = {"ema_params": flax_networks.nested(flat), "step": np.int32(1)}
    folder = flax_files.write_orbax_0_4(tmp_path / "folder", state)
    path = shutil.make_archive(str(tmp_path / "toy"), "zip", folder)
    found = open_checkpoint(path)
    assert "ignored: 16 tensors of the second head" in found.note
    model, expected = found.load(), cmjax.load(file)
    assert model.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, model.params, expected.params)


def without(name):
    return lambda tensors: tensors.pop(name)


BAD = {
    "missing net.pos_embed|'net.pos_embed'": without("net.pos_embed"),
    r"missing net.u_heads.0.mlp.w2._flax_linear.weight \(32, 85\)": without(
        "net.u_heads.0.mlp.w2._flax_linear.weight"
    ),
    r"unexpected net.extra \(3,\)": lambda tensors: tensors.update(
        {"net.extra": np.ones(3, np.float32)}
    ),
    r"net.u_heads.0.attn_scale holds complex64": lambda tensors: tensors.update(
        {"net.u_heads.0.attn_scale": np.ones(32, np.complex64)}
    ),
    "rope_freqs are not those of rows and columns": lambda tensors: tensors.update(
        {"net.rope_freqs": tensors["net.rope_freqs"].conj()}
    ),
    r"rope_freqs must be complex64 of shape \(9, 8\), got complex64 of shape \(8, 9\)": (
        lambda tensors: tensors.update(
            {"net.rope_freqs": tensors["net.rope_freqs"].reshape(8, 9)}
        )
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_files_that_are_not_whole(tmp_path, tensors, message):
    changed = dict(tensors)
    BAD[message](changed)
    path = torch_zip.save(tmp_path / "toy.pt", changed)
    with pytest.raises(ValueError, match=message) as error:
        open_checkpoint(path).check()
    assert str(path) in str(error.value)


def test_files_of_no_known_network(tmp_path):
    path = torch_zip.save(tmp_path / "x.pt", {"weight": np.ones(2, np.float32)})
    result = CliRunner().invoke(main, ["info", str(path)])
    assert_one_line(result, "it has neither the tensor input_blocks.0.0.weight")


def test_configs_given(file):
    with pytest.raises(ValueError, match="'lsun256' is not a preset of Pixel MeanFlow"):
        open_checkpoint(file, config="lsun256")
    deeper = dataclasses.replace(open_checkpoint(file).config, num_layers=4)
    with pytest.raises(ValueError, match="13 tensors do not fit the network: missing"):
        open_checkpoint(file, config=deeper).load()
    with pytest.raises(ValueError, match="must be a PixelMeanFlowConfig or the name"):
        open_checkpoint(file, config=cmjax.models.PRESETS["lsun256"])


def load(path):
    """Loads or is refused, in bounded memory."""
    tracemalloc.start()
    try:
        open_checkpoint(path).check()
    except ValueError as error:
        assert type(error) is ValueError, repr(error)
        assert str(path) in str(error) and len(str(error)) < 10**5
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64 * 2**20


@fuzz(60)
@given(data=st.data())
def test_bytes_of_the_pickle(tmp_path, tensors, data):
    pickled, storages = torch_zip.parts(tensors)
    content = data.draw(mutations(pickled))
    load(torch_zip.write(tmp_path / "x.pt", content, storages))


@fuzz(100)
@given(data=st.data())
def test_mutated_names_and_shapes(tmp_path, data):
    shapes = reference.shapes("toy")
    number = st.sampled_from(["0", "1", "2", "3", "-1", "7", "x", "", "99999999999"])
    for _ in range(data.draw(st.integers(1, 4))):
        name = data.draw(st.sampled_from(sorted(shapes)))
        shape = shapes.pop(name)
        parts = name.split(".")
        match data.draw(st.sampled_from(["remove", "rename", "reshape", "renumber"])):
            case "rename":
                shapes[data.draw(st.text(max_size=3)) + name] = shape
            case "reshape":
                size = st.one_of(st.integers(0, 200), st.sampled_from([2**31, 2**62]))
                shapes[name] = tuple(data.draw(st.lists(size, max_size=5)))
            case "renumber" if len(parts) > 2:
                shapes[".".join([*parts[:2], data.draw(number), *parts[3:]])] = shape
    found = unread({name: s for name, s in shapes.items() if name != "net.rope_freqs"})
    path = tmp_path / "x.pt"
    try:
        pixel_mean_flow.from_tensors(path, found).check()
    except ValueError as error:
        assert type(error) is ValueError and str(path) in str(error), repr(error)
