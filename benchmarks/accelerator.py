"""What to measure on a machine with a GPU or TPU, in at most ten minutes.

    python benchmarks/accelerator.py --out results.jsonl
    python benchmarks/accelerator.py --minutes 4 --section parity --section network
    python benchmarks/accelerator.py --toy             (a tiny network: tries the script, on a CPU)

parity: the network on the accelerator against the CPU, with `jax.default_matmul_precision` at
"highest" and at the device's default, which on recent GPUs is TF32.
network: forward passes in float32 (at the default precision) and bfloat16, and compile times.
sampling: one and two steps of `cmjax.sample`, over as many calls of the bare network.
training: an EDM denoising step with Adam, forward, gradients and update.
generate: `cmjax.generation.generate`, end to end, over the bare sampler.
compiled: forward passes against diffusers under `torch.compile`, which takes minutes to compile.

Where torch and diffusers are installed, diffusers in eager mode is timed next to the network and
the training step, in turn, with TF32 as JAX has it; a ratio above 1 means that cmjax is faster.

Each result is printed at once, and written to `--out` as a line of JSON. Each section has a share
of the time that is left, and leaves out the rows that would take longer. What goes wrong in a
section, such as too little memory, ends that section alone.
"""

import copy
import dataclasses
import os
import sys
import tempfile
import time

# PyTorch needs memory on the same device.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import click
import jax
import jax.numpy as jnp
import numpy as np
from pairs import (
    CONFIGS,
    FirstStep,
    channels_last,
    in_deviations,
    in_dtype,
    random_model,
    request_of,
    write_pipeline,
)
from timing import (
    Report,
    compare,
    comparison,
    duration,
    in_turn,
    json_option,
    repeats_option,
    version,
)
from train_step import jax_step

import cmjax
from cmjax import generation
from cmjax.models import compute_in

DTYPES = ("float32", "bfloat16")


class OutOfTimeError(Exception):
    """A section has used its share of the time."""


@dataclasses.dataclass
class Bench:
    """What all sections use.

    Attributes:
        models: cmjax's network by dtype, each with its jitted `apply_fn`, which so is compiled once
            for all sections.
        peers: the same network in diffusers by dtype, on PyTorch's device; None for all if it is
            not installed.
        batches: batch sizes, the small ones first.
        repeats: turns of each measurement.
        report: tells the results.
        deadline: when the time of the present section is over, by `time.monotonic`.
    """

    models: dict
    peers: dict
    batches: tuple[int, ...]
    repeats: int
    report: Report
    deadline: float = 0.0

    def rows(self, choices):
        """Goes through the rows of a section while there is time for another one.

        Raises:
            OutOfTimeError: if less is left than the longest row so far took.
        """
        longest = 0.0
        for done, choice in enumerate(choices):
            start = time.monotonic()
            if start + longest > self.deadline:
                raise OutOfTimeError(
                    f"{len(choices) - done} of {len(choices)} rows left out"
                )
            yield choice
            longest = max(longest, time.monotonic() - start)

    @property
    def sizes(self):
        """Pairs of batch size and dtype."""
        return [(batch, dtype) for batch in self.batches for dtype in DTYPES]


def parity(bench):
    """Outputs on the accelerator against the CPU, at the highest precision and at the default."""
    model, _ = bench.models["float32"]
    step = FirstStep(model, 1)
    arguments = (model.params, step.x, step.t, step.cond)

    def output(precision, device):
        # Another function each time, since a program is kept for its function.
        def apply_fn(params, x, t, cond):
            return model.apply_fn(params, x, t, **cond)

        with jax.default_matmul_precision(precision):
            return np.asarray(jax.jit(apply_fn)(*jax.device_put(arguments, device)))

    cpu = output("highest", jax.devices("cpu")[0])
    for precision in bench.rows(("highest", None)):
        difference = in_deviations(output(precision, jax.devices()[0]), cpu)
        name = precision or "default"
        bench.report(
            f"parity float32, matmul precision {name}: outputs differ from the CPU's by "
            f"{difference:.1e} of their standard deviation",
            section="parity",
            precision=name,
            deviations=difference,
        )


