"""What bulk generation costs over the bare sampler and diffusers, and what survives SIGKILL.

    python benchmarks/generate.py overhead      (needs torch and diffusers)
    python benchmarks/generate.py memory
    python benchmarks/generate.py kills

overhead: samples a second of `generate_folder`, without compilation, with writing and exporting,
over the bare jitted sampler at the same batch, in turn; then over diffusers'
`ConsistencyModelPipeline` in a loop on the same weights.
memory: the peak of `cmjax generate` for 64 digits, compiling, then for 1,000 and for 20,000 (16 MB
of pixels).
kills: `cmjax generate` killed at 20 random moments; its exported file is compared with that of an
uninterrupted run.
"""

import datetime
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import jax
import numpy as np

import cmjax
from cmjax import generation
from cmjax.checkpoints import diffusers
from cmjax.models import UNet2DConfig


@click.group()
def main():
    pass


def network():
    """Diffusers' module of a network with random weights, and the model that cmjax reads of it."""
    import torch
    from diffusers import UNet2DModel

    config = UNet2DConfig(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(64, 128),
        num_class_embeds=10,
    )
    torch.manual_seed(0)
    options = {
        k: v for k, v in diffusers.config_to_diffusers(config).items() if k[0] != "_"
    }
    module = UNet2DModel(**options).eval()
    with tempfile.TemporaryDirectory() as folder:
        module.save_pretrained(folder)
        return module, diffusers.open_unet(Path(folder)).load()


@main.command()
@click.option("--batch", default=16, show_default=True)
@click.option("--batches", default=32, show_default=True)
@click.option("--repeats", default=15, show_default=True)
def overhead(batch, batches, repeats):
    import torch
    from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline

    module, model = network()
    request = generation.Request(num_inference_steps=1, labels=range(10))
    state = request.set_timesteps(model.scheduler)
    classes = request.labels_of(range(batch))
    num = batch * batches
    bare = jax.jit(
        lambda key, params: cmjax.sample(
            key,
            model.apply_fn,
            params,
            model.scheduler,
            (batch, 32, 32, 3),
            state=state,
            cond={"class_labels": classes},
        )
    )
    keys = [jax.random.key(i) for i in range(batches)]
    bare(keys[0], model.params).block_until_ready()
    pipeline = ConsistencyModelPipeline(module, CMStochasticIterativeScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def once_bare():
        start = time.perf_counter()
        for key in keys:
            bare(key, model.params).block_until_ready()
        return time.perf_counter() - start

    def once_generated():
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            start = time.perf_counter()
            generation.generate_folder(run, model, request, num, batch_size=batch)
            seconds = time.perf_counter() - start
            (compiled,) = [
                event for event in events_of(run) if event["event"] == "compiled"
            ]
            return seconds - compiled["seconds"]

    def once_diffusers():
        start = time.perf_counter()
        for i in range(batches):
            generator = torch.Generator().manual_seed(i)
            pipeline(batch, classes.tolist(), 1, generator=generator, output_type="np")
        return time.perf_counter() - start

    click.echo(f"batch {batch}, {num} samples in one step")
    for name, other in (("the bare sampler", once_bare), ("diffusers", once_diffusers)):
        other(), once_generated()  # so that neither side pays for what a process does once
        times = np.array(
            [in_turn(other, once_generated, backwards=turn % 2) for turn in range(repeats)]
        )
        theirs, ours = np.median(times, axis=0)
        ratios = times[:, 0] / times[:, 1]
        spread = f"{ratios.min():.3f} to {ratios.max():.3f}"
        click.echo(
            f"generate / {name}: {np.median(ratios):.3f} ({spread}); "
            f"samples a second {num / ours:.1f} and {num / theirs:.1f}"
        )


def events_of(run):
    """The lines of a run's log; none if there is no log yet."""
    log = run / "log.jsonl"
    return (
        [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    )


def in_turn(one, two, backwards):
    """The seconds of both; the order changes, since a machine's speed drifts over minutes."""
    if backwards:
        second, first = two(), one()
        return [first, second]
    return [one(), two()]


def start(folder, num, cache, **options):
    """Starts `cmjax generate` as a process of its own."""
    command = [sys.executable, "-m", "cmjax", "generate", "--num", num, "--out", folder]
    command += ["--compilation-cache", cache, "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.Popen([*map(str, command)], env=environment, **options)


@main.command()
def memory():
    with tempfile.TemporaryDirectory() as root:
        for num in (64, 1_000, 20_000):  # the first also compiles
            process = start(Path(root) / str(num), num, Path(root) / "cache")
            _, status, usage = os.wait4(process.pid, 0)
            assert status == 0
            click.echo(f"{num:>6,} samples: peak {usage.ru_maxrss / 1024:,.0f} MiB")


@main.command()
@click.option("--num", default=20_000, show_default=True)
@click.option("--kills", "count", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True)
def kills(num, count, seed):
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as root:
        alone = Path(root) / "alone"
        out = Path(root) / "out"
        cache = Path(root) / "cache"
        assert start(alone, num, cache).wait() == 0
        killed = 0
        firsts = []
        while killed < count:
            begin = time.time()
            process = start(out, num, cache)
            time.sleep(moments.uniform(0, 6))
            process.send_signal(signal.SIGKILL)
            if process.wait() != -signal.SIGKILL:
                break
            killed += 1
            shards = [
                _seconds(event) for event in events_of(out) if event["event"] == "shard"
            ]
            firsts += [seconds - begin for seconds in shards if seconds > begin][:1]
        assert start(out, num, cache).wait() == 0
        name = f"samples_{num}x28x28x1.npz"
        same = (alone / name).read_bytes() == (out / name).read_bytes()
        shards = len(list((out / "shards").glob("[0-9]*.npz")))
    verdict = "identical" if same else "DIFFERENT"
    click.echo(f"killed {killed} times; {shards} shards; the exported files are {verdict}")
    if firsts:
        click.echo(
            f"from start to the first new shard: median {statistics.median(firsts):.1f} s, "
            f"most {max(firsts):.1f} s"
        )


def _seconds(event):
    return datetime.datetime.fromisoformat(event["time"]).timestamp()


if __name__ == "__main__":
    main()
