"""Files and folders whose tensors tell their network: whatever names and shapes they have."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmjax.checkpoints import improved_mean_flow, mean_flow, open_checkpoint, shortcut
from cmjax.checkpoints.flax_names import as_torch, used_parameters
from cmjax.checkpoints.tensors import StoredTensor
from tests.support import flax_files, flax_networks, torch_zip
from tests.support.mutations import fuzz

READERS = {
    "mean_flow": (mean_flow, "MF-B/4"),
    "improved_mean_flow": (improved_mean_flow, "iMF-B/2"),
    "shortcut": (shortcut, "Shortcut-B/2"),
}


def unread(shapes):
    """Tensors of these shapes without values."""
    float32 = np.dtype(np.float32)
    return {name: StoredTensor(tuple(s), float32, None) for name, s in shapes.items()}


@fuzz(100)
@given(data=st.data())
def test_mutated_names_and_shapes(tmp_path, data):
    family = data.draw(st.sampled_from(sorted(READERS)))
    reader, preset = READERS[family]
    shapes = flax_networks.shapes(family, preset)
    number = st.sampled_from(["0", "1", "12", "-1", "7", "x", "", "99999999999"])
    for _ in range(data.draw(st.integers(1, 4))):
        name = data.draw(st.sampled_from(sorted(shapes)))
        shape = shapes.pop(name)
        match data.draw(st.sampled_from(["remove", "rename", "reshape", "renumber"])):
            case "rename":
                shapes[data.draw(st.text(max_size=3)) + name] = shape
            case "reshape":
                size = st.one_of(st.integers(0, 2000), st.sampled_from([2**31, 2**62]))
                shapes[name] = tuple(data.draw(st.lists(size, max_size=5)))
            case "renumber":
                block = flax_networks.BLOCK.sub(rf"\g<1>{data.draw(number)}.", name)
                shapes[block] = shape
    path = tmp_path / "x"
    found = unread(shapes)
    try:
        if family != "shortcut":
            found = as_torch(path, found)
        reader.from_tensors(path, found).check()
    except ValueError as error:
        assert type(error) is ValueError and str(path) in str(error), repr(error)
        assert "\n" not in str(error) and len(str(error)) < 10**5


def test_the_moving_average_is_preferred_and_said():
    state = unread({"params.w": (2,), "ema.w": (3,), "step": ()})
    used, note = used_parameters(state)
    assert used["w"].shape == (3,)
    assert note == (
        "ema, the moving average of the parameters, is used; ignored: params, step (2 arrays)"
    )
    used, note = used_parameters(unread({"params.w": (2,), "step": ()}))
    assert used["w"].shape == (2,)
    assert note == "the parameters are used; ignored: step (1 arrays)"
    used, note = used_parameters(unread({"w": (2,)}))
    assert used["w"].shape == (2,) and note == ""


@pytest.mark.parametrize("make", [flax_files.write_msgpack, flax_files.write_orbax_0_4])
def test_states_of_no_known_network(tmp_path, make):
    path = make(tmp_path / "x", {"params": {"w": np.ones(2, np.float32)}})
    with pytest.raises(
        ValueError, match="is not a checkpoint of a network that cmjax reads"
    ):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (
            ["module.input_blocks.0.0.weight"],
            "begin with 'module.', .* without it",
        ),
        (["conv1.weight", "fc.bias"], "its first is conv1.weight"),
        ([], "it has none"),
    ],
)
def test_tensors_of_no_known_network_are_described(tmp_path, names, hint):
    path = torch_zip.save(tmp_path / "a.pt", {name: np.zeros(2, "f4") for name in names})
    with pytest.raises(ValueError, match=f"a.pt is not a checkpoint of .*{hint}"):
        open_checkpoint(path)
