"""A program that two processes run together: `cmjax generate`, in one situation after another.

    python -m tests.support.pair FOLDER MODEL

The processes find each other by Slurm's variables. Each prints, as JSON, the exit code and the
messages that it got in each situation. In the last one both wait to be stopped.
"""

import json
import sys
import time
from pathlib import Path

import jax
from click.testing import CliRunner

from cmjax.cli import main
from cmjax.cli.distributed import initialize
from cmjax.generation import folder, processes
from cmjax.generation.shards import Shards


def run(root: Path, model: str) -> None:
    initialize(None, None, None)
    second = jax.process_index() == 1
    results = {}

    def generate(name, out=None, model=model, num=90):
        options = ["--model", model, "--num", num, "--out", root / (out or name)]
        options += [
            "--batch-size",
            2,
            "--shard-size",
            8,
            "--coordinator",
            "none",
            "--quiet",
        ]
        result = CliRunner().invoke(main, ["generate", *map(str, options)])
        results[name] = (result.exit_code, result.stderr)

    generate("one has no model", model=root / "none" if second else model)
    processes.PATIENCE = 1.0
    generate("two folders", out="second" if second else "first")
    generate("two numbers", num=90 if second else 96)

    export = folder.export
    folder.export = lambda *args: (time.sleep(1), export(*args))[1]  # the other has to wait
    generate("whole")

    write = Shards.write
    Shards.write = lambda *args: (time.sleep(0.05), write(*args))[1]
    generate("stopped", num=5000)
    print(json.dumps(results))


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])
