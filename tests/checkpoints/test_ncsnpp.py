"""OpenAI's files of CIFAR-10: recognised by names and shapes, and whole or not read at all."""

import json
import re
import tracemalloc

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import cmjax
from cmjax.checkpoints import open_checkpoint
from cmjax.checkpoints.ncsnpp import from_tensors, infer_config
from cmjax.checkpoints.tensors import StoredTensor
from cmjax.cli import main
from cmjax.models import NCSNPP_PRESETS
from tests.support import ncsnpp as reference
from tests.support.cli import assert_one_line, succeeded
from tests.support.mutations import fuzz, mutations

TOY = reference.CONFIGS["toy"]
PLAIN = reference.CONFIGS["plain"]  # the quicker one


@pytest.fixture
def file(tmp_path):
    return reference.save(tmp_path / "checkpoint_80", "cd", "plain")


def unread(shapes):
    """Tensors of these shapes without values."""
    return {name: StoredTensor(s, np.dtype(np.float32), None) for name, s in shapes.items()}


def test_names_and_shapes_tell_the_released_network(tmp_path):
    checkpoint = from_tensors(tmp_path / "x", unread(reference.shapes("cifar10")))
    assert checkpoint.config == NCSNPP_PRESETS["cifar10"]
    assert checkpoint.scheduler == cmjax.CMStochasticIterativeScheduler(
        num_train_timesteps=18
    )
    checkpoint.check()
    count = sum(np.prod(shape) for shape in reference.shapes("cifar10").values())
    assert count == 56_395_651


def test_other_networks_of_the_code_have_a_place_for_every_tensor(tmp_path):
    for which in ("toy", "plain"):
        found = unread(reference.shapes(which))
        from_tensors(tmp_path / "x", found, reference.CONFIGS[which]).check()

    # Without the config, the size of the images is that of the released ones.
    found = infer_config(unread(reference.shapes("plain")))
    assert (found.block_out_channels, found.fourier_time) == ((12, 24), False)
    assert (found.sample_size, found.smooth_resampling) == (32, False)


@pytest.mark.parametrize("kind", reference.KINDS)
def test_the_averaged_parameters_are_taken_of_every_state(tmp_path, kind):
    path = reference.save(tmp_path / "checkpoint_74", kind)
    checkpoint = open_checkpoint(path, config=TOY)
    model = checkpoint.load()
    expected = reference.params("toy")
    np.testing.assert_array_equal(
        model.params["mid_block"]["attentions"][0]["to_q"]["kernel"],
        expected["AttnBlockpp_2.NIN_0.W"],
    )
    np.testing.assert_array_equal(
        model.params["time_frequencies"], expected["GaussianFourierProjection_0.W"]
    )
    assert "params_ema, the moving average of the parameters, is used" in checkpoint.note
    ignored = checkpoint.note.partition("ignored: ")[2].partition(" (")[0].split(", ")
    expected = {"params", "opt_state", "rng_state"}
    if kind in ("ct", "progressive"):
        expected.add("target_params")
    assert expected <= set(ignored)
    assert ("EDMHeunScheduler in 18 steps" in checkpoint.note) == (kind == "edm")
    assert ("progressive distillation" in checkpoint.note) == (kind == "progressive")


def test_parameters_alone(tmp_path, file):
    tree = reference.nested(reference.params("plain"))
    for name, content in {"alone": tree, "params": {"params": tree, "step": 3}}.items():
        path = tmp_path / name
        path.write_bytes(reference.packed(content))
        checkpoint = open_checkpoint(path, config=PLAIN)
        assert ("the parameters are used" in checkpoint.note) == (name == "params")
        found, expected = (open_checkpoint(p, config=PLAIN).load() for p in (path, file))
        jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_one_command_makes_a_picture(tmp_path, file):
    args = ["sample", "--model", str(file), "-n", "2", "--batch-size", "2"]
    out = tmp_path / "two.png"
    result = succeeded(CliRunner().invoke(main, [*args, "--out", str(out)]))
    assert out.read_bytes()[:4] == b"\x89PNG" and "1 network call" in result.output
    assert "Note: params_ema, the moving average" in result.stderr


def test_saved_and_loaded_again(tmp_path):
    file = reference.save(tmp_path / "checkpoint_80")
    model = cmjax.load(file, config=TOY)
    cmjax.save(tmp_path / "folder", model)
    again = cmjax.load(tmp_path / "folder")
    assert (again.config, again.scheduler) == (model.config, model.scheduler)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_info_of_a_released_size(tmp_path):
    """Of sparse tensors: nothing is read."""
    path = tmp_path / "checkpoint_80"
    shapes = {f"params_ema.{name}": s for name, s in reference.shapes("cifar10").items()}
    tree = reference.nested({name: np.zeros(s, np.float16) for name, s in shapes.items()})
    path.write_bytes(reference.packed(tree | {"step": np.int32(3)}))
    said = succeeded(CliRunner().invoke(main, ["info", str(path)])).stdout
    assert re.search(r"^network +NCSNpp$", said, re.MULTILINE)
    assert re.search(r"^preset +cifar10$", said, re.MULTILINE)
    assert re.search(r"^tensors +56,395,651 parameters in 445 tensors$", said, re.MULTILINE)
    assert re.search(r"^note +params_ema, the moving average.*; ignored: step", said, re.M)
    as_json = ["info", str(path), "--config", "cifar10", "--json"]
    described = json.loads(succeeded(CliRunner().invoke(main, as_json)).stdout)
    assert described["preset"] == "cifar10"


