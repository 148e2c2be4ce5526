"""Hostile argument vectors for the command line, each from the seed of its number.

    python -m tests.support.cli_fuzz 5000 [FIRST]

runs many of them by hand. A call may end with exit code 0, or with 2 and one line on stderr.
"""

import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import load_file, save_file

import cmjax
from cmjax.cli import main
from tests.support.networks import tiny_model

NUMBERS = ["1", "2", "0", "-1", "1.5", "nan", "inf", "1e400", "9" * 400, "2147483648"]
NUMBERS += ["", " ", "x", "0x10", "1_0", "١", "22,0", "0,22", "3,3", ",", "1,,2", "80,0.8"]
NUMBERS += ["0.8,80", "nan,1", "1e-400,0", "-80,-1", "[1]", "null", "true"]
WORDS = [
    "",
    "x",
    "auto",
    "none",
    "--",
    "-",
    "é",
    "\x1b[31m",
    "a\nb",
    "a" * 5000,
    "../x",
    "~",
]
WORDS += [
    "nobody/nothing",
    "nobody/nothing@v1",
    "/",
    ".",
    "a/b/c",
    "@",
    "\udcff",
    "%s",
    "{0}",
]
SCHEDULERS = ["DDIMScheduler", "EDMHeunScheduler", "LCMScheduler", "SCMScheduler", "DDIM"]
SCHEDULERS += [
    "DDPMScheduler",
    "FlaxDDIMScheduler",
    "os:system",
    "cmjax.schedulers:Scheduler",
]
SCHEDULERS += ["FlowMatchEulerDiscreteScheduler", "no.such:Name", "json:", ":", "a:b:c"]
SCHEDULERS += ["collections:OrderedDict", "cmjax.schedulers:CTMScheduler", "EDMHeun"]
SCHEDULERS += ["cmjax.schedulers:TableScheduler", "builtins:int", "CTMScheduler"]
KEYS = ["sigma_max", "sigma_min", "num_train_timesteps", "eta", "s_churn", "rho", "x", "_x"]
KEYS += ["loss.name", "run.steps", "network.class", "data.source", "run", "optimizer.name"]
KEYS += ["scheduler.name", "data.image_size", "run.dtype", "sigma_data", "prediction_type"]
VALUES = ["1", "-1", "0", "NaN", "Infinity", "1e999", "[1]", "[]", "{}", '{"a": 1}', "null"]
VALUES += ["true", '"x"', "x", "", "9" * 5000, "[" * 5000, "1e-300", '"' + "a" * 5000 + '"']
TOML = ["", "[", "a = 1", "[run]\nsteps = 1", "x = " + "[" * 20000, "a.b.c.d = 1", "\x00"]
TOML += ["[loss]\nname = [1]", "[run]\nsteps = 'x'", "[network]\nclass = 1", "[[run]]"]
TOML += [
    "[run]\nsteps = 99999999999999999999",
    "a = " + "{a = " * 5000,
    "[data]\nsource = 1",
]
TOML += ["run = nan", "[scheduler]\nname = 1", "[optimizer]\nname = []", "\ufeff[run]"]

