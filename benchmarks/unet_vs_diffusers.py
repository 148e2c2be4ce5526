"""One forward pass of a network in cmjax and in diffusers: time, agreement, compilation and memory.

    pip install -e ".[parity]"
    python benchmarks/unet_vs_diffusers.py --preset imagenet64 --batch 1 --batch 4
    python benchmarks/unet_vs_diffusers.py --preset imagenet64 --dtype float32 --dtype bfloat16
    python benchmarks/unet_vs_diffusers.py --preset lsun256

Both sides have the same random weights and run in one process, in turn; diffusers as it is fastest
on a CPU, in PyTorch's channels-last layout. A ratio above 1 means that cmjax is faster.

Before they are timed, the outputs are compared: in float32 as a share of their standard deviation;
in bfloat16 as samples made in one step, in steps of 1/255, of each side to diffusers' in float32.

Then, in processes of their own: the seconds that compiling takes, with an empty compilation cache
and from a filled one, and the highest use of memory, interpreter and libraries included, of loading
the model and of making a batch of samples, over the size of the parameters.
"""

import copy
import tempfile
from pathlib import Path

import click
import jax
import jax.numpy as jnp
from pairs import (
    CONFIGS,
    FirstStep,
    channels_last,
    in_deviations,
    in_dtype,
    in_pixels,
    write_pipeline,
)
from timing import (
    Report,
    compare,
    comparison,
    in_child,
    json_option,
    keep_memory_option,
    repeats_option,
)

import cmjax

ALONE = Path(__file__).with_name("alone.py")


def forward(report, name, network, model, batches, dtype, repeats):
    """Compares the outputs of both networks, which are in float32, and times them in a dtype."""
    import torch

    ours = in_dtype(model, jnp.dtype(dtype))
    apply_fn = jax.jit(ours.apply_fn)
    peer_network = network
    if dtype != "float32":
        peer_network = copy.deepcopy(network).to(getattr(torch, dtype))
    for batch in batches:
        step = FirstStep(model, batch)

        # What diffusers returns in float32 is the reference of all.
        reference = channels_last(step.theirs(network)())
        expected = step.samples(reference)
        calls = step.ours(ours, apply_fn), step.theirs(peer_network)
        mine = calls[0]()
        peer = channels_last(calls[1]())
        row = {
            "preset": name,
            "dtype": dtype,
            "batch": batch,
            "deviations": in_deviations(mine, reference),
            "pixels": in_pixels(step.samples(mine), expected),
            "peer_pixels": in_pixels(step.samples(peer), expected),
        }
        difference = (
            f"outputs differ by {row['deviations']:.1e} of their standard deviation"
        )
        if dtype != "float32":
            difference = (
                f"samples differ from those in float32 by {row['pixels']:.2f}/255 "
                f"(diffusers' by {row['peer_pixels']:.2f}/255)"
            )
        row |= compare(*calls, repeats=repeats)
        text = f"{name} {dtype} batch {batch}: {comparison(row, 'diffusers')}; {difference}"
        report(text, **row)


def compilation(report, name, dtype, batch):
    """Compiles the network twice, in two processes that share a cache which is empty at first."""
    row = {"preset": name, "dtype": dtype, "batch": batch}
    with tempfile.TemporaryDirectory() as cache:
        for kind in ("cold", "cached"):
            printed, _, _ = in_child(
                ALONE, "compile", name, dtype, "--batch", batch, **cache_in(cache)
            )
            tracing, compiling = map(float, printed.split())
            row[f"{kind}_tracing_seconds"] = tracing
            row[f"{kind}_compile_seconds"] = compiling
    report(
        f"{name} {dtype} batch {batch}: compiled in {row['cold_compile_seconds']:.1f} s, from "
        f"the cache in {row['cached_compile_seconds']:.1f} s, and before that traced in "
        f"{row['cold_tracing_seconds']:.1f} and {row['cached_tracing_seconds']:.1f} s",
        **row,
    )


def memory(report, name, folder, dtype, batch, parameters):
    """Measures the memory of both sides, each task in a process of its own."""
    size = parameters * jnp.dtype(dtype).itemsize
    row = {"preset": name, "dtype": dtype, "batch": batch, "parameter_bytes": size}
    with tempfile.TemporaryDirectory() as cache:
        for key, side, task in (
            ("load", "cmjax", "load"),
            ("sample_compiling", "cmjax", "sample"),
            ("sample", "cmjax", "sample"),
            ("peer_load", "diffusers", "load"),
            ("peer_sample", "diffusers", "sample"),
        ):
            options = ["--batch", batch] if task == "sample" else []
            task_of_side = (ALONE, task, folder, side, dtype, *options)
            _, _, peak = in_child(*task_of_side, **cache_in(cache))
            row[key] = peak / size
    report(
        f"{name} {dtype} batch {batch}: peak memory over {size / 1e6:,.0f} MB of parameters: "
        f"loading {row['load']:.2f} (diffusers {row['peer_load']:.2f}), sampling "
        f"{row['sample']:.2f} (compiling {row['sample_compiling']:.2f}, diffusers "
        f"{row['peer_sample']:.2f})",
        **row,
    )


def cache_in(folder):
    """Environment variables for a compilation cache that keeps every program."""
    return {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@click.command()
@click.option(
    "--preset",
    "presets",
    type=click.Choice(list(CONFIGS)),
    multiple=True,
    default=("imagenet64",),
    show_default=True,
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    help="Of forward passes; by default 1, and for networks of less than 256 pixels also 4.",
)
@click.option(
    "--dtype",
    "dtypes",
    type=click.Choice(["float32", "bfloat16"]),
    multiple=True,
    default=("float32",),
    show_default=True,
)
@click.option(
    "--children/--no-children",
    default=True,
    show_default=True,
    help="Whether to measure compilation and memory, in processes of their own.",
)
@keep_memory_option(default=False)
@repeats_option
@json_option
def main(presets, batches, dtypes, children, keep_memory, repeats, as_json):
    if keep_memory:
        cmjax.system.keep_memory()
    report = Report(as_json)
    for name in presets:
        config = CONFIGS[name]
        sizes = batches or ((1, 4) if config.sample_size < 256 else (1,))
        with tempfile.TemporaryDirectory() as folder:
            network = write_pipeline(config, folder)
            parameters = sum(p.numel() for p in network.parameters())
            report(
                f"\n{name}: {parameters:,} parameters, {threads()} threads of PyTorch",
                preset=name,
                parameters=parameters,
                threads=threads(),
            )

            # The children come first, while this process does not compute.
            for dtype in dtypes if children else ():
                compilation(report, name, dtype, sizes[0])
                memory(report, name, folder, dtype, sizes[0], parameters)
            time_both(report, name, network, folder, sizes, dtypes, repeats)


def time_both(report, name, network, folder, batches, dtypes, repeats):
    """Forward passes of both networks, dtype by dtype."""
    import torch

    network = network.to(memory_format=torch.channels_last)
    model = cmjax.load(folder)
    for dtype in dtypes:
        forward(report, name, network, model, batches, dtype, repeats)


def threads():
    import torch

    return torch.get_num_threads()


if __name__ == "__main__":
    main()
