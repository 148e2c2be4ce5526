"""What the benchmarks share: clocks, memory, the machine's description, and printed results.

Two sides are timed in turn, in one process, since the speed of a machine drifts over minutes. The
ratio is the peer's seconds over cmjax's: above 1, cmjax is faster.
"""

import collections
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import click
import jax
import numpy as np

# Instruction sets that decide how fast a CPU multiplies, as Linux names them.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve")
PACKAGES = ("jax", "jaxlib", "torch", "diffusers")
UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


class Seconds(float):
    """What a function returns that times itself, because not all that it does should count."""


def seconds_in_turn(*functions, repeats):
    """Seconds of each function, called one after the other, f64[repeats, functions].

    Each waits until its work is done, and is called once before that, to compile and to warm up.
    Every other turn goes backwards, so that none always comes after the same other one.

    A function of less than 0.1 s is called twice in each turn, and timed the second time: PyTorch's
    threads spin for some milliseconds after a call, and would take them from what comes next.
    """
    for function in functions:
        function()
    is_short = [_seconds(function) < 0.1 for function in functions]
    order = list(enumerate(functions))
    taken = np.empty((repeats, len(functions)))
    for row in taken:
        for i, function in order:
            if is_short[i]:
                function()
            row[i] = _seconds(function)
        order.reverse()
    return taken


def _seconds(function):
    """Seconds of one call, as measured here or by the function itself."""
    start = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - start
    return result if isinstance(result, Seconds) else seconds


def in_turn(*functions, repeats):
    """Median seconds of each function; see `seconds_in_turn`."""
    return np.median(seconds_in_turn(*functions, repeats=repeats), axis=0).tolist()


def compare(ours, theirs, *, repeats):
    """Times two functions in turn; returns medians, their ratio, and the ratio's spread."""
    seconds = seconds_in_turn(ours, theirs, repeats=repeats)
    mine, peer = np.median(seconds, axis=0)
    ratios = seconds[:, 1] / seconds[:, 0]
    return {
        "seconds": mine,
        "peer_seconds": peer,
        "ratio": peer / mine,
        "ratio_least": ratios.min(),
        "ratio_most": ratios.max(),
        "turns": repeats,
    }


def comparison(row, peer):
    """A sentence with what `compare` returned."""
    return (
        f"cmjax {duration(row['seconds'])}, {peer} {duration(row['peer_seconds'])}, "
        f"{peer} / cmjax {row['ratio']:.2f} ({row['ratio_least']:.2f} to "
        f"{row['ratio_most']:.2f} in {row['turns']} turns)"
    )


def duration(seconds):
    """Seconds as text, in the unit that suits them."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.0f} us"


def in_child(*arguments, **environment):
    """Runs a program in a process of its own.

    Args:
        arguments: of the Python interpreter.
        environment: variables to set.

    Returns:
        What it printed, the seconds that it took, and the most memory that it held, in bytes, the
        interpreter and its libraries included.
    """
    # Between them is a small process, which starts the one that is measured: on Linux, a process
    # begins with the highest memory use of the one that started it.
    small = (
        "import resource, subprocess, sys;"
        "subprocess.run(sys.argv[1:], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    root = str(Path(__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", small, sys.executable, *map(str, arguments)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=variables,
    )
    seconds = time.perf_counter() - start
    printed, _, peak = done.stdout.rstrip().rpartition("\n")
    return printed, seconds, int(peak) * UNIT


def machine():
    """Processor, instruction sets, cores, devices and versions."""
    name, flags = processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "processor": name,
        "instructions": [word for word in INSTRUCTIONS if word in flags],
        "cores": cores or os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES if version(name)},
    }


def described(facts):
    """What `machine` returned, as a line of text."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    instructions = " ".join(facts["instructions"])
    devices = collections.Counter(facts["devices"]).items()
    devices = ", ".join(f"{count} x {kind}" for kind, count in devices)
    return (
        f"{facts['processor']} ({instructions}), {facts['cores']} cores, "
        f"{devices}; Python {facts['python']}, {versions}"
    )


def processor():
    """The processor's name, and the names of what it can do, as Linux lists them."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    first = {}
    for line in lines:
        key, _, value = line.partition(":")
        first.setdefault(key.strip(), value.strip())
    name = first.get("model name") or platform.processor() or platform.machine()
    return name, (first.get("flags") or first.get("Features") or "").split()


def version(package):
    """The version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class Report:
    """Tells each result at once, as text or as a line of JSON, and keeps all of them.

    The first of them is the machine.
    """

    def __init__(self, as_json=False, path=None):
        """Reports to the terminal, and to a file of JSON lines if a path is given."""
        self.as_json = as_json
        self.path = path
        self.rows = []
        if path is not None:
            Path(path).write_text("")
        facts = machine()
        self(described(facts), machine=facts)

    def __call__(self, text, **row):
        """Tells a result: `text` to a reader, `row` to a program."""
        self.rows.append(row)
        line = json.dumps(row, default=float)
        click.echo(line if self.as_json else text)
        if self.path is not None:
            with open(self.path, "a") as file:
                file.write(line + "\n")


repeats_option = click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=7,
    show_default=True,
    help="Turns; medians of fewer than 7 are for trying the script.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print lines of JSON.")


def keep_memory_option(default):
    """An option for both sides of a comparison, since they share the process."""
    return click.option(
        "--keep-memory/--no-keep-memory",
        default=default,
        show_default=True,
        help="Whether the process keeps what it frees (cmjax.system.keep_memory).",
    )