# What each option is given; those that stand for themselves are flags.
LEVELS = {"--steps": NUMBERS, "--timesteps": NUMBERS, "--sigmas": NUMBERS}
COUNTS = {"--num": ["1", "2", "0", "-1", "x", "1.5", "", "4294967297", "9" * 400]}
SIZES = {
    name: NUMBERS for name in ("--batch-size", "--shard-size", "--seed", "--num-processes")
}
CHOICES = {
    "--dtype": ["float32", "bfloat16", "int32", "", "x"],
    "--format": ["png", "npz", "x", ""],
    "--labels": [*NUMBERS, "cat", "0,1", "10", "9", "-0", "0," * 3000],
    "--config": ["imagenet64", "lsun256", "x", "", "1"],
    "--to": ["cmjax", "diffusers", "x", "0", "-1", "1"],
    "--scheduler": [*SCHEDULERS, *WORDS],
    "--coordinator": ["x", ":1", "127.0.0.1:abc", "::1:80", "127.0.0.1:99999", "none", ""],
    "--process-id": ["-1", "x", "9" * 30],
    "--from": NUMBERS,
    "--factor": NUMBERS,
    "--guidance": NUMBERS,
    "--guidance-interval": NUMBERS,
    "--method": ["projection", "posterior", "x", ""],
    "--features": ["pixels", "os:getcwd", "math:pi", "x", "", "no.such:f", ":"],
    "--size": NUMBERS,
    "--neighbor": NUMBERS,
    "--mask-box": [*NUMBERS, "0,0,4,4", "4,4,0,0", "0,0,9,9", "1,2,3"],
}
FLAGS = ("--quiet", "--trust", "--shard-params", "--dry-run", "--init", "--json", "--help")
FLAGS += ("--no-such", "-x")
COMMANDS = (
    "sample",
    "generate",
    "info",
    "convert",
    "train",
    "edit",
    "env",
    "evaluate",
    "tune",
    "schedulers",
    "",
    "sampel",
    "--version",
)
TASKS = ("inpaint", "colorize", "superres", "interpolate", "stroke", "", "impaint")


def make_inputs(root: Path) -> list[str]:
    """Writes models, pictures and configs, most of them broken; returns their names."""
    cmjax.save(root / "model", tiny_model(10))
    cmjax.save(root / "plain", tiny_model(None, 3))
    weights = load_file(root / "model" / "model.safetensors")
    config = json.loads((root / "model" / "config.json").read_text())

    # Folders that differ from a good one in one file.
    damages = {
        "list": ("config.json", "[]"),
        "empty-config": ("config.json", ""),
        "number": ("config.json", "3"),
        "null": ("config.json", "null"),
        "other-class": ("config.json", json.dumps({**config, "_class_name": ["DiT"]})),
        "huge": ("config.json", json.dumps({**config, "num_layers": 512})),
        "colon": ("config.json", json.dumps({**config, "_class_name": "no.such:Net"})),
        "nan-config": ("config.json", json.dumps({**config, "mlp_ratio": float("nan")})),
        "list-scheduler": ("scheduler_config.json", "[1]"),
        "odd-scheduler": ("scheduler_config.json", '{"_class_name": "DDPMScheduler"}'),
        "deep": ("scheduler_config.json", "[" * 20000),
        "names": ("class_names.json", '{"a": 1}'),
        "no-weights": ("model.safetensors", "x"),
    }
    for name, (file, text) in damages.items():
        shutil.copytree(root / "model", root / name)
        (root / name / file).write_text(text)
    shutil.copytree(root / "model", root / "nan")
    nan = {name: np.full_like(tensor, np.nan) for name, tensor in weights.items()}
    save_file(nan, root / "nan" / "model.safetensors")

    # Files and folders that are no models at all, and folders of runs that are none.
    (root / "empty").mkdir()
    (root / "file.pt").write_bytes(b"PK\x03\x04 no zip")
    (root / "folder.png").mkdir()
    Image.new("L", (8, 8), 9).save(root / "gray.png")
    Image.new("RGBA", (8, 8)).save(root / "clear.png")
    (root / "text.png").write_text("no picture")
    np.savez(root / "images.npz", arr_0=np.zeros((2, 8, 8, 1), np.uint8))
    np.savez(root / "features.npz", features=np.eye(5))
    np.savez(root / "statistics.npz", mu=np.zeros(5), sigma=np.eye(5))
    np.save(root / "nan.npy", np.full((4, 5), np.nan))
    (root / "run").mkdir()
    (root / "run" / "manifest.json").write_text('{"version": [1]}')
    for i, text in enumerate(TOML):
        (root / f"{i}.toml").write_text(text, encoding="utf-8")
    return sorted(path.name for path in root.iterdir())


