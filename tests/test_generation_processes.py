"""Bulk generation by processes that are killed, meet in a folder, or work together."""

import json
import os
import random
import signal
import subprocess
import sys

import jax
import pytest

import cmjax
from cmjax.cli.distributed import initialize
from tests.support.generation import (
    KILLED_AT_THE_FOURTH_READ,
    SLOW_DISK,
    assert_nearly_equal,
    events,
    export_of,
    images,
    launched,
    make,
    process_of,
    wait_for,
)
from tests.support.networks import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """The model's folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    cmjax.save(folder, model)
    return folder


@pytest.mark.process
def test_killed_at_any_moment_the_file_is_the_same_byte_for_byte(model, saved, tmp_path):
    """At two random moments of sampling, and in the middle of writing the result."""
    make(tmp_path / "alone", model, 600)
    out = tmp_path / "out"
    moments = random.Random(0)
    for _ in range(2):
        known = len(events(out))
        with launched(out, saved, 600, before=SLOW_DISK) as process:
            # "start", "compiled", and at least one new shard
            wait_for(lambda known=known: len(events(out)) > known + 2, process)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(moments.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
    with launched(out, saved, 600, before=KILLED_AT_THE_FOURTH_READ) as process:
        assert process.wait(300) == -signal.SIGKILL
    assert len(list(out.glob(".cmjax-*.npz"))) == 1 and not list(out.glob("samples_*"))

    (out / "shards/.cmjax-01234567.npz").touch()  # as a kill within a shard may leave it
    outcome = make(out, model, 600)
    assert (outcome.num_resumed, outcome.num_done) == (600, 600)
    assert [event.get("resumed") for event in events(out) if event["event"] == "start"][
        1
    ] > 0
    assert export_of(out).read_bytes() == export_of(tmp_path / "alone").read_bytes()
    assert not list(out.rglob(".cmjax-*"))


@pytest.mark.process
def test_two_runs_do_not_meet_in_a_folder(model, saved, tmp_path):
    out = tmp_path / "out"
    with launched(out, saved, 5000, before=SLOW_DISK) as process:  # half a minute for all
        wait_for(lambda: any(event["event"] == "shard" for event in events(out)), process)
        with pytest.raises(ValueError, match=f"another run is at work in {out}"):
            make(out, model, 5000)
    assert make(out, model, 16).num_done == 16  # what was killed keeps nobody out


def slurm(task):
    """What Slurm tells one of two tasks; JAX makes its port, from 61440 up, of the job's number."""
    return {
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(task),
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
    }


@pytest.fixture(scope="module")
def pair(saved, tmp_path_factory):
    """Two tasks of Slurm, of two devices each, that went through `tests.support.pair`."""
    root = tmp_path_factory.mktemp("pair")
    command = [sys.executable, "-m", "tests.support.pair", root, saved]
    job = {"SLURM_JOB_ID": str(random.randrange(2**12))}
    with process_of(*command, environment=slurm(0) | job) as one:
        with process_of(*command, environment=slurm(1) | job) as two:
            log = root / "stopped"
            wait_for(lambda: any(e["event"] == "shard" for e in events(log, 1)), two)
            two.send_signal(signal.SIGTERM)
            outputs = [process.communicate(timeout=300) for process in (one, two)]
    assert one.returncode == two.returncode == 0, outputs
    results = [json.loads(stdout.splitlines()[-1]) for stdout, _ in outputs]
    return root, {name: (results[0][name], results[1][name]) for name in results[0]}


@pytest.mark.process
def test_two_processes_share_the_work(pair, model, tmp_path):
    root, results = pair
    assert [code for code, _ in results["whole"]] == [0, 0], results
    made = [
        sum(e["event"] == "shard" for e in events(root / "whole", process))
        for process in (0, 1)
    ]
    assert made == [6, 6]
    make(tmp_path / "alone", model, 90)
    assert_nearly_equal(images(root / "whole"), images(tmp_path / "alone"))


@pytest.mark.process
def test_the_others_wait_until_the_result_is_written(pair):
    folder = pair[0] / "whole"
    (finished,) = folder.glob(".finished-*")
    assert finished.stat().st_mtime >= export_of(folder).stat().st_mtime


@pytest.mark.process
@pytest.mark.parametrize(
    ("situation", "first", "second"),
    [
        ("one has no model", "process 1 failed; see its message", "none"),
        ("two folders", "process 1 failed", "process 1 does not see"),
        ("two numbers", "same number of samples, got [96, 90]", "same number of samples"),
    ],
)
def test_nobody_waits_for_a_process_that_cannot_go_on(pair, situation, first, second):
    (code, message), (other_code, other_message) = pair[1][situation]
    assert (code, other_code) == (2, 2)
    assert first in message and second in other_message


@pytest.mark.process
def test_nothing_is_made_where_one_process_cannot_begin(pair):
    assert not (pair[0] / "one has no model").exists()


@pytest.mark.process
def test_a_signal_to_one_process_stops_both(pair):
    root, results = pair
    assert [code for code, _ in results["stopped"]] == [130, 130]
    for process in (0, 1):
        assert events(root / "stopped", process)[-1]["event"] == "stopped"


@pytest.fixture
def joined(monkeypatch):
    """What JAX's runtime is asked for, instead of doing it."""
    calls = []

    def initialize(*args, local_device_ids, **_):
        calls.append((args, local_device_ids))

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return calls


def test_processes_join_at_an_address(joined):
    initialize("localhost:1234", 2, 1)
    assert joined == [(("localhost:1234", 2, 1), None)]


@pytest.mark.parametrize(("nodes", "devices"), [("1", None), ("2", [])])
def test_a_task_alone_on_its_node_has_all_its_devices(joined, monkeypatch, nodes, devices):
    for name, value in {**slurm(0), "SLURM_STEP_NUM_NODES": nodes}.items():
        monkeypatch.setenv(name, value)
    initialize(None, None, None)
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "0,1")  # the user's word comes first
    initialize(None, None, None)
    assert joined == [((None, None, None), ids) for ids in (devices, None)]


@pytest.mark.parametrize(
    ("environment", "joins"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"TPU_ML_PLATFORM": "JAX"}, True),
        ({"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "cpu"}, False),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, False),
        (
            {
                "TPU_ML_PLATFORM": "JAX",
                "TPU_SKIP_MDS_QUERY": "1",
                "TPU_WORKER_HOSTNAMES": "a,b",
            },
            True,
        ),
    ],
)
def test_processes_join_where_there_are_others(joined, monkeypatch, environment, joins):
    for name in ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    initialize(None, None, None)
    initialize("none", None, None)
    assert [args for args, _ in joined] == [(None, None, None)] * joins
