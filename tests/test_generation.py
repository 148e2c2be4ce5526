"""Bulk generation: the same samples however they are made, and whatever happens meanwhile."""

import contextlib
import dataclasses
import errno
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import cmjax
from cmjax import cli
from cmjax.cli.options import initialize
from cmjax.generation import (
    Sampler,
    folder,
    generate,
    generate_folder,
    model_digest,
    regroup,
    verify,
)
from cmjax.generation.exports import damaged_exports
from cmjax.generation.manifest import read_manifest
from cmjax.generation.shards import Shards
from cmjax.schedulers import LCMScheduler

ROOT = Path(__file__).parent.parent
CLASSES = list(range(10))


@pytest.fixture(scope="module")
def model():
    return cmjax.load()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    """An uninterrupted run, on eight devices."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    made = generate_folder(folder, model, 90, labels=CLASSES, batch_size=2, shard_size=8)
    assert (made.done, made.resumed, made.stopped) == (90, 0, False)
    return folder


def merged(folder):
    (path,) = folder.glob("samples_*.npz")
    return path.read_bytes()


def images(folder):
    (path,) = folder.glob("samples_*.npz")
    with np.load(path) as arrays:
        return arrays["arr_0"]


def nearly_equal(a, b):
    """Reductions may round in another order, which shows in a handful of pixels by one of 255."""
    difference = np.abs(a.astype(int) - b.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@contextlib.contextmanager
def launched(folder, cache, *options, devices=1, num=90, before="", environment=()):
    """`cmjax generate` as a process of its own."""
    program = f"{before}\nfrom cmjax.cli import main; main()"
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {
        **os.environ,
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": "",
        **dict(environment),
    }
    command = [
        sys.executable,
        "-c",
        program,
        "generate",
        "--num-samples",
        num,
        "--out",
        folder,
        "--shard-size",
        8,
    ]
    command += ["--batch-size", 4, "--compilation-cache", cache, "--quiet", *options]
    process = subprocess.Popen(
        [*map(str, command)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(process):
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def wait_for_a_shard(log):
    deadline = time.time() + 120
    while not (log.exists() and '"shard"' in log.read_text()):
        assert time.time() < deadline
        time.sleep(0.02)


def test_regroup():
    rows = [np.arange(3), np.arange(3, 4), np.arange(4, 10)]
    assert [part.tolist() for part in regroup(rows, [2, 5, 9])] == [
        [0, 1],
        [2, 3, 4, 5, 6],
        [7, 8, 9],
    ]
    assert [len(part) for part in regroup(rows, [5, 5, 1])] == [5, 5]


def test_samples_are_those_of_the_loop_and_of_generate(model, whole):
    state = model.scheduler.set_timesteps(1)
    expected = generate(model, state, 90, labels=CLASSES)
    nearly_equal(images(whole), expected.images)
    with np.load(next(whole.glob("samples_90x28x28x1.npz"))) as arrays:
        assert arrays["arr_1"].dtype == np.int64
        np.testing.assert_array_equal(arrays["arr_1"], expected.labels)
        np.testing.assert_array_equal(arrays["arr_1"], np.arange(90) % 10)


def test_the_log_tells_machines_how_far_it_is(whole):
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "compiled", *["shard"] * 12, "done"]
    shards = lines[2:-1]
    assert [line["first"] for line in shards] == list(range(0, 90, 8))
    assert all(line["rate"] > 0 for line in shards)
    assert shards[0]["eta"] > shards[-1]["eta"] == 0


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 2), (1, 7), (2, 2), (8, 5)])
def test_devices_and_batches_do_not_matter(model, whole, devices, batch_size):
    state = model.scheduler.set_timesteps(1)
    options = {"labels": CLASSES, "batch_size": batch_size, "devices": jax.devices()[:devices]}
    sampler = Sampler(model, state, **options)
    chosen = np.array([3, 88, 41, 7, 7], np.uint32)
    (made,) = regroup(sampler.batches(regroup([chosen], [sampler.size] * 5)), [len(chosen)])
    nearly_equal(made, images(whole)[chosen])


def test_the_devices_do_not_communicate_and_one_program_serves_every_batch(model):
    traces = []

    def counting(*args, **kwargs):
        traces.append(1)
        return model.apply_fn(*args, **kwargs)

    sampler = Sampler(
        cmjax.Model(counting, model.params, model.scheduler, model.config),
        model.scheduler.set_timesteps(2),
        labels=CLASSES,
        batch_size=2,
    )
    assert sampler.size == 16
    text = sampler.compiled.as_text()
    names = (
        "all-gather",
        "all-reduce",
        "all-to-all",
        "collective-permute",
        "collective-broadcast",
        "reduce-scatter",
    )
    for collective in (*names, " send(", " recv("):
        assert collective not in text
    traced = len(traces)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        listener := lambda event, _, **__: (
            compiled.append(event) if "backend_compile" in event else None
        )
    )
    try:
        batches = [np.arange(16, dtype=np.uint32), np.arange(16, 21, dtype=np.uint32)]
        assert [len(batch) for batch in sampler.batches(batches)] == [16, 5]
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert len(traces) == traced
    assert compiled == []


def test_a_whole_run_compiles_its_program_once(model, tmp_path, caplog):
    with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
        generate_folder(tmp_path / "out", model, 37, labels=CLASSES, batch_size=2, shard_size=8)
    names = re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)
    assert names.count("draw") == 1


def test_writing_goes_on_beside_sampling_and_no_more_than_a_few_shards_wait(
    model, tmp_path, monkeypatch
):
    computed, ahead, write = [], [], Shards.write

    def batches(_, indices):  # at once
        for batch in indices:
            computed.append(len(batch))
            yield np.zeros((len(batch), 28, 28, 1), np.uint8)

    def slow(shards, shard, images):
        time.sleep(0.1)  # the sampler gets as far ahead as it may
        ahead.append(sum(computed) - shard.stop)
        write(shards, shard, images)

    monkeypatch.setattr(Sampler, "batches", batches)
    monkeypatch.setattr(Shards, "write", slow)
    generate_folder(tmp_path / "out", model, 16 * 12, labels=CLASSES, batch_size=2, shard_size=16)
    assert max(ahead) == 16 * folder.QUEUE


def test_divided_parameters_give_the_same_samples(model, whole):
    state = model.scheduler.set_timesteps(1)
    sampler = Sampler(model, state, labels=CLASSES, batch_size=2, shard_params=True)
    (made,) = sampler.batches([np.arange(16, dtype=np.uint32)])
    nearly_equal(made, images(whole)[:16])
    per_device = sum(
        leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(sampler._fixed[1])
    )
    assert per_device < 0.2 * sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    assert "all-gather" in sampler.compiled.as_text() or "all-reduce" in sampler.compiled.as_text()


def test_more_samples_are_added(model, whole, tmp_path):
    for num, resumed in (
        (20, 0),
        (90, 16),
        (90, 90),
    ):  # the last, short shard of the first run is made anew
        made = generate_folder(
            tmp_path / "out", model, num, labels=CLASSES, batch_size=2, shard_size=8
        )
        assert (made.resumed, made.done) == (resumed, num)
    assert (tmp_path / "out/samples_90x28x28x1.npz").read_bytes() == merged(whole)
    assert verify(tmp_path / "out", model)[:2] == ([], 90)
    short = next((tmp_path / "out/shards").glob("000000016-000000019-*"))  # of the run of 20
    short.write_bytes(b"")
    doubled = short.with_name("000000000-000000007-0123456789abcdef.npz")
    doubled.write_bytes(b"")
    (stranger := short.with_name("notes.txt")).touch()
    assert verify(tmp_path / "out", model)[:2] == ([short, doubled, stranger], 90)
    stranger.unlink()
    generate_folder(
        tmp_path / "out", model, 90, labels=CLASSES, batch_size=2
    )  # as the command tells to
    assert verify(tmp_path / "out", model)[:2] == ([], 90)


def test_killed_at_random_moments_the_file_is_the_same_byte_for_byte(tmp_path, cache):
    with launched(tmp_path / "alone", cache, num=600) as process:
        assert finish(process) == (0, "")
    moments, killed = random.Random(0), 0
    for _ in range(3):
        with launched(tmp_path / "out", cache, num=600) as process:
            log, deadline = tmp_path / "out/log.jsonl", time.time() + 60
            known = log.read_text().count("\n") if log.exists() else 0
            while time.time() < deadline and not (
                log.exists() and log.read_text().count("\n") > known + 2
            ):
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
    assert killed
    for unfinished in (
        tmp_path / "out/.cmjax-1.npz",
        tmp_path / "out/shards/.cmjax-2.npz",
    ):  # as a kill may leave them
        unfinished.touch()
    with launched(tmp_path / "out", cache, num=600) as process:
        assert finish(process) == (0, "")
    assert merged(tmp_path / "out") == merged(tmp_path / "alone")
    assert not list((tmp_path / "out").rglob(".cmjax-*"))


def test_killed_while_the_result_is_written_the_file_is_the_same(tmp_path, cache):
    with launched(tmp_path / "alone", cache) as process:
        assert finish(process) == (0, "")
    kill = "from cmjax.generation.shards import Shards as S; import os; read, seen = S.read, []\n"
    kill += "S.read = lambda *a: (seen.append(0), len(seen) > 3 and os.kill(os.getpid(), 9), read(*a))[2]"
    with launched(tmp_path / "out", cache, before=kill) as process:
        assert finish(process)[0] == -signal.SIGKILL
    assert len(list((tmp_path / "out").glob(".cmjax-*.npz"))) == 1  # it was in the middle
    assert not list((tmp_path / "out").glob("samples_*"))
    with launched(tmp_path / "out", cache) as process:
        assert finish(process) == (0, "")
    assert merged(tmp_path / "out") == merged(tmp_path / "alone")
    assert not list((tmp_path / "out").rglob(".cmjax-*"))


def test_two_runs_do_not_meet_in_a_folder(tmp_path, cache):
    slow = "from cmjax.generation.shards import Shards as S; import time; w = S.write\n"
    slow += "S.write = lambda *a: (time.sleep(0.3), w(*a))"  # three minutes for all
    with launched(tmp_path / "out", cache, num=5000, before=slow) as process:
        wait_for_a_shard(tmp_path / "out/log.jsonl")
        with launched(tmp_path / "out", cache, num=5000) as second:
            code, errors = finish(second)
        assert code == 2 and f"another run is at work in {tmp_path / 'out'}" in errors
        process.kill()
        process.wait()
    with launched(tmp_path / "out", cache, num=16) as process:  # what was killed keeps nobody out
        assert finish(process) == (0, "")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def launched_together(folder, cache, folders=("", ""), nums=(90, 90), models=((), ()), **options):
    """Two processes of two devices."""
    joined = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", 2, "--process-id"]
    with (
        launched(
            folder / folders[0], cache, *joined, 0, *models[0], devices=2, num=nums[0], **options
        ) as one,
        launched(
            folder / folders[1], cache, *joined, 1, *models[1], devices=2, num=nums[1], **options
        ) as two,
    ):
        yield one, two


def test_two_processes_of_two_devices(whole, tmp_path, cache):
    slow = "from cmjax.generation import folder as f; import time; e = f.export\n"
    slow += (
        "f.export = lambda *a: (time.sleep(2), e(*a))[1]"  # the others have to wait for the result
    )
    with launched_together(tmp_path / "out", cache, before=slow) as (one, two):
        assert (finish(two)[0], finish(one)[0]) == (0, 0)
    (finished,), (result,) = (
        (tmp_path / "out").glob(".finished-*"),
        (tmp_path / "out").glob("*.npz"),
    )
    assert finished.stat().st_mtime >= result.stat().st_mtime
    nearly_equal(images(tmp_path / "out"), images(whole))
    made = [
        (tmp_path / "out" / name).read_text().count('"shard"')
        for name in ("log.jsonl", "log-1.jsonl")
    ]
    assert made == [6, 6]


@pytest.mark.parametrize(
    ("folders", "nums", "message"),
    [
        (("out", "other"), (90, 90), "process 1 does not see"),
        (("out", "out"), (96, 90), "the same number of samples, got [96, 90]"),
    ],
)
def test_processes_that_cannot_work_together_say_so(tmp_path, cache, folders, nums, message):
    impatient = "from cmjax.generation import processes as p; p.PATIENCE = 1"
    with launched_together(tmp_path, cache, before=impatient, folders=folders, nums=nums) as (
        one,
        two,
    ):
        (code, _), (other_code, errors) = finish(one), finish(two)
    assert (code, other_code) == (2, 2)
    assert message in errors


def test_nobody_waits_for_a_process_that_cannot_begin(tmp_path, cache):
    begin = time.time()
    with launched_together(
        tmp_path / "out", cache, models=((), ("--model", tmp_path / "none"))
    ) as (one, two):
        (code, errors), (other_code, why) = finish(one), finish(two)
    assert (code, other_code) == (2, 2)
    assert "process 1 could not go on; see its message" in errors and str(tmp_path / "none") in why
    assert time.time() - begin < 240  # JAX's runtime would wait for five minutes
    assert not (tmp_path / "out").exists()


def slurm(task, nodes):
    """What Slurm tells one of two tasks; JAX makes its port, from 61440 up, of the job's number."""
    job = random.randrange(2**12)  # of ports that the system gives to nobody unasked
    names = {"JOB_ID": job, "STEP_NODELIST": "localhost", "STEP_NUM_NODES": nodes}
    names |= {
        "NTASKS": 2,
        "STEP_NUM_TASKS": 2,
        "PROCID": task,
        "LOCALID": task if nodes == 1 else 0,
    }
    return {f"SLURM_{name}": str(value) for name, value in names.items()}


