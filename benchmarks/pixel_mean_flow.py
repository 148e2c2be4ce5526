"""Pixel MeanFlow in one call: seconds per picture next to its authors' code in PyTorch.

    pip install -e ".[parity]"
    git clone --branch torch https://github.com/Lyy-iiis/pMF
    python benchmarks/pixel_mean_flow.py pMF --preset pMF-B/16 --batch 1 --batch 4

The authors' network is made from that checkout with random weights, its state dict is written as
they write it, and cmjax loads that file. Both sides make pictures of given noise in one call, in
one process and in turn; their pictures are compared first. Above 1, cmjax is faster.
"""

import importlib
import sys
import tempfile
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np
from pairs import channels_last, in_deviations
from timing import Report, compare, comparison, json_option, repeats_option

import cmjax
from cmjax.models import PIXEL_MEAN_FLOWS


def reference_sampler(checkout, preset):
    """The authors' sampler from a checkout, of which no parameter is zero."""
    import torch

    sys.path.insert(0, str(checkout))
    sampler_class = importlib.import_module("pmf").pixelMeanFlow
    size = PIXEL_MEAN_FLOWS[preset].sample_size
    name = preset.replace("pMF-", "pmfDiT_").replace("/", "_")
    sampler = sampler_class(name, img_size=size).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in sampler.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return sampler


class Noise:
    """What the authors' sampler draws its noise from: it gives the noise that it was made with."""

    def __init__(self, noise):
        """Keeps the noise that `randn` is to return."""
        self.noise = noise

    def randn(self, shape):
        """Returns the noise, whose shape is asked for."""
        assert tuple(shape) == tuple(self.noise.shape)
        return self.noise


def pictures(report, sampler, model, preset, batch, repeats):
    """Compares the pictures of both sides, then their times."""
    import torch

    config = model.config
    shape = (batch, *model.sample_shape)
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    labels = np.arange(batch) % config.num_class_embeds
    apply_fn, params, scheduler = model.apply_fn, model.params, model.scheduler
    key = jax.random.key(0)
    init = jnp.asarray(noise) * scheduler.init_noise_sigma
    cond = {"class_labels": jnp.asarray(labels, jnp.int32)}

    def ours():
        x = cmjax.sample(key, apply_fn, params, scheduler, shape, cond=cond, init=init)
        return jax.block_until_ready(x)

    given = Noise(torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()))
    conditions = (
        config.guidance_scale,
        *config.guidance_interval,
        torch.from_numpy(labels),
    )

    def theirs():
        return sampler.generate(batch, given, 1, *conditions)

    row = {
        "preset": preset,
        "batch": batch,
        "deviations": in_deviations(ours(), channels_last(theirs())),
    }
    row |= compare(ours, theirs, repeats=repeats)
    report(
        f"{preset} batch {batch}: {comparison(row, 'PyTorch')}; per picture "
        f"{row['seconds'] / batch:.2f} and {row['peer_seconds'] / batch:.2f} s; pictures differ "
        f"by {row['deviations']:.1e} of their standard deviation",
        **row,
    )


@click.command()
@click.argument("checkout", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--preset",
    type=click.Choice(list(PIXEL_MEAN_FLOWS)),
    default="pMF-B/16",
    show_default=True,
    help="The released model whose network is made.",
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1),
    multiple=True,
    default=(1,),
    show_default=True,
    help="Pictures at a time; may be repeated.",
)
@repeats_option
@json_option
def main(checkout, preset, batches, repeats, as_json):
    """Times pictures of one call in cmjax and in CHECKOUT, the authors' PyTorch code."""
    import torch

    sampler = reference_sampler(checkout, preset)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        torch.save(sampler.state_dict(), path)
        model = cmjax.load(path)
    report = Report(as_json)
    for batch in batches:
        pictures(report, sampler, model, preset, batch, repeats)


if __name__ == "__main__":
    main()
