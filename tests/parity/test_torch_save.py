"""Files that PyTorch wrote."""

import collections

import ml_dtypes
import numpy as np
import pytest
import torch

from cmjax.checkpoints.torch_file import open_torch

DTYPES = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
    torch.complex64: np.complex64,
}


def raw(tensor):
    """The bytes of a tensor's values in order; `numpy()` knows no bfloat16."""
    return (
        tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        if tensor.numel()
        else b""
    )


def assert_reads(path, content, **options):
    torch.save(content, path, **options)
    stored = open_torch(path)
    assert list(stored) == list(content)
    for name, tensor in content.items():
        assert (stored[name].shape, stored[name].dtype) == (
            tuple(tensor.shape),
            DTYPES[tensor.dtype],
        ), name
        values = stored[name].read()
        assert values.shape == tuple(tensor.shape) and values.tobytes() == raw(tensor), name


def draw(*shape, dtype=torch.float32):
    bits = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (*shape, 8), np.uint8)
    )
    if dtype == torch.bool:
        return bits[..., 0] > 127
    return bits.view(dtype)[
        ..., 0
    ].clone()  # any bits: NaNs, infinities and subnormals among them


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_protocol(tmp_path, dtype, protocol):
    content = {
        "matrix": draw(3, 5, dtype=dtype),
        "scalar": draw(1, dtype=dtype)[0].clone(),
        "empty": torch.empty(0, 4, dtype=dtype),
        "name with spaces and é": draw(7, dtype=dtype),
    }
    assert_reads(tmp_path / "x.pt", content, pickle_protocol=protocol)


@pytest.mark.parametrize("protocol", [2, 5])
def test_every_layout(tmp_path, protocol):
    base = draw(4, 6)
    image = draw(2, 3, 4, 5)
    content = {
        "whole": base,
        "transposed": base.T,
        "row": base[1],
        "column": base[:, 2],
        "block": base[1:3, 2:5],
        "every other": base[::2, 1::3],
        "diagonal": base.diagonal(),
        "element": base[3, 5],
        "expanded": draw(1, 6).expand(9, 6),
        "expanded scalar": draw(1)[0].expand(3, 2),
        "channels last": image.contiguous(memory_format=torch.channels_last),
        "permuted": image.permute(3, 0, 2, 1),
        "none": base[4:],
        "none across": base[:, 6:],
        "axes of one": base[None, :, None, 1:2],
    }
    assert_reads(tmp_path / "x.pt", content, pickle_protocol=protocol)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dicts(tmp_path, protocol):
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.GroupNorm(2, 4),
        torch.nn.BatchNorm2d(4),
        torch.nn.Linear(4, 2, bias=False),
    )
    state = module.state_dict()
    assert isinstance(state, collections.OrderedDict) and state._metadata
    assert_reads(tmp_path / "module.pt", state, pickle_protocol=protocol)
    assert_reads(
        tmp_path / "parameters.pt",
        dict(module.named_parameters()),
        pickle_protocol=protocol,
    )
    tied = {
        "a": module[0].weight,
        "b": module[0].weight,
        "c": module[0].weight.detach().reshape(-1),
    }
    assert_reads(tmp_path / "tied.pt", tied, pickle_protocol=protocol)
    assert_reads(tmp_path / "empty.pt", {}, pickle_protocol=protocol)


def test_many_tensors(tmp_path):
    """More than 256, where the memo's instructions change."""
    assert_reads(
        tmp_path / "x.pt",
        {f"blocks.{i}.weight": torch.full((2,), float(i)) for i in range(3000)},
    )


def test_a_file_object_and_another_ending(tmp_path):
    with (tmp_path / "x.bin").open(
        "wb"
    ) as file:  # PyTorch then names the folder in the archive "archive"
        torch.save({"x": torch.arange(3.0)}, file)
    assert open_torch(tmp_path / "x.bin")["x"].read().tolist() == [0, 1, 2]


def test_the_old_format_is_told_apart(tmp_path):
    torch.save(
        {"x": torch.zeros(2)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False
    )
    with pytest.raises(
        ValueError,
        match=r"x\.pt is not a readable.*before PyTorch 1.6; load and save it with a newer",
    ):
        open_torch(tmp_path / "x.pt")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            torch.nn.Linear(2, 2),
            "asks for torch.nn.modules.linear.Linear.*refused, nothing was run",
        ),
        ({"model": torch.nn.Linear(2, 2)}, "torch.nn.modules.linear.Linear"),
        ({"x": torch.zeros(2, dtype=torch.complex128)}, "torch.ComplexDoubleStorage"),
        ({"x": torch.zeros(2, dtype=torch.float8_e4m3fn)}, "_rebuild_tensor_v3"),
        ({"x": torch.zeros(2, 2).to_sparse()}, "_rebuild_sparse_tensor"),
        (
            {"x": torch.zeros(2, dtype=torch.complex64).conj().imag},
            "_rebuild_tensor_v2 with arguments it does not",
        ),
        ({"x": torch.zeros(2), "device": torch.device("cpu")}, "torch.device"),
        ({"x": torch.zeros(2), "epoch": 3}, "does not hold a state dict"),
        ({"model": {"x": torch.zeros(2)}}, "does not hold a state dict"),
        ({0: torch.zeros(2)}, "dictionary whose keys are not names"),
        (torch.zeros(2), "does not hold a state dict"),
        ([torch.zeros(2)], "does not hold a state dict"),
        (slice(3), "builtins.slice|__builtin__.slice"),
    ],
)
def test_what_is_refused(tmp_path, content, message, protocol):
    torch.save(content, tmp_path / "x.pt", pickle_protocol=protocol)
    with pytest.raises(ValueError, match=message):
        open_torch(tmp_path / "x.pt")


def test_torchscript_is_refused(tmp_path):
    import zipfile

    with zipfile.ZipFile(
        tmp_path / "x.pt", "w"
    ) as archive:  # as torch.jit.save, which PyTorch has deprecated
        archive.writestr(
            "x/data.pkl",
            b"\x80\x02c__torch__.torch.nn.modules.linear\nLinear\nq\x00)\x81}b.",
        )
        archive.writestr("x/constants.pkl", b"\x80\x02).")
    with pytest.raises(ValueError, match="__torch__.torch.nn.modules.linear.Linear"):
        open_torch(tmp_path / "x.pt")


def test_files_beyond_four_gigabytes_are_marked_alike(tmp_path):
    """PyTorch's own zip64 fields, which its writer sets for small files too."""
    content = {"x": draw(1000), "y": draw(3)}
    torch.save(content, tmp_path / "x.pt")
    assert b"PK\x06\x06" in (tmp_path / "x.pt").read_bytes()
    assert_reads(tmp_path / "x.pt", content)
