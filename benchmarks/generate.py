"""What bulk generation costs over the bare sampler and diffusers, and what survives SIGKILL.

    python benchmarks/generate.py pipeline      (needs torch and diffusers)
    python benchmarks/generate.py overhead
    python benchmarks/generate.py memory
    python benchmarks/generate.py kills

pipeline: `generate_folder`, without compilation, with writing and exporting, against diffusers'
`ConsistencyModelPipeline` in a loop over batches, on the same weights, in turn. Above 1, cmjax is
faster. Before that, samples of both from the same noise are compared.
overhead: the same against the bare jitted sampler at the same batch: 1 means that writing, logging
and exporting cost nothing.
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
from pairs import CONFIGS, in_pixels, random_model, request_of, write_pipeline
from timing import (
    Report,
    Seconds,
    compare,
    comparison,
    described,
    in_child,
    json_option,
    machine,
    repeats_option,
)

import cmjax
from cmjax import generation

preset_option = click.option(
    "--preset", type=click.Choice(list(CONFIGS)), default="small32", show_default=True
)
batch_option = click.option("--batch", default=16, show_default=True)
batches_option = click.option("--batches", default=32, show_default=True)


@click.group()
def main():
    pass


def generated(model, request, batch, batches):
    """Generates into a folder; returns the seconds without compilation."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        start = time.perf_counter()
        generation.generate_folder(run, model, request, batch * batches, batch_size=batch)
        seconds = time.perf_counter() - start
        (compiled,) = [event for event in events_of(run) if event["event"] == "compiled"]
        return Seconds(seconds - compiled["seconds"])


def samples_per_second(row, num, peer):
    """The rates of both sides, added to the row and as text."""
    row["samples_per_second"] = num / row["seconds"]
    row["peer_samples_per_second"] = num / row["peer_seconds"]
    return (
        f"{row['samples_per_second']:.1f} samples a second, "
        f"{row['peer_samples_per_second']:.1f} by {peer}"
    )


@main.command("pipeline")
@preset_option
@batch_option
@batches_option
@repeats_option
@json_option
def pipeline_(preset, batch, batches, repeats, as_json):
    """Compare bulk generation with diffusers' pipeline."""
    import torch
    from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline

    report = Report(as_json)
    with tempfile.TemporaryDirectory() as folder:
        network = write_pipeline(CONFIGS[preset], folder)
        model = cmjax.load(folder)
    network.to(memory_format=torch.channels_last)
    pipeline = ConsistencyModelPipeline(network, CMStochasticIterativeScheduler())
    pipeline.set_progress_bar_config(disable=True)
    request = request_of(model)
    classes = request.labels_of(range(batch))
    classes = None if classes is None else classes.tolist()

    # Samples of the same noise: [B, H, W, C], which diffusers takes channels first.
    noise = np.random.default_rng(0).standard_normal(
        (batch, *model.sample_shape), np.float32
    )
    mine = model.sample(
        jax.random.key(0), batch, labels=classes, init=noise * model.scheduler.sigma_max
    )
    latents = torch.from_numpy(noise).permute(0, 3, 1, 2)
    peer = pipeline(batch, classes, 1, latents=latents, output_type="pt").images
    peer = 2 * peer.permute(0, 2, 3, 1).numpy() - 1
    pixels = in_pixels(np.asarray(mine), peer)

    def theirs():
        for i in range(batches):
            generator = torch.Generator().manual_seed(i)
            pipeline(batch, classes, 1, generator=generator, output_type="np")

    def ours():
        return generated(model, request, batch, batches)

    num = batch * batches
    row = {"preset": preset, "batch": batch, "num": num, "pixels": pixels}
    row |= compare(ours, theirs, repeats=repeats)
    rates = samples_per_second(row, num, "diffusers")
    report(
        f"{preset}, {num} samples in one step, batch {batch}: {rates}; "
        f"{comparison(row, 'diffusers')}; from the same noise, samples differ by "
        f"{pixels:.2f}/255",
        **row,
    )


@main.command()
@preset_option
@batch_option
@batches_option
@repeats_option
@json_option
def overhead(preset, batch, batches, repeats, as_json):
    """Compare bulk generation with the bare sampler."""
    report = Report(as_json)
    model = random_model(CONFIGS[preset])
    request = request_of(model)
    state = request.set_timesteps(model.scheduler)
    classes = request.labels_of(range(batch))
    cond = {} if classes is None else {"class_labels": classes}
    bare = jax.jit(
        lambda key, params: cmjax.sample(
            key,
            model.apply_fn,
            params,
            model.scheduler,
            (batch, *model.sample_shape),
            state=state,
            cond=cond,
        )
    )
    keys = [jax.random.key(i) for i in range(batches)]

    def alone():
        for key in keys:
            bare(key, model.params).block_until_ready()

    def ours():
        return generated(model, request, batch, batches)

    num = batch * batches
    row = {"preset": preset, "batch": batch, "num": num}
    row |= compare(ours, alone, repeats=repeats)
    rates = samples_per_second(row, num, "the bare sampler")
    report(
        f"{preset}, {num} samples in one step, batch {batch}: {rates}; "
        f"{comparison(row, 'bare sampler')}",
        **row,
    )


def events_of(run):
    """The lines of a run's log; none if there is no log yet."""
    log = run / "log.jsonl"
    return (
        [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    )


def arguments(folder, num, cache):
    """The arguments of Python that generate digits into a folder."""
    command = ["-m", "cmjax", "generate", "--num", num, "--out", folder]
    return [*map(str, command), "--compilation-cache", str(cache), "--quiet"]


def start(folder, num, cache):
    """Starts `cmjax generate` as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, *arguments(folder, num, cache)]
    return subprocess.Popen(command, env=environment)


@main.command()
def memory():
    """Measure the memory of `cmjax generate`."""
    click.echo(described(machine()))
    with tempfile.TemporaryDirectory() as root:
        for num in (64, 1_000, 20_000):  # the first also compiles
            _, _, peak = in_child(
                *arguments(Path(root) / str(num), num, Path(root) / "cache")
            )
            click.echo(f"{num:>6,} samples: peak {peak / 2**20:,.0f} MiB")


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
