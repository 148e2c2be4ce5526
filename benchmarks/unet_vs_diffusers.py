"""Time of one forward pass of the released ImageNet-64 network, in cmjax and in diffusers.

    pip install -e ".[parity]"
    python benchmarks/unet_vs_diffusers.py

Both have the same weights and run in one process, in turn; diffusers as it is fastest on a CPU, in
PyTorch's channels-last layout. A ratio above 1 means that cmjax is slower. The outputs are compared
before they are timed.
"""

import tempfile
import time
from pathlib import Path

import click
import jax
import numpy as np
import torch
from diffusers import UNet2DModel

from cmjax.checkpoints import diffusers
from cmjax.models import PRESETS


def networks(preset):
    """Diffusers' network with random weights, and the model that cmjax reads of it."""
    options = diffusers.config_to_diffusers(PRESETS[preset])
    torch.manual_seed(0)
    network = UNet2DModel(
        **{name: value for name, value in options.items() if name[0] != "_"}
    ).eval()
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        model = diffusers.open_unet(Path(folder)).load()
    return network.to(memory_format=torch.channels_last), model


def calls(network, model, batch):
    """Two functions of no arguments that evaluate the networks on the same input."""
    config = model.config
    rng = np.random.default_rng(0)
    x = rng.standard_normal(
        (batch, config.sample_size, config.sample_size, config.in_channels)
    ).astype(np.float32)
    t = np.full(batch, 250.0, np.float32)
    labels = np.arange(batch, dtype=np.int32) if model.num_classes else None
    cond = {} if labels is None else {"class_labels": labels}
    apply_fn = jax.jit(model.apply_fn)
    inputs = (
        torch.from_numpy(x)
        .permute(0, 3, 1, 2)
        .contiguous(memory_format=torch.channels_last)
    )
    theirs = None if labels is None else torch.from_numpy(labels)

    def ours():
        return np.asarray(apply_fn(model.params, x, t, **cond))

    def diffusers_():
        with torch.inference_mode():
            return (
                network(inputs, torch.from_numpy(t), theirs)
                .sample.permute(0, 2, 3, 1)
                .numpy()
            )

    return ours, diffusers_


@click.command()
@click.option(
    "--preset", type=click.Choice(list(PRESETS)), default="imagenet64", show_default=True
)
@click.option(
    "--batch", "batches", multiple=True, type=int, default=(1, 4), show_default=True
)
@click.option("--repeats", default=7, show_default=True)
def main(preset, batches, repeats):
    network, model = networks(preset)
    count = sum(p.size for p in jax.tree.leaves(model.params))
    print(
        f"{preset}: {count:,} parameters, float32, {torch.get_num_threads()} threads, "
        f"{jax.default_backend()}"
    )
    for batch in batches:
        both = calls(network, model, batch)
        ours, theirs = (call() for call in both)  # compiles
        difference = np.abs(ours - theirs).max() / np.std(theirs)
        seconds = np.empty((repeats, 2))
        for row in seconds:
            for i, call in enumerate(both):
                start = time.perf_counter()
                call()
                row[i] = time.perf_counter() - start
        median = np.median(seconds, axis=0)
        ratio = np.median(seconds[:, 0] / seconds[:, 1])
        print(
            f"batch {batch}: cmjax {median[0]:6.2f} s, diffusers {median[1]:6.2f} s, "
            f"ratio {ratio:.2f}; "
            f"outputs differ by {difference:.1e} of their standard deviation"
        )


if __name__ == "__main__":
    main()
