"""The training step and its checkpoints, on a network of two numbers; and the data it reads."""

import gzip
import struct

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cmjax
from cmjax.images import from_uint8
from cmjax.training import data, losses, trainer

SCHEDULER = cmjax.CMStochasticIterativeScheduler()
CONFIG = losses.LossConfig(SCHEDULER, total_steps=100)
OPTIMIZER = optax.adam(1e-2)
BATCH = {"data": np.linspace(0.8, 1, 64, dtype=np.float32).reshape(32, 2)}  # far from zero: the bias can learn it


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's Adam itself mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def network(params, x, t):
    return params["gain"] * x + params["bias"][None]


def start(**options):
    params = {"gain": jnp.float32(0), "bias": jnp.zeros(2)}
    return trainer.TrainState.create(jax.random.key(0), params, OPTIMIZER, **options)


def run(state, steps, train_step):
    history = []
    for _ in range(steps):
        state, metrics = train_step(state, BATCH)
        history.append(float(metrics["loss"]))
    return state, history


def test_training_lowers_the_loss_and_averages_follow():
    train_step = trainer.make_train_step(losses.denoising_loss, network, OPTIMIZER, CONFIG)
    state, history = run(start(), 300, train_step)
    assert np.mean(history[-50:]) < 0.8 * np.mean(history[:50])
    assert int(state.step) == 300 and state.target is None
    gap = abs(float(state.ema["gain"] - state.params["gain"]))
    assert 0 < gap < abs(float(state.params["gain"]))


def test_a_step_is_compiled_once():
    traces = []

    def counting(*args):
        traces.append(1)
        return losses.denoising_loss(*args)

    run(start(), 3, trainer.make_train_step(counting, network, OPTIMIZER, CONFIG))
    assert len(traces) == 1


def test_ema_follows_its_ramp():
    train_step = trainer.make_train_step(losses.denoising_loss, network, OPTIMIZER, CONFIG, ema_decay=0.5)
    state, expected = start(), 0.0
    for step in range(20):
        state, _ = train_step(state, BATCH)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * float(state.params["gain"])
        assert float(state.ema["gain"]) == pytest.approx(expected, rel=1e-5)


def test_a_moving_target_is_what_the_loss_compares_with():
    train_step = trainer.make_train_step(
        losses.consistency_training_loss, network, OPTIMIZER, CONFIG, target_decay=lambda step: jnp.float32(0.75)
    )
    state, expected = start(with_target=True), 0.0
    for _ in range(5):
        state, _ = train_step(state, BATCH)
        expected = 0.75 * expected + 0.25 * float(state.params["gain"])
        assert float(state.target["gain"]) == pytest.approx(expected, rel=1e-5)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    train_step = trainer.make_train_step(losses.denoising_loss, network, OPTIMIZER, CONFIG)
    straight, history = run(start(), 10, train_step)
    state, first = run(start(), 4, train_step)
    trainer.save(tmp_path, state)
    state, second = run(trainer.restore(tmp_path, start()), 6, train_step)
    assert first + second == history
    chex.assert_trees_all_equal(state, straight)


def test_the_newest_two_checkpoints_are_kept_and_none_is_a_fresh_start(tmp_path):
    assert int(trainer.restore(tmp_path, start()).step) == 0
    train_step = trainer.make_train_step(losses.denoising_loss, network, OPTIMIZER, CONFIG)
    state = start()
    for _ in range(3):
        state, _ = train_step(state, BATCH)
        trainer.save(tmp_path, state)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]
    assert int(trainer.restore(tmp_path, start()).step) == 3


def test_batches_are_epochs_without_replacement():
    epoch = np.concatenate([data.batch_indices(0, step, 10, 50) for step in range(5)])
    assert sorted(epoch) == list(range(50))
    following = np.concatenate([data.batch_indices(0, step, 10, 50) for step in range(5, 10)])
    assert sorted(following) == list(range(50)) and not np.array_equal(epoch, following)
    assert np.array_equal(data.batch_indices(0, 7, 10, 50), data.batch_indices(0, 7, 10, 50))
    with pytest.raises(ValueError, match="batch_size 60.*50"):
        data.batch_indices(0, 0, 60, 50)


IMAGES, LABELS = np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.array([7, 1], np.uint8)


def write_idx(path, array, opener=open):
    with opener(path, "wb") as file:
        file.write(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


@pytest.mark.parametrize("opener", [open, gzip.open])
def test_idx_files(tmp_path, opener):
    write_idx(tmp_path / "train-images-idx3-ubyte", IMAGES, opener)
    write_idx(tmp_path / "train-labels-idx1-ubyte", LABELS, opener)
    images, labels = data.load_images(tmp_path / "train-images-idx3-ubyte")
    np.testing.assert_array_equal(images, IMAGES[..., None])
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("names", [("x_train", "y_train"), ("images", "labels")])
def test_npz_files(tmp_path, names):
    np.savez(tmp_path / "a.npz", **dict(zip(names, (IMAGES, LABELS), strict=True)))
    images, labels = data.load_images(tmp_path / "a.npz")
    assert images.shape == (2, 3, 4, 1) and labels.tolist() == [7, 1]


def test_bad_data_files(tmp_path):
    np.savez(tmp_path / "a.npz", pictures=IMAGES)
    with pytest.raises(ValueError, match="neither 'x_train' nor 'images'.*pictures"):
        data.load_images(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", images=IMAGES / 255)
    with pytest.raises(ValueError, match="u8 images.*float64"):
        data.load_images(tmp_path / "b.npz")
    (tmp_path / "text-images").write_text("hello")
    with pytest.raises(ValueError, match="neither an .npz nor an IDX"):
        data.read_idx(tmp_path / "text-images")
    write_idx(tmp_path / "cut", IMAGES)
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) but holds 19"):
        data.read_idx(tmp_path / "cut")


def test_pixels_map_to_minus_one_and_one():
    np.testing.assert_allclose(from_uint8(np.array([0, 255], np.uint8)), [-1, 1])