def test_tasks_of_slurm_join_by_themselves(whole, tmp_path, cache):
    of_task = slurm(0, nodes=1)
    options = {"devices": 2, "environment": of_task}
    with launched(tmp_path / "out", cache, **options) as one:
        with launched(
            tmp_path / "out", cache, **options | {"environment": of_task | {"SLURM_PROCID": "1"}}
        ) as two:
            assert (finish(two)[0], finish(one)[0]) == (0, 0)
    nearly_equal(images(tmp_path / "out"), images(whole))
    assert (tmp_path / "out/log-1.jsonl").read_text().count('"shard"') == 6
    with launched(tmp_path / "alone", cache, "--coordinator", "none", **options) as process:
        assert finish(process) == (0, "")


@pytest.mark.parametrize(("nodes", "devices"), [(1, None), (2, [])])
def test_a_task_alone_on_its_node_has_all_its_devices(monkeypatch, tmp_path, nodes, devices):
    for name, value in slurm(0, nodes).items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *args, **kwargs: calls.append((args, kwargs))
    )
    initialize(None, None, None)
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "0,1")  # the user's word comes first
    initialize(None, None, None)
    assert calls == [((None, None, None), {"local_device_ids": ids}) for ids in (devices, None)]


@pytest.mark.parametrize(
    ("environment", "joins"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"TPU_ML_PLATFORM": "JAX"}, True),
        ({"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "cpu"}, False),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, False),
        (
            {"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "a,b"},
            True,
        ),
    ],
)
def test_processes_join_where_there_are_others(monkeypatch, environment, joins):
    for name in ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: calls.append(args))
    initialize(None, None, None)
    initialize("none", None, None)
    assert calls == [(None, None, None)] * joins


