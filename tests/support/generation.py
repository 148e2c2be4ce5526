"""Runs of bulk generation: made here, or by processes of their own that can be killed."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from cmjax.generation import Request, generate_folder

ROOT = Path(__file__).parents[2]
CLASSES = tuple(range(10))
REQUEST = Request(labels=CLASSES)


def make(folder, model, num=24, request=REQUEST, **options):
    """`generate_folder` in small shards and batches: most tests then share a compiled program."""
    options = {"batch_size": 2, "shard_size": 8, **options}
    return generate_folder(folder, model, request, num, **options)


def export_of(folder):
    """The only `.npz` that a run was made into."""
    (path,) = folder.glob("samples_*.npz")
    return path


def images(folder):
    with np.load(export_of(folder)) as arrays:
        return arrays["arr_0"]


def shards_of(folder):
    return sorted((folder / "shards").iterdir())


def events(folder, process=0):
    """The lines of the log; none if there is no log yet."""
    log = folder / (f"log-{process}.jsonl" if process else "log.jsonl")
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines]


def assert_nearly_equal(a, b):
    """Sums may be taken in another order, which shows in a handful of pixels by one of 255."""
    difference = np.abs(a.astype(int) - b.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-2


@contextlib.contextmanager
def limited_files(size):
    """Lets this process write no file longer than that: a full disk."""
    import resource

    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def on_a_full_disk(function, size):
    """The function, which finds a full disk."""

    def limited(*args, **kwargs):
        with limited_files(size):
            return function(*args, **kwargs)

    return limited


# Code that a process runs before the command. A tiny model would be done before anybody can kill
# it; flushing slowly, it is killed while a file is half in its place.
SLOW_DISK = """
import os, time
flush = os.fsync
os.fsync = lambda *args: (time.sleep(0.03), flush(*args))[1]
"""
KILLED_AT_THE_FOURTH_READ = """
import os
from cmjax.generation.shards import Shards
read = Shards.read
seen = []

def killed(*args):
    seen.append(0)
    if len(seen) > 3:
        os.kill(os.getpid(), 9)
    return read(*args)

Shards.read = killed
"""


@contextlib.contextmanager
def launched(folder, model, num, before=""):
    """`cmjax generate` as `make` would run it, as a process of its own."""
    options = ["--out", folder, "--model", model, "--num", num, "--batch-size", 2]
    command = ["generate", *options, "--shard-size", 8, "--quiet"]
    with launched_command(*command, before=before) as process:
        yield process


def launched_command(*arguments, before=SLOW_DISK):
    """A command as a process of its own."""
    program = f"{before}\nfrom cmjax.cli import main; main()"
    return process_of(sys.executable, "-c", program, *arguments)


@contextlib.contextmanager
def process_of(*command, environment=()):
    """Starts a process, and ends it in any case."""
    process = subprocess.Popen(
        [*map(str, command)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **dict(environment)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(condition, process, seconds=120):
    """Returns once something is so, as long as a process is alive to bring it about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