def network(bench):
    """Forward passes, next to diffusers where it is installed, and compile times."""
    for batch, dtype in bench.rows(bench.sizes):
        model, apply_fn = bench.models[dtype]
        step = FirstStep(model, batch)
        start = time.perf_counter()
        output = step.ours(model, apply_fn)()
        first = time.perf_counter() - start
        row = {
            "section": "network",
            "batch": batch,
            "dtype": dtype,
            "first_call_seconds": first,
        }
        text = f"network {dtype} batch {batch}: first call, compiling, {first:.1f} s; "
        if bench.peers[dtype] is None:
            (row["seconds"],) = in_turn(step.ours(model, apply_fn), repeats=bench.repeats)
            bench.report(f"{text}cmjax {duration(row['seconds'])}", **row)
            continue

        theirs = step.theirs(bench.peers[dtype])
        row["deviations"] = in_deviations(output, channels_last(theirs()))
        row |= compare(step.ours(model, apply_fn), theirs, repeats=bench.repeats)
        bench.report(
            f"{text}{comparison(row, 'diffusers')}; outputs differ by "
            f"{row['deviations']:.1e} of their standard deviation",
            **row,
        )


def sampling(bench):
    """One and two steps of sampling, over as many calls of the bare network."""
    choices = [(steps, *size) for size in bench.sizes for steps in (1, 2)]
    for steps, batch, dtype in bench.rows(choices):
        model, apply_fn = bench.models[dtype]
        step = FirstStep(model, batch)
        call = step.ours(model, apply_fn)
        key = jax.random.key(0)

        def sampled(model=model, step=step, batch=batch, steps=steps, key=key):
            samples = model.sample(key, batch, num_inference_steps=steps, cond=step.cond)
            return samples.block_until_ready()

        def bare(call=call, steps=steps):
            for _ in range(steps):
                call()

        start = time.perf_counter()
        sampled()
        first = time.perf_counter() - start
        whole, calls = in_turn(sampled, bare, repeats=bench.repeats)
        bench.report(
            f"sampling {dtype} batch {batch}, {steps} steps: first call, compiling, "
            f"{first:.1f} s; {duration(whole)}, {batch / whole:.1f} samples a second, "
            f"sample() / {steps} network calls {whole / calls:.3f}",
            section="sampling",
            dtype=dtype,
            batch=batch,
            steps=steps,
            first_call_seconds=first,
            seconds=whole,
            samples_per_second=batch / whole,
            over_network=whole / calls,
        )


