"""Samples in bulk: the same ones however they are made."""

import dataclasses
import json
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.generation import (
    BatchSampler,
    Request,
    filling,
    generate,
    model_digest,
    regroup,
    verify,
)
from cmjax.generation.shards import Shards
from cmjax.images import to_uint8
from cmjax.schedulers import LCMScheduler
from tests.support.generation import (
    CLASSES,
    REQUEST,
    assert_nearly_equal,
    events,
    export_of,
    images,
    make,
)
from tests.support.networks import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    """An uninterrupted run, on eight devices."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    outcome = make(folder, model, 90)
    assert (outcome.num_done, outcome.num_resumed, outcome.stopped) == (90, 0, False)
    return folder


# What is asked for.


def test_a_request_is_read_from_what_it_writes():
    for request in (
        Request(),
        Request(num_inference_steps=3, labels=[3, 1], seed=7),
        Request(timesteps=[22, 0], dtype="bfloat16"),
        Request(sigmas=[80.0, 1]),
    ):
        again = Request.from_json(json.loads(json.dumps(request.to_json())))
        assert again == request and hash(again) == hash(request)


def test_numbers_of_numpy_and_jax_become_those_of_python():
    request = Request(sigmas=np.float32([80, 0.5]), labels=jnp.arange(3), seed=np.int64(2))
    assert request == Request(sigmas=[80.0, 0.5], labels=(0, 1, 2), seed=2)
    assert json.dumps(request.to_json())
    assert Request(dtype=jnp.bfloat16).dtype == "bfloat16"


def test_without_levels_a_request_is_for_one_step():
    assert Request() == Request(num_inference_steps=1)
    assert Request(sigmas=[80.0]).num_inference_steps is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_inference_steps": 2, "sigmas": [80]}, "at most one of"),
        ({"num_inference_steps": 0}, "num_inference_steps must be an integer from 1"),
        ({"num_inference_steps": 1.5}, "num_inference_steps must be an integer"),
        ({"timesteps": 3}, "timesteps must be a list"),
        ({"timesteps": []}, "timesteps must not be empty"),
        ({"sigmas": "80"}, "sigmas must be a list"),
        ({"sigmas": [[80, 1]]}, "sigmas must be a list"),
        ({"sigmas": ["80"]}, "sigmas must be a list of finite numbers"),
        ({"labels": []}, "labels must not be empty"),
        ({"labels": [1.5]}, "labels must be a list of classes"),
        ({"labels": [-1]}, "labels must be a list of classes"),
        ({"seed": 2**32}, "seed must be an integer from 0 to 4294967295, got 4294967296"),
        ({"seed": True}, "seed must be an integer"),
        ({"dtype": "int32"}, "dtype must be a floating-point dtype"),
        ({"dtype": "float7"}, "dtype must be a floating-point dtype"),
        ({"dtype": "float64"}, "dtype=float64 needs"),
    ],
)
def test_a_request_is_checked_when_it_is_made(fields, message):
    with pytest.raises(ValueError, match=message):
        Request(**fields)


@pytest.mark.parametrize("labels", [None, (3, 10)])
def test_labels_are_those_of_the_model(model, labels):
    for use in (
        lambda: generate(model, Request(labels=labels), 1),
        lambda: BatchSampler(model, Request(labels=labels)),
    ):
        with pytest.raises(ValueError, match="labels must be"):
            use()


# Batches.


def test_regroup():
    rows = [np.arange(3), np.arange(3, 4), np.arange(4, 10)]
    parts = [part.tolist() for part in regroup(rows, [2, 5, 9])]
    assert parts == [[0, 1], [2, 3, 4, 5, 6], [7, 8, 9]]
    assert [len(part) for part in regroup(rows, [5, 5, 1])] == [5, 5]


def test_samples_are_those_of_the_loop(model):
    request = Request(labels=[3, 1, 4], seed=5, num_inference_steps=2)
    generated = generate(model, request, 7)
    assert generated.labels.tolist() == [3, 1, 4, 3, 1, 4, 3]
    samples = cmjax.sample(
        jax.random.key(5),
        model.apply_fn,
        model.params,
        model.scheduler,
        (7, 8, 8, 1),
        num_inference_steps=2,
        cond={"class_labels": generated.labels},
    )
    assert_nearly_equal(generated.images, to_uint8(samples))


def test_a_folder_holds_the_samples_of_generate(model, whole):
    expected = generate(model, REQUEST, 90)
    assert_nearly_equal(images(whole), expected.images)
    with np.load(export_of(whole)) as arrays:
        assert arrays["arr_1"].dtype == np.int64
        np.testing.assert_array_equal(arrays["arr_1"], expected.labels)


@pytest.mark.parametrize("name", ["num", "batch_size"])
def test_generate_refuses_to_make_nothing(model, name):
    with pytest.raises(ValueError, match=f"{name} must be an integer from 1"):
        generate(model, REQUEST, **{"num": 3, name: 0})


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 2), (2, 7), (8, 5)])
def test_devices_and_batches_do_not_matter(model, whole, devices, batch_size):
    devices = jax.devices()[:devices]
    sampler = BatchSampler(model, REQUEST, batch_size=batch_size, devices=devices)
    chosen = np.array([3, 88, 41, 7, 7], np.uint32)
    batches = regroup([chosen], [sampler.size] * 5)
    (made,) = regroup(sampler.batches(batches), [len(chosen)])
    assert_nearly_equal(made, images(whole)[chosen])


COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "reduce-scatter",
    " send(",
    " recv(",
)


def test_the_devices_do_not_communicate_and_one_program_serves_every_batch(model):
    traces = []
    compiled = []

    def counting(*args, **kwargs):
        traces.append(1)
        return model.apply_fn(*args, **kwargs)

    def listener(event, _, **__):
        if "backend_compile" in event:
            compiled.append(event)

    sampler = BatchSampler(
        dataclasses.replace(model, apply_fn=counting), REQUEST, batch_size=2
    )
    assert sampler.size == 16
    text = sampler.compiled.as_text()
    assert [name for name in COLLECTIVES if name in text] == []

    traced = len(traces)
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        batches = [np.arange(16, dtype=np.uint32), np.arange(16, 21, dtype=np.uint32)]
        assert [len(batch) for batch in sampler.batches(batches)] == [16, 5]
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert len(traces) == traced
    assert compiled == []


def test_divided_parameters_give_the_same_samples(model, whole):
    sampler = BatchSampler(model, REQUEST, batch_size=2, shard_params=True)
    (made,) = sampler.batches([np.arange(16, dtype=np.uint32)])
    assert_nearly_equal(made, images(whole)[:16])
    params = sampler._constants[1]
    leaves = jax.tree.leaves(params)
    per_device = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    assert per_device < 0.2 * sum(leaf.nbytes for leaf in leaves)
    text = sampler.compiled.as_text()
    assert "all-gather" in text or "all-reduce" in text


def test_the_way_noise_is_drawn_is_not_left_to_the_environment(model, whole):
    with jax.threefry_partitionable(False):
        sampler = BatchSampler(model, REQUEST, batch_size=2)
        (made,) = sampler.batches([np.arange(16, dtype=np.uint32)])
    assert_nearly_equal(made, images(whole)[:16])


def test_a_sample_that_is_not_finite_is_named(model, tmp_path):
    def broken(params, x, t, **cond):
        return model.apply_fn(params, x, t, **cond).at[3].set(np.nan)

    with pytest.raises(ValueError, match="sample number 3 is not finite"):
        make(tmp_path / "out", dataclasses.replace(model, apply_fn=broken))


# Runs.


def test_a_whole_run_compiles_its_program_once(model, tmp_path, caplog):
    with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
        make(tmp_path / "out", model, 37)
    names = re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)
    assert names.count("draw") == 1


def test_writing_overlaps_sampling_and_no_more_than_a_few_shards_wait(
    model, tmp_path, monkeypatch
):
    computed = []
    ahead = []
    write = Shards.write

    def batches(_, indices):  # at once
        for batch in indices:
            computed.append(len(batch))
            yield np.zeros((len(batch), *model.sample_shape), np.uint8)

    def slow(shards, shard, images):
        time.sleep(0.05)  # the sampler gets as far ahead as it may
        ahead.append(sum(computed) - shard.stop)
        write(shards, shard, images)

    monkeypatch.setattr(BatchSampler, "batches", batches)
    monkeypatch.setattr(Shards, "write", slow)
    make(tmp_path / "out", model, 16 * 12, shard_size=16)
    assert max(ahead) == 16 * filling.QUEUE


def test_the_log_tells_machines_how_far_it_is(whole):
    lines = events(whole)
    assert [line["event"] for line in lines] == [
        "start",
        "compiled",
        *["shard"] * 12,
        "done",
    ]
    shards = lines[2:-1]
    assert [line["first"] for line in shards] == list(range(0, 90, 8))
    assert all(line["rate"] > 0 for line in shards)
    assert shards[0]["eta"] > shards[-1]["eta"] == 0


def test_equal_settings_may_be_written_in_other_ways(model, tmp_path):
    for sigmas, seed in (([70, 1], 0), ((70.0, 1.0), np.int64(0)), (np.array([70, 1]), 0)):
        request = Request(sigmas=sigmas, seed=seed, labels=np.arange(10))
        outcome = make(tmp_path / "out", model, 8, request)
        assert outcome.num_done == 8
    assert outcome.num_resumed == 8
    assert verify(tmp_path / "out", model)[:2] == ([], 8)


def test_other_settings_are_refused_with_what_differs(model, whole):
    before = sorted(whole.rglob("*"))
    message = 'other settings: dtype was "float32", now "bfloat16"; seed was 0, now 1;'
    with pytest.raises(ValueError, match=message):
        make(whole, model, 90, Request(labels=CLASSES, seed=1, dtype="bfloat16"))
    message = "other settings: labels was [^;]*; num_inference_steps was [^;]*, now 2;"
    with pytest.raises(ValueError, match=message):
        make(whole, model, 90, Request(labels=[3], num_inference_steps=2))
    assert sorted(whole.rglob("*")) == before


def test_another_model_is_refused(model, whole):
    doubled = dataclasses.replace(model, params=jax.tree.map(lambda x: x * 2, model.params))
    assert model_digest(doubled) != model_digest(model)
    adapted = model.with_scheduler(LCMScheduler())
    other = dataclasses.replace(
        model, scheduler=dataclasses.replace(model.scheduler, sigma_data=1.0)
    )
    assert model_digest(adapted) != model_digest(other.with_scheduler(LCMScheduler()))
    as_if_trained = dataclasses.replace(adapted, trained_for=None)
    for wrong in (doubled, as_if_trained):
        with pytest.raises(ValueError, match="another model"):
            verify(whole, wrong)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num": 0}, "num"),
        ({"batch_size": 0}, "batch_size"),
        ({"shard_size": 0}, "shard_size"),
        ({"request": Request(labels=[3, 10])}, "labels"),
        ({"request": Request()}, "labels"),
        ({"formats": ["jpg"]}, "formats"),
    ],
)
def test_arguments_out_of_range_are_refused(model, tmp_path, options, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        make(tmp_path / "out", model, **options)
    assert not (tmp_path / "out").exists()
