"""Decoding latents in cmjax and in diffusers: time, agreement and memory.

    pip install -e ".[parity]"
    python benchmarks/autoencoder.py
    python benchmarks/autoencoder.py --size 512 --dtype bfloat16

Both sides have the same random weights of the size of Stable Diffusion's autoencoder, and decode
the same latents in one process, in turn; diffusers as it is fastest on a CPU, in PyTorch's
channels-last layout. A ratio above 1 means that cmjax is faster.

Before that, each side decodes once in a process of its own, whose highest use of memory is printed:
interpreter, libraries and parameters included.
"""

import os
import sys
import tempfile
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np
from pairs import channels_last, in_deviations, quieten_diffusers
from timing import Report, compare, comparison, in_child, json_option, repeats_option

import cmjax
from cmjax.models import AutoencoderKLConfig

CONFIGS = {
    "sd1": AutoencoderKLConfig(),
    "tiny": AutoencoderKLConfig(  # to try the script with
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    ),
}
CHILD = "CMJAX_BENCHMARK_SIDE"  # says which side a child process is


def write_autoencoder(config, folder):
    """Writes an autoencoder of diffusers with random weights; returns it."""
    import torch
    from diffusers import AutoencoderKL

    from cmjax.checkpoints.autoencoder_config_files import config_to_diffusers

    quieten_diffusers()
    torch.manual_seed(0)
    options = config_to_diffusers(config)
    network = AutoencoderKL(**{k: v for k, v in options.items() if k[0] != "_"}).eval()
    network.save_pretrained(folder)
    return network.to(memory_format=torch.channels_last)


def random_latents(config, size, batch):
    """Latents of pictures of `size` x `size` pixels."""
    side = size // config.stride
    shape = (batch, side, side, config.latent_channels)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def decoder_of_cmjax(folder, latents, dtype):
    """A function that decodes the latents with cmjax."""
    vae = cmjax.load_autoencoder(folder, dtype=jnp.dtype(dtype))
    x = jnp.asarray(latents, jnp.dtype(dtype))
    return lambda: jax.block_until_ready(vae.decode(x))


def decoder_of_diffusers(network, latents, dtype):
    """A function that decodes the latents with diffusers."""
    import torch

    network = network.to(getattr(torch, dtype))
    x = torch.from_numpy(latents).permute(0, 3, 1, 2) / network.config.scaling_factor
    x = x.to(getattr(torch, dtype), memory_format=torch.channels_last)

    def decode():
        with torch.inference_mode():
            return network.decode(x).sample

    return decode


def decode_alone(side, folder, size, batch, dtype):
    """Decodes once; runs in a child process, which is measured from outside."""
    config = cmjax.checkpoints.open_autoencoder(folder).config
    latents = random_latents(config, size, batch)
    if side == "cmjax":
        decoder_of_cmjax(folder, latents, dtype)()
        return
    import torch
    from diffusers import AutoencoderKL

    quieten_diffusers()
    network = AutoencoderKL.from_pretrained(folder).eval()
    network = network.to(memory_format=torch.channels_last)
    decoder_of_diffusers(network, latents, dtype)()


@click.command()
@click.option(
    "--preset", type=click.Choice(list(CONFIGS)), default="sd1", show_default=True
)
@click.option(
    "--size",
    type=click.IntRange(min=8),
    default=256,
    show_default=True,
    help="Height and width of the pictures.",
)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
)
@click.option(
    "--children/--no-children",
    default=True,
    show_default=True,
    help="Whether to measure memory, in processes of their own.",
)
@repeats_option
@json_option
def main(preset, size, batch, dtype, children, repeats, as_json):
    report = Report(as_json)
    config = CONFIGS[preset]
    row = {"preset": preset, "size": size, "batch": batch, "dtype": dtype}
    with tempfile.TemporaryDirectory() as folder:
        network = write_autoencoder(config, folder)
        name = f"{preset} {dtype} {size}x{size} batch {batch}"
        if children:
            peaks = {}
            for side in ("cmjax", "diffusers"):
                options = (folder, size, batch, dtype)
                _, _, peaks[side] = in_child(Path(__file__), *options, **{CHILD: side})
            report(
                f"{name}: peak memory {peaks['cmjax'] / 1e9:.2f} GB "
                f"(diffusers {peaks['diffusers'] / 1e9:.2f} GB)",
                **row,
                **{f"{side}_peak_bytes": peak for side, peak in peaks.items()},
            )

        latents = random_latents(config, size, batch)
        ours = decoder_of_cmjax(folder, latents, dtype)
        theirs = decoder_of_diffusers(network, latents, dtype)
        expected = channels_last(theirs())
        row["deviations"] = in_deviations(np.asarray(ours(), np.float32), expected)
        row |= compare(ours, theirs, repeats=repeats)
        report(
            f"{name}: {comparison(row, 'diffusers')}; outputs differ by "
            f"{row['deviations']:.1e} of their standard deviation",
            **row,
        )


if __name__ == "__main__":
    if CHILD in os.environ:
        folder, size, batch, dtype = sys.argv[1:]
        decode_alone(os.environ[CHILD], folder, int(size), int(batch), dtype)
    else:
        main()