def test_a_file_system_without_locks_is_used_without(model, tmp_path, monkeypatch):
    def acquire(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    assert generate_folder(tmp_path / "out", model, 8, labels=CLASSES, batch_size=1).done == 8


def test_a_signal_to_one_process_stops_both(tmp_path, cache):
    with launched_together(tmp_path / "out", cache, nums=(5000, 5000)) as (one, two):
        wait_for_a_shard(tmp_path / "out/log-1.jsonl")
        two.send_signal(signal.SIGTERM)
        assert (finish(one)[0], finish(two)[0]) == (130, 130)
    for name in ("log.jsonl", "log-1.jsonl"):
        assert (
            json.loads((tmp_path / "out" / name).read_text().splitlines()[-1])["event"] == "stopped"
        )


def test_a_signal_stops_after_the_batch_and_the_run_goes_on(tmp_path, cache):
    with launched(tmp_path / "out", cache, num=5000) as process:
        log = tmp_path / "out/log.jsonl"
        wait_for_a_shard(log)
        process.send_signal(signal.SIGTERM)
        code, errors = finish(process)
    assert code == 130
    assert "of 5,000 samples are in" in errors and "the same command goes on" in errors
    assert json.loads(log.read_text().splitlines()[-1])["event"] == "stopped"
    with launched(tmp_path / "out", cache, num=40) as process:
        assert finish(process) == (0, "")


def test_a_full_disk_is_named_and_leaves_no_half_shard(tmp_path, cache):
    with launched(tmp_path / "out", cache, num=16) as process:
        assert finish(process)[0] == 0
    before = sorted((tmp_path / "out/shards").iterdir())
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (4096, 4096))"
    with launched(tmp_path / "out", "none", before=limit) as process:
        code, errors = finish(process)
    assert code == 2
    assert "File too large" in errors
    assert sorted((tmp_path / "out/shards").iterdir()) == before


