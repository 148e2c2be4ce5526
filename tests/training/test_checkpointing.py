"""Damaged and foreign checkpoints: one line that names them, never another state."""

import random
import shutil

import chex
import jax.numpy as jnp
import pytest

from cmjax.training import checkpointing
from cmjax.training.checkpointing import Checkpoints
from cmjax.training.train_step import TrainState
from tests.support.draws import draws


def state_of(step):
    params = {"kernel": jnp.arange(600.0) + step, "bias": jnp.ones(3)}
    return TrainState(
        step=jnp.int32(step),
        params=params,
        ema=(params,),
        target=None,
        opt_state=(jnp.zeros(3),),
        key=jnp.zeros(2, jnp.uint32),
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run with checkpoints of steps 3 and 6."""
    folder = tmp_path_factory.mktemp("run")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state_of(3))
        checkpoints.save(state_of(6))
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of it, to be damaged."""
    shutil.copytree(saved / "checkpoints", tmp_path / "checkpoints")
    return tmp_path


def restore(folder):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(state_of(0))


def files_of(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def test_a_flipped_bit_is_never_another_state(copy, capfd):
    """Bits of every file, so that all kinds of damage occur; some bytes nobody reads."""
    draw = random.Random(0)
    wanted = state_of(6)
    refused = 0
    for path in files_of(copy / "checkpoints" / "6"):
        content = path.read_bytes()
        for _ in range(draws(2) if content else 0):
            damaged = bytearray(content)
            bit = draw.randrange(8 * len(content))
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            try:
                chex.assert_trees_all_equal(restore(copy), wanted)
            except ValueError as error:
                refused += 1
                assert f"checkpoint {copy / 'checkpoints' / '6'} is" in str(error)
                assert str(error).endswith("remove it, and the run continues from step 3")
                assert "\n" not in str(error)
        path.write_bytes(content)
    assert refused > 4
    assert capfd.readouterr() == ("", "")


def cut(name):
    def do(checkpoint):
        path = checkpoint / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return do


@pytest.mark.parametrize(
    "damage",
    [
        cut("default/_METADATA"),
        cut("default/manifest.ocdbt"),
        cut("default/array_metadatas/process_0"),
        lambda checkpoint: (checkpoint / "default" / "_METADATA").unlink(),
        lambda checkpoint: (checkpoint / "default" / "manifest.ocdbt").unlink(),
        lambda checkpoint: shutil.rmtree(checkpoint / "default"),
        lambda checkpoint: shutil.rmtree(checkpoint / "default" / "d"),
    ],
)
def test_a_checkpoint_in_parts_is_refused(copy, damage):
    damage(copy / "checkpoints" / "6")
    with pytest.raises(ValueError, match="checkpoints/6 is .* remove it.*from step 3"):
        restore(copy)
    shutil.rmtree(copy / "checkpoints" / "6")
    chex.assert_trees_all_equal(restore(copy), state_of(3))


def test_a_folder_that_is_no_checkpoint_is_refused(copy):
    newest = copy / "checkpoints" / "900"
    newest.mkdir()
    with pytest.raises(ValueError, match="900 is damaged or no .* continues from step 6"):
        restore(copy)

    # A copy of another one has another step's state.
    newest.rmdir()
    shutil.copytree(copy / "checkpoints" / "3", newest)
    with pytest.raises(ValueError, match="900 .* it holds step 3; remove it"):
        restore(copy)


def test_the_only_checkpoint_has_none_before_it(copy):
    shutil.rmtree(copy / "checkpoints" / "3")
    cut("default/_METADATA")(copy / "checkpoints" / "6")
    with pytest.raises(ValueError, match="remove it, and the run continues from its begin"):
        restore(copy)


@pytest.mark.parametrize("step, last", [(None, "there is none yet"), (3, "is of step 3")])
def test_an_error_of_writing_says_what_there_is(tmp_path, monkeypatch, step, last):
    def fail(*_, **__):
        raise OSError("No space left on device")

    with Checkpoints(tmp_path) as checkpoints:
        if step is not None:
            checkpoints.save(state_of(step))
            checkpoints.wait()
        monkeypatch.setattr(checkpoints._manager, "save", fail)
        with pytest.raises(OSError, match=f"No space left on device; .*{last}"):
            checkpoints.save(state_of(6))


@pytest.mark.parametrize(
    "rest", [" [tensorstore_spec='{}']", " See full TensorStore details: x"]
)
def test_errors_end_before_what_is_for_tensorstore(rest):
    error = ValueError(f"Error reading d/0: out of range.{rest}\nmore lines")
    assert checkpointing._first_line(error) == "Error reading d/0: out of range."


@pytest.mark.parametrize("keep", [0, -1, True, 2.5, "2", None])
def test_a_number_of_checkpoints_below_one_is_refused(tmp_path, keep):
    # 0 would delete each of them as soon as it is written.
    with pytest.raises(ValueError, match="keep must be an integer of at least 1, got"):
        Checkpoints(tmp_path, keep)
    with pytest.raises(ValueError, match="folder must be a path, got 3"):
        Checkpoints(3)