def training(bench):
    """A training step, next to PyTorch where it is installed; parameters stay in float32."""
    model, _ = bench.models["float32"]
    batch = bench.batches[len(bench.batches) // 2]
    step = FirstStep(model, batch)
    images = np.random.default_rng(0).uniform(-1, 1, (batch, *model.sample_shape))
    images = images.astype(np.float32)
    for dtype in bench.rows(DTYPES):
        apply_fn = (
            model.apply_fn if dtype == "float32" else compute_in(model.apply_fn, dtype)
        )
        ours = jax_step(apply_fn, model.params, {"data": jnp.asarray(images), **step.cond})
        row = {"section": "training", "batch": batch, "dtype": dtype}
        text = f"training step {dtype} batch {batch}: "
        if bench.peers["float32"] is None:
            (row["seconds"],) = in_turn(ours, repeats=bench.repeats)
            bench.report(f"{text}cmjax {duration(row['seconds'])}", **row)
            continue

        import torch
        from torch_networks import WithLabels, torch_step

        # A copy, since training changes the weights.
        peer = copy.deepcopy(bench.peers["float32"])
        device = next(peer.parameters()).device
        labels = None
        if step.labels is not None:
            labels = torch.from_numpy(np.array(step.labels)).to(device)
        theirs = torch_step(WithLabels(peer, labels), images, getattr(torch, dtype))
        row |= compare(ours, theirs, repeats=bench.repeats)
        bench.report(text + comparison(row, "PyTorch"), **row)


def generate(bench):
    """Samples into memory, without compilation, over the bare sampler in as many batches."""
    batch = bench.batches[-1]
    batches = 16
    for dtype in bench.rows(DTYPES):
        model, _ = bench.models[dtype]
        made = generation.generate(
            model, request_of(model), batch * batches, batch_size=batch
        )
        keys = [jax.random.key(i) for i in range(batches)]

        def bare(model=model, keys=keys):
            for key in keys:
                jax.block_until_ready(model.sample(key, batch))

        (seconds,) = in_turn(bare, repeats=bench.repeats)
        rate = batch * batches / made.run_seconds
        bench.report(
            f"generate {dtype}, {batches} batches of {batch}: {rate:.1f} samples a second, "
            f"generate() / bare sampler {made.run_seconds / seconds:.3f}, compiled in "
            f"{made.compile_seconds:.1f} s",
            section="generate",
            dtype=dtype,
            batch=batch,
            samples_per_second=rate,
            over_sampler=made.run_seconds / seconds,
            compile_seconds=made.compile_seconds,
        )


def compiled(bench):
    """Forward passes against diffusers under `torch.compile`."""
    import torch

    for batch, dtype in bench.rows(bench.sizes):
        if bench.peers[dtype] is None:
            raise ImportError("No module named 'diffusers'")
        model, apply_fn = bench.models[dtype]
        step = FirstStep(model, batch)
        theirs = step.theirs(torch.compile(bench.peers[dtype]))
        start = time.perf_counter()
        theirs()
        first = time.perf_counter() - start
        row = {"section": "compiled", "batch": batch, "dtype": dtype}
        row |= compare(step.ours(model, apply_fn), theirs, repeats=bench.repeats)
        bench.report(
            f"network {dtype} batch {batch}, torch.compile, which took {first:.1f} s: "
            f"{comparison(row, 'diffusers')}",
            peer_first_call_seconds=first,
            **row,
        )


# In this order, each with its share of the time.
SECTIONS = {
    "parity": (parity, 1),
    "network": (network, 3),
    "sampling": (sampling, 3),
    "training": (training, 2),
    "generate": (generate, 1),
    "compiled": (compiled, 3),
}


def both_sides(name):
    """The network in cmjax and, where that is installed, in diffusers; same weights."""
    if not (version("torch") and version("diffusers")):
        return random_model(CONFIGS[name]), None
    import torch

    with tempfile.TemporaryDirectory() as folder:
        peer = write_pipeline(CONFIGS[name], folder)
        model = cmjax.load(folder)

    # The precision that JAX has by default, for convolutions and products of matrices.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model, peer.to(device, memory_format=torch.channels_last)


def prepared(name, batches, repeats, report):
    """What the sections use, in one line."""
    model, peer = both_sides(name)
    models = {dtype: in_dtype(model, jnp.dtype(dtype)) for dtype in DTYPES}
    models = {dtype: (each, jax.jit(each.apply_fn)) for dtype, each in models.items()}
    peers = dict.fromkeys(DTYPES)
    peer_line = "torch or diffusers is not installed: cmjax alone"
    if peer is not None:
        import torch

        peers = {dtype: copy.deepcopy(peer).to(getattr(torch, dtype)) for dtype in DTYPES}
        peer_line = f"diffusers next to it on {next(peer.parameters()).device}"
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    report(f"{name}: {parameters:,} parameters; {peer_line}", preset=name, peer=peer_line)
    return Bench(models, peers, batches, repeats, report)


def attempt(name, bench):
    """Runs a section; tells in one line why it ended early, and whether that is no fault."""
    function, _ = SECTIONS[name]
    try:
        function(bench)
    except OutOfTimeError as error:
        bench.report(f"{name}: out of time, {error}", section=name, left_out=str(error))
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        reason = f"{type(error).__name__}: {first_line}"
        bench.report(f"{name}: ended, {reason}", section=name, error=reason)
        memory = "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error)
        return memory or isinstance(error, ImportError | MemoryError)
    return True


@click.command()
@click.option("--minutes", default=10.0, show_default=True, help="Time for all sections.")
@click.option(
    "--section",
    "sections",
    type=click.Choice(list(SECTIONS)),
    multiple=True,
    help="May be repeated; by default all.",
)
@click.option("--batch", "batches", type=int, multiple=True, default=(1, 16, 64))
@click.option("--preset", type=click.Choice(list(CONFIGS)), default="imagenet64")
@click.option("--toy", is_flag=True, help="A tiny network in batches of 2.")
@click.option("--out", type=click.Path(dir_okay=False), help="A file for lines of JSON.")
@repeats_option
@json_option
def main(minutes, sections, batches, preset, toy, out, repeats, as_json):
    """Measure what matters on an accelerator, section by section."""
    end = time.monotonic() + 60 * minutes
    if toy:
        preset = "tiny"
        batches = (2,)

    # Compile times are those of an empty cache.
    jax.config.update("jax_enable_compilation_cache", False)
    bench = prepared(preset, batches, repeats, Report(as_json, out))
    chosen = [name for name in SECTIONS if name in (sections or SECTIONS)]
    well = True
    for i, name in enumerate(chosen):
        shares = [SECTIONS[other][1] for other in chosen[i:]]
        now = time.monotonic()
        bench.deadline = now + (end - now) * shares[0] / sum(shares)
        well = attempt(name, bench) and well
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