@pytest.mark.parametrize("harm", ["truncated", "flipped", "foreign", "moved"])
def test_a_damaged_shard_is_named_and_made_anew(model, tmp_path, harm):
    options = {"labels": CLASSES, "batch_size": 2, "shard_size": 8}
    generate_folder(tmp_path / "out", model, 24, **options)
    before, shards = merged(tmp_path / "out"), sorted((tmp_path / "out/shards").iterdir())
    content = bytearray(shards[1].read_bytes())
    if harm == "truncated":
        content = content[:-100]
    elif harm == "flipped":
        content[len(content) // 2] ^= 1
    elif harm == "moved":  # a whole shard, with its digest, in the place of another
        shards[1].unlink()
        shards[1] = shards[1].with_name("000000008-000000015-" + shards[0].name.split("-")[-1])
        content = shards[0].read_bytes()
    else:  # a whole shard of a run with another seed
        generate_folder(tmp_path / "other", model, 24, seed=1, **options)
        content = sorted((tmp_path / "other/shards").iterdir())[1].read_bytes()
    shards[1].write_bytes(content)
    assert verify(tmp_path / "out", model).damaged == [shards[1]]
    (tmp_path / "out/samples_24x28x28x1.npz").unlink()
    said = []
    made = generate_folder(tmp_path / "out", model, 24, say=said.append, **options)
    assert said[0] == f"{shards[1]} is damaged and removed; what is missing is made anew"
    assert made.resumed == 16
    assert merged(tmp_path / "out") == before
    verified = verify(
        tmp_path / "out", model
    )  # in batches of another size, which may round differently
    assert (verified.damaged, verified.samples, verified.same) == ([], 24, True)


def test_a_damaged_result_is_named_and_made_anew(model, tmp_path):
    options = {"labels": CLASSES, "batch_size": 2}
    (path,) = generate_folder(tmp_path / "out", model, 24, **options).paths
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert list(damaged_exports(tmp_path / "out")) == [path]
    generate_folder(tmp_path / "out", model, 24, **options)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("manifest.json", '"seed": 0', '"seed": 1'),
        ("manifest.json", "{", ""),
        ("SHA256SUMS", "  ", " "),
    ],
)
def test_what_guards_a_folder_is_guarded_itself(model, tmp_path, name, before, after):
    options = {"labels": CLASSES, "batch_size": 2}
    generate_folder(tmp_path / "out", model, 24, **options)
    path = tmp_path / "out" / name
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    for use in (
        lambda: verify(tmp_path / "out", model),
        lambda: generate_folder(tmp_path / "out", model, 24, **options),
    ):
        with pytest.raises(ValueError, match=f"{path} is damaged"):
            use()


