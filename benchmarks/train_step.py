"""A training step in cmjax against PyTorch: the same networks and loss, in turn, in one process.

    python benchmarks/train_step.py [--batch 64] [--repeats 7] [--no-keep-memory]

It needs the parity extra.

EDM denoising with Adam on 28x28 images: forward, the gradients of inputs and weights, and update;
and the forward pass alone. The networks are the UNet of the bundled digits (against diffusers'
`UNet2DModel` of the same config and weights on the same 2x2 patches, channels last) and a DiT of
width 128 and 6 blocks on 4x4 patches (against the same made of `TransformerEncoderLayer`s, whose
normalisations have some more parameters). Both sides keep the memory that they free, as in `cmjax
train`, or with `--no-keep-memory` return it to the system, as processes do by default. A ratio
above 1 means that cmjax is faster.
"""

import dataclasses
import tempfile

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from pairs import channels_last, in_deviations, write_pipeline
from timing import (
    Report,
    compare,
    comparison,
    json_option,
    keep_memory_option,
    repeats_option,
)

import cmjax
from cmjax.models import DiT, DiTConfig, UNet2D, UNet2DConfig, from_nnx
from cmjax.training import losses, trainer

SHARED = {"sample_size": 28, "in_channels": 1, "out_channels": 1, "time_scale": 0.01}
UNET = UNet2DConfig(block_out_channels=(64, 96), norm_num_groups=16, patch_size=2, **SHARED)
DIT = DiTConfig(
    patch_size=4, num_layers=6, num_attention_heads=4, attention_head_dim=32, **SHARED
)


def unets():
    """The UNet of both sides, with the same weights: apply_fn, params and PyTorch's module."""
    from torch_networks import TorchUNet

    # diffusers has neither patches nor a factor on times: its wrapper does that.
    folded = dataclasses.replace(
        UNET, sample_size=14, in_channels=4, out_channels=4, patch_size=1, time_scale=1.0
    )
    with tempfile.TemporaryDirectory() as folder:
        network = TorchUNet(write_pipeline(folded, folder))
        params = cmjax.load(folder).params
    apply_fn, _ = from_nnx(nnx.eval_shape(lambda: UNet2D(UNET, rngs=nnx.Rngs(0))))
    return apply_fn, params, network


def dits():
    """The DiT of both sides, each with weights of its own."""
    from torch_networks import TorchDiT

    return *from_nnx(DiT(DIT, rngs=nnx.Rngs(0))), TorchDiT()


def jax_step(apply_fn, params, batch):
    """One EDM denoising step, as a function that returns the loss."""
    loss = losses.Denoising(cmjax.CMStochasticIterativeScheduler())
    train_step = trainer.make_train_step(loss, apply_fn, optax.adam(1e-4))

    # A step donates its state, and the parameters are used again: a copy.
    state = train_step.init(jax.random.key(0), jax.tree.map(jnp.copy, params))

    def step():
        nonlocal state
        state, metrics = train_step(state, batch)
        return jax.block_until_ready((state, metrics))[1]

    return step


def forward(apply_fn, params, network, images):
    """The forward pass of both sides, on the same images."""
    import torch

    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    t = np.linspace(-1000, 1000, len(images), dtype=np.float32)
    times = torch.from_numpy(t)
    jitted = jax.jit(apply_fn)

    @torch.inference_mode()
    def theirs():
        return network(x, times)

    def ours():
        return jitted(params, images, t).block_until_ready()

    return ours, theirs


@click.command()
@click.option(
    "--network",
    "names",
    type=click.Choice(["UNet", "DiT"]),
    multiple=True,
    default=("UNet", "DiT"),
    show_default=True,
)
@click.option("--batch", default=64, show_default=True)
@keep_memory_option(default=True)
@repeats_option
@json_option
def main(names, batch, keep_memory, repeats, as_json):
    from torch_networks import torch_step

    if keep_memory:
        cmjax.system.keep_memory()
    report = Report(as_json)
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (batch, 28, 28, 1)).astype(np.float32)
    for name in names:
        apply_fn, params, network = unets() if name == "UNet" else dits()
        sizes = {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "peer_parameters": sum(p.numel() for p in network.parameters()),
        }
        row = {"network": name, "batch": batch, **sizes}
        counts = " and ".join(f"{size:,}" for size in sizes.values())
        report(f"\n{name}: {counts} parameters, batch {batch}", **row)

        calls = forward(apply_fn, params, network, images)
        difference = ""
        if name == "UNet":
            row["deviations"] = in_deviations(calls[0](), channels_last(calls[1]()))
            difference = f"; outputs differ by {row['deviations']:.1e} of their deviation"
        forward_row = row | compare(*calls, repeats=repeats)
        text = f"{name} forward: {comparison(forward_row, 'PyTorch')}{difference}"
        report(text, task="forward", **forward_row)

        steps = (
            jax_step(apply_fn, params, {"data": jnp.asarray(images)}),
            torch_step(network, images),
        )
        step_row = row | compare(*steps, repeats=repeats)
        report(f"{name} step: {comparison(step_row, 'PyTorch')}", task="step", **step_row)


if __name__ == "__main__":
    main()