CHANGES = {
    r"missing AttnBlockpp_0.NIN_3.W \(24, 24\)": {"params_ema.AttnBlockpp_0.NIN_3.W": None},
    r"unexpected Dense_2.kernel \(3,\)": {
        "params_ema.Dense_2.kernel": np.ones(3, np.float32)
    },
    r"misshapen Conv_0.bias: \(9,\) in the file, \(12,\)": {
        "params_ema.Conv_0.bias": np.ones(9, np.float32)
    },
    r"missing Conv_0.bias \(12,\)": {"params_ema.Conv_0.bias": 3},
    "Conv_0.bias holds uint32, not floating-point numbers": {
        "params_ema.Conv_0.bias": np.ones(12, np.uint32)
    },
    "Conv_0.bias has values that are not finite": {
        "params_ema.Conv_0.bias": np.full(12, np.nan, np.float32)
    },
}


@pytest.mark.parametrize("message", CHANGES)
def test_files_that_are_not_whole(tmp_path, message):
    changes = CHANGES[message]
    path = reference.save(tmp_path / "checkpoint_80", "cd", "plain", changes)
    with pytest.raises(ValueError, match=message) as error:
        open_checkpoint(path, config=PLAIN).load()
    assert str(path) in str(error.value)


def test_networks_that_are_not_read(tmp_path, file):
    shapes = reference.shapes("cifar10")
    two_heads = shapes | {"Conv_1.kernel": (3, 3, 256, 6)}
    with pytest.raises(ValueError, match="6 channels out and 3 in: two heads"):
        from_tensors(tmp_path / "x", unread(two_heads))
    more = shapes | {"AttnBlockpp_6.NIN_0.W": (256, 256)}
    with pytest.raises(ValueError, match="attention is at other resolutions"):
        from_tensors(tmp_path / "x", unread(more))

    other = tmp_path / "other"
    other.write_bytes(
        reference.packed({"params": {"Dense_0": {"kernel": np.ones((2, 2))}}})
    )
    result = CliRunner().invoke(main, ["info", str(other)])
    assert_one_line(result, "nor ResnetBlockBigGANpp_0.Conv_0.kernel (those of CIFAR-10)")
    with pytest.raises(ValueError, match="'lsun256' is not a preset of NCSN"):
        open_checkpoint(file, config="lsun256")
    with pytest.raises(ValueError, match="must be a NCSNppConfig or the name of a preset"):
        open_checkpoint(file, config=cmjax.models.PRESETS["lsun256"])


def load(path):
    """Loads or is refused, in bounded memory."""
    tracemalloc.start()
    try:
        open_checkpoint(path, config=PLAIN).check()
    except ValueError as error:
        assert type(error) is ValueError, repr(error)
        assert str(path) in str(error) and len(str(error)) < 10**5
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64 * 2**20


@fuzz(40)
@given(data=st.data())
def test_mutated_bytes(tmp_path, data):
    path = tmp_path / "x"
    path.write_bytes(data.draw(mutations(reference.content("cd", "plain"))))
    load(path)


@fuzz(40)
@given(data=st.data())
def test_mutated_names_and_shapes(tmp_path, data):
    shapes = reference.shapes("plain")
    number = st.sampled_from(["0", "1", "2", "-1", "70", "x", "", "99999999999"])
    for _ in range(data.draw(st.integers(1, 4))):
        name = data.draw(st.sampled_from(sorted(shapes)))
        shape = shapes.pop(name)
        match data.draw(st.sampled_from(["remove", "rename", "reshape", "renumber"])):
            case "rename":
                shapes[data.draw(st.text(max_size=3)) + name] = shape
            case "reshape":
                size = st.one_of(st.integers(0, 300), st.sampled_from([2**31, 2**62]))
                shapes[name] = tuple(data.draw(st.lists(size, max_size=5)))
            case "renumber":
                kind, _, rest = name.partition("_")
                rest = rest.partition(".")[2]
                shapes[f"{kind}_{data.draw(number)}.{rest}"] = shape
    path = tmp_path / "x"
    try:
        from_tensors(path, unread(shapes)).check()
    except ValueError as error:
        assert type(error) is ValueError and str(path) in str(error), repr(error)
