"""Memory and time of opening the released ImageNet-64 network (296 M parameters, 1.2 GB).

    python benchmarks/loading.py                      a cmjax folder and a diffusers pipeline of
                                                      random weights
    python benchmarks/loading.py cd_imagenet64_l2.pt  a model you have

Each line is a process of its own. Its highest memory use is what the system reports (ru_maxrss),
interpreter and libraries included; that of `load` is also given over the size of the parameters.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import jax
import numpy as np
from flax import nnx

import cmjax
from cmjax.checkpoints import open_checkpoint
from cmjax.models import PRESETS, UNet2D

LOAD = "import sys, jax, cmjax; jax.block_until_ready(cmjax.load(sys.argv[1]).params)"
COMMANDS = {
    "load": [sys.executable, "-c", LOAD],
    "info": [sys.executable, "-m", "cmjax", "info"],
}
UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


def measure(command, source):
    """Highest memory use in bytes, and seconds, of a process."""
    measured = (
        "import resource, subprocess, sys;"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", measured, *COMMANDS[command], source],
        check=True,
        stdout=subprocess.PIPE,
    )
    return int(done.stdout) * UNIT, time.perf_counter() - start


def folders(root, preset):
    """The network with random weights, in both kinds of folder."""
    config = PRESETS[preset]
    apply_fn, params = cmjax.from_nnx(UNet2D(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: rng.standard_normal(p.shape, np.float32), params)
    model = cmjax.Model(apply_fn, params, cmjax.CMStochasticIterativeScheduler(), config)
    for kind in ("cmjax", "diffusers"):
        cmjax.save(root / kind, model, to=kind)
        yield root / kind


@click.command()
@click.argument("sources", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--preset", type=click.Choice(list(PRESETS)), default="imagenet64", show_default=True
)
def main(sources, preset):
    with tempfile.TemporaryDirectory() as root:
        for source in sources or list(folders(Path(root), preset)):
            tensors = open_checkpoint(source).tensors
            size = 4 * sum(np.prod(tensor.shape) for tensor in tensors.values())
            for command in COMMANDS:
                peak, seconds = measure(command, source)
                ratio = (
                    f", {peak / size:.2f} of the parameters" if command == "load" else ""
                )
                print(
                    f"{source.name:20} {command}: {seconds:5.1f} s, "
                    f"peak {peak / 1e6:6.0f} MB{ratio}"
                )


if __name__ == "__main__":
    main()