def test_what_is_missing_or_was_never_made_is_named(model, tmp_path):
    options = {"labels": CLASSES, "batch_size": 2, "shard_size": 8}
    generate_folder(tmp_path / "out", model, 24, formats=("npz", "png"), **options)
    (result,), second = (
        (tmp_path / "out").glob("*.npz"),
        sorted((tmp_path / "out/shards").iterdir())[1],
    )
    extra, old = (
        tmp_path / "out/samples_24x28x28x1_png/mine.png",
        tmp_path / "out/samples_9x28x28x1.npz",
    )
    for path in (extra, old):
        path.touch()
    result.unlink()
    second.unlink()
    gap = tmp_path / "out/shards/000000008-000000015-*.npz"
    assert verify(tmp_path / "out", model).damaged == [gap, result, extra, old]
    old.unlink()
    generate_folder(tmp_path / "out", model, 24, formats=("npz", "png"), **options)
    assert verify(tmp_path / "out", model).damaged == []
    result.unlink()  # what is not wanted any more is forgotten when something else is made
    generate_folder(tmp_path / "out", model, 20, **options)
    assert verify(tmp_path / "out", model).damaged == []


def test_equal_settings_may_be_written_in_other_ways(model, tmp_path):
    for sigmas, seed in (([70, 1], 0), ((70.0, 1.0), np.int64(0)), (np.array([70, 1]), 0)):
        made = generate_folder(
            tmp_path / "out", model, 8, sigmas=sigmas, seed=seed, labels=np.arange(10), batch_size=1
        )
        assert made.done == 8
    assert made.resumed == 8
    assert verify(tmp_path / "out", model)[:2] == ([], 8)


