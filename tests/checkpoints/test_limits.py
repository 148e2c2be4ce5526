"""Files that would keep the reader waiting, or take more time and memory than a model needs."""

import json
import os
import zipfile

import pytest

import cmjax
from cmjax.checkpoints.tensors import open_safetensors
from cmjax.checkpoints.torch_file import open_torch
from tests.support import checkpoints as tiny

PIPELINE_FILES = (
    "model_index.json",
    "class_names.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A cmjax folder, a pipeline, and a .pt file."""
    root = tmp_path_factory.mktemp("models")
    for kind in ("cmjax", "diffusers", "pt"):
        tiny.write(root, kind)
    return root


@pytest.fixture
def models(tmp_path, written):
    """A copy of them, to be harmed."""
    import shutil

    return shutil.copytree(written, tmp_path / "models")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize(
    "name",
    [
        "cmjax/config.json",
        "cmjax/scheduler_config.json",
        "cmjax/model.safetensors",
        "cmjax/class_names.json",
        *(f"diffusers/{name}" for name in PIPELINE_FILES),
        "diffusers/unet/diffusion_pytorch_model.safetensors.index.json",
        "cd_tiny.pt",
    ],
)
def test_what_is_no_file_is_refused_at_once(models, name, kind):
    path = models / name
    path.unlink(missing_ok=True)
    if name.endswith(".index.json"):
        (models / "diffusers/unet/diffusion_pytorch_model.safetensors").unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    source = path if name == "cd_tiny.pt" else models / name.split("/")[0]
    with pytest.raises(
        ValueError, match="not a file|not a regular file|is not there|no config"
    ):
        cmjax.load(source)


@pytest.mark.parametrize("source", ["/dev/zero", "/dev/null"])
def test_a_device_is_no_model(source):
    with pytest.raises(ValueError, match=f"{source} is a pipe, a device or a socket"):
        cmjax.load(source)


def test_a_large_header_is_refused_unread(tmp_path):
    path = tmp_path / "model.safetensors"
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"tensor.{i}": empty for i in range(70_000)}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(
        ValueError, match=f"its header claims {len(header)} bytes, more than"
    ):
        open_safetensors(path)

    # A size alone, of which nothing is there.
    path.write_bytes(b"\xff" * 8)
    with pytest.raises(ValueError, match="its header claims 18446744073709551615 bytes"):
        open_safetensors(path)


def test_a_large_directory_of_an_archive_is_refused_unread(tmp_path):
    path = tmp_path / "cd_tiny.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(80):
            archive.writestr(f"{i:060000}", b"")
    with pytest.raises(ValueError, match=r"its directory claims 48\d+ bytes"):
        open_torch(path)


@pytest.mark.parametrize(
    "weight_map", [{}, {"a": ".."}, {"a": ""}, {"a": "../a"}, {"a": 3}, [], None]
)
def test_an_index_must_name_files_of_the_folder(models, weight_map):
    unet = models / "diffusers" / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match="index.json: weight_map must"):
        cmjax.load(models / "diffusers")
