"""Memory and time of opening the released ImageNet-64 network (296 M parameters, 1.2 GB).

    python benchmarks/loading.py                      a cmjax folder and a diffusers pipeline of
                                                      random weights
    python benchmarks/loading.py cd_imagenet64_l2.pt  a model you have

Each line is a process of its own. Its highest memory use is what the system reports (ru_maxrss),
interpreter and libraries included; that of `load` is also given over the size of the parameters.
"""

import tempfile
from pathlib import Path

import click
import numpy as np
from pairs import CONFIGS, random_model
from timing import described, in_child, machine

import cmjax
from cmjax.checkpoints import open_checkpoint

LOAD = "import sys, jax, cmjax; jax.block_until_ready(cmjax.load(sys.argv[1]).params)"
COMMANDS = {
    "load": ["-c", LOAD],
    "info": ["-m", "cmjax", "info"],
}


def folders(root, preset):
    """The network with random weights, in both kinds of folder."""
    model = random_model(CONFIGS[preset])
    for kind in ("cmjax", "diffusers"):
        cmjax.save(root / kind, model, to=kind)
        yield root / kind


@click.command()
@click.argument("sources", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--preset", type=click.Choice(list(CONFIGS)), default="imagenet64", show_default=True
)
def main(sources, preset):
    click.echo(described(machine()))
    with tempfile.TemporaryDirectory() as root:
        for source in sources or list(folders(Path(root), preset)):
            tensors = open_checkpoint(source).tensors
            size = 4 * sum(np.prod(tensor.shape) for tensor in tensors.values())
            for command in COMMANDS:
                _, seconds, peak = in_child(*COMMANDS[command], source)
                ratio = (
                    f", {peak / size:.2f} of the parameters" if command == "load" else ""
                )
                print(
                    f"{source.name:20} {command}: {seconds:5.1f} s, "
                    f"peak {peak / 1e6:6.0f} MB{ratio}"
                )


if __name__ == "__main__":
    main()