def test_the_way_noise_is_drawn_is_not_left_to_the_environment(model, whole):
    with jax.threefry_partitionable(False):
        sampler = Sampler(model, model.scheduler.set_timesteps(1), labels=CLASSES, batch_size=2)
        (made,) = sampler.batches([np.arange(16, dtype=np.uint32)])
    nearly_equal(made, images(whole)[:16])


def test_bfloat16_is_verified_within_its_rounding(model, tmp_path):
    low = cmjax.load(dtype="bfloat16")
    options = {"labels": CLASSES, "dtype": "bfloat16", "num_inference_steps": 4}
    generate_folder(tmp_path / "out", low, 24, batch_size=3, **options)
    assert verify(tmp_path / "out", low, batch_size=1).same
    shard = next((tmp_path / "out/shards").iterdir())
    shards = Shards(tmp_path / "out", read_manifest(tmp_path / "out")["settings"])
    others = shards.read(range(24), shard)[np.arange(24) - 10]
    shard.unlink()
    shards.write(range(24), others)
    assert not verify(tmp_path / "out", low, batch_size=1).same


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num": 0}, "num must be from 1 to 4294967296, got 0"),
        ({"seed": 2**32}, "seed must be from 0"),
        ({"batch_size": 0}, "batch_size must be from 1"),
        ({"shard_size": 0}, "shard_size must be from 1"),
        ({"labels": []}, r"one or more of the classes 0\.\.9, got \[\]"),
        ({"labels": [3, 10]}, r"one or more of the classes 0\.\.9, got \[3, 10\]"),
        (
            {"labels": None},
            "labels must be None for a model without classes, and only then; this one has 10",
        ),
        ({"formats": ["jpg"]}, "formats must be of"),
    ],
)
def test_arguments_out_of_range_are_refused(model, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        generate_folder(tmp_path / "out", model, **{"num": 8, "labels": CLASSES, **changes})
    assert not (tmp_path / "out").exists()


def test_a_full_disk_under_records_is_one_line(tmp_path, cache):
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (20000, 20000))"
    options = ["--format", "array-record"]
    with launched(tmp_path / "out", "none", *options, before=limit) as process:
        code, errors = finish(process)
    assert code == 2
    assert "samples_90x28x28x1.array_record" in errors and errors.count("\n") == 1