def arguments(seed: int, inputs: list[str]) -> list[str]:
    """Returns the argument vector of a seed."""
    rng = random.Random(seed)
    paths = [*inputs, *WORDS, "cifar10_ict", "digits", "pictures", "no-such.toml"]
    pools = {**LEVELS, **COUNTS, **SIZES, **CHOICES}
    for name in ("--mask", "--verify", "--compilation-cache"):
        pools[name] = paths
    # Of these, folders are searched to any depth.
    bounded = [path for path in paths if path != "/"]
    pools["--data"] = bounded
    pools["--model"] = [*paths, *["model", "plain"] * 20]
    pools["--out"] = [*paths, *["out.png", "out.npz", "no/such/out.png"] * 10]
    pools["--set"] = [f"{rng.choice(KEYS)}={rng.choice(VALUES)}" for _ in range(9)] + WORDS[
        :4
    ]

    name = rng.choice(COMMANDS[:9] if rng.random() < 0.97 else COMMANDS)
    args = [name]
    command = main.commands.get(name)
    if name == "edit":
        args.append(rng.choice(TASKS))
        command = command.commands.get(args[-1])

    # Arguments, and options that the command has, seldom others.
    if command is None or rng.random() < 0.05:
        known = list(pools)
    else:
        known = [
            option for param in command.params for option in param.opts if option in pools
        ]
    if rng.random() < (0.1 if name in ("sample", "generate") else 0.8):
        among = bounded if name == "evaluate" else paths
        args += rng.choices(among, k=2 if name == "evaluate" else rng.choice((1, 1, 2)))
    for _ in range(rng.choice((1, 2, 2, 3, 5)) if known else 0):
        if rng.random() < 0.1:
            args.append(rng.choice(FLAGS))
        else:
            option = rng.choice(known)
            value = rng.choice(pools[option])
            args += [f"{option}={value}"] if rng.random() < 0.3 else [option, value]

    # What would make many samples, or train, is not what is looked for here: the last one counts.
    if name in ("sample", "generate"):
        args += ["--num", "1", "--batch-size", "1"]
    if name in ("sample", "generate", "edit") and rng.random() < 0.8:
        args += [
            "--out",
            rng.choice(("no/such/x.png", "file.pt", "folder.png", "x.gif", "")),
        ]
    if name in ("sample", "generate", "edit") and rng.random() < 0.8:
        args += ["--model", rng.choice(("model", "plain", *inputs))]
    return args


def problem_of(args: list[str]) -> str:
    """Runs the command line; returns what is wrong with how it ended, or ""."""
    before = time.monotonic()
    result = CliRunner().invoke(main, args)
    if time.monotonic() - before > 60:
        return "it took longer than a minute"
    if not isinstance(result.exception, (SystemExit, type(None))):
        return f"{type(result.exception).__name__}: {result.exception!s:.300}"
    if result.exit_code == 0:
        return ""
    lines = result.stderr.splitlines()
    if result.exit_code != 2 or len(lines) != 1 or not lines[0].startswith("Error: "):
        return f"exit code {result.exit_code}, {len(lines)} lines: {result.stderr[-400:]!r}"
    return ""


def run(count: int, first: int = 0) -> dict[int, str]:
    """Runs `count` calls from a seed on; returns what is wrong, by seed."""
    # An unexpected error is an error here, not a line; and nothing may ask a hub.
    os.environ["CMJAX_TRACEBACK"] = "1"
    problems = {}
    with tempfile.TemporaryDirectory() as root:
        start = os.getcwd()
        os.chdir(root)
        try:
            inputs = make_inputs(Path(root))
            for seed in range(first, first + count):
                problem = problem_of(arguments(seed, inputs))
                if problem:
                    problems[seed] = f"{arguments(seed, inputs)!r:.500}\n    {problem}"
        finally:
            os.chdir(start)
    return problems


if __name__ == "__main__":
    found = run(*map(int, sys.argv[1:]))
    print("\n".join(f"{seed}: {problem}" for seed, problem in found.items()))
    print(f"{len(found)} of {sys.argv[1]} calls ended otherwise")