def test_a_full_disk_under_pictures_is_named(model, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(
            errno.ENOSPC, "No space left on device"
        )  # as Pillow passes it on, without a name

    monkeypatch.setattr("cmjax.generation.exports.save_png", full)
    with pytest.raises(
        OSError, match=f"No space left on device: '{tmp_path}/out/samples_24x28x28x1_png'"
    ):
        generate_folder(tmp_path / "out", model, 24, labels=CLASSES, batch_size=2, formats=["png"])
    last = json.loads((tmp_path / "out/log.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "failed" and "No space left" in last["error"]


def test_a_signal_while_the_result_is_written_stops_that_too(model, tmp_path, monkeypatch):
    real, options = folder.export, {"labels": CLASSES, "batch_size": 2, "shard_size": 8}
    with monkeypatch.context() as patched:
        patched.setattr(
            folder, "export", lambda *args: (signal.raise_signal(signal.SIGINT), real(*args))[1]
        )
        made = generate_folder(tmp_path / "out", model, 24, **options)
    assert (made.done, made.stopped, made.paths) == (24, True, [])
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {
        ".lock",
        "log.jsonl",
        "manifest.json",
        "shards",
    }
    made = generate_folder(tmp_path / "out", model, 24, **options)
    assert (made.resumed, made.stopped, len(made.paths)) == (24, False, 1)


def test_shards_may_go_once_something_is_made_of_them(model, tmp_path):
    options = {"labels": CLASSES, "batch_size": 2}
    generate_folder(tmp_path / "out", model, 24, **options)
    shutil.rmtree(tmp_path / "out/shards")
    assert verify(tmp_path / "out", model) == ([], 0, 0, True)
    assert generate_folder(tmp_path / "out", model, 24, **options).made == 24
    assert verify(tmp_path / "out", model)[:2] == ([], 24)


def test_other_formats_hold_the_same_samples(model, tmp_path):
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from flax.serialization import msgpack_restore

    options = {"labels": CLASSES, "batch_size": 2, "shard_size": 8}
    generate_folder(tmp_path / "out", model, 20, **options)
    expected = images(tmp_path / "out")
    made = generate_folder(tmp_path / "out", model, 20, formats=("png", "array-record"), **options)
    assert made.made == 0
    folder, records = made.paths
    pictures = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    np.testing.assert_array_equal(np.stack(pictures)[..., None], expected)
    with ArrayRecordDataSource([str(records)]) as source:
        for i in range(20):
            record = msgpack_restore(source[i])
            np.testing.assert_array_equal(record["image"], expected[i])
            assert record["label"] == i % 10


def test_other_settings_are_refused_with_what_differs(model, whole):
    before = sorted(whole.rglob("*"))
    with pytest.raises(
        ValueError, match='other settings: dtype was "float32", now "bfloat16"; seed was 0, now 1;'
    ):
        generate_folder(whole, model, 90, labels=CLASSES, seed=1, dtype="bfloat16")
    with pytest.raises(
        ValueError, match="labels was .*; schedule was .*; sigmas was .*; timesteps was"
    ):
        generate_folder(whole, model, 90, labels=[3], num_inference_steps=2)
    assert sorted(whole.rglob("*")) == before
    other = cmjax.Model(
        model.apply_fn, jax.tree.map(lambda x: x * 2, model.params), model.scheduler, model.config
    )
    assert model_digest(other) != model_digest(model)
    scheduler = dataclasses.replace(model.scheduler, sigma_data=1.0)
    adapted = [
        m.with_scheduler(LCMScheduler())
        for m in (model, dataclasses.replace(model, scheduler=scheduler))
    ]
    assert model_digest(adapted[0]) != model_digest(adapted[1])
    linear = dataclasses.replace(
        adapted[0], trained_for=None
    )  # as of a network that was trained for it
    for wrong in (other, linear):
        with pytest.raises(ValueError, match="another model"):
            verify(whole, wrong)


def test_a_sample_that_is_not_finite_is_named(model, tmp_path):
    def broken(params, x, t, **cond):
        return model.apply_fn(params, x, t, **cond).at[3].set(np.nan)

    other = cmjax.Model(broken, model.params, model.scheduler, model.config)
    with pytest.raises(ValueError, match="sample number 3 is not finite"):
        generate_folder(tmp_path / "out", other, 24, labels=CLASSES, batch_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "--out DIR says where the samples go"),
        ("--out {tmp}/a --steps 2 --sigmas 80", "--steps and --sigmas exclude each other"),
        ("--out {tmp}/a --steps 41", "--steps: num_inference_steps must be"),
        ("--out {tmp}/a --timesteps 0,22", "--timesteps: timesteps must be strictly descending"),
        ("--out {tmp}/a --labels 11", "the model's classes are 0..9, got 11"),
        ("--out {tmp}/a --format jpeg", "'jpeg' is not one of"),
        ("--out {tmp}", "must be new or empty"),
        ("--out /proc/self/a", "/proc/self/a"),
        ("--verify {tmp}", "has no manifest.json"),
        ("--out {tmp}/a --coordinator localhost:1", "go together"),
        ("--out {tmp}/a --coordinator auto", "if this is no TPU pod or Slurm job, give HOST:PORT"),
    ],
)
def test_misuse_is_one_line(tmp_path, options, message):
    (tmp_path / "something").touch()
    arguments = options.format(tmp=tmp_path).split()
    result = CliRunner().invoke(cli.main, ["generate", "--compilation-cache", "none", *arguments])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
