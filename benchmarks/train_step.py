"""Training steps per second: JAX against PyTorch, the same networks and loss, in one run.

    python benchmarks/train_step.py [--batch-size 64] [--rounds 5]

EDM denoising with Adam on 28x28 images: forward, backward and update. The networks are the UNet of
the bundled digits (against diffusers' `UNet2DModel` of the same config on the same 2x2 patches,
channels last) and a DiT of width 128 and 6 blocks on 4x4 patches (against the same made of
`torch.nn.TransformerEncoderLayer`s). Both sides take turns, a round of a few steps each; the ratio
is of medians. Above 1, JAX is faster. Needs the parity extra.

On a CPU, XLA is ten times slower than PyTorch at the weight gradient of convolutions over large
maps of few channels. The UNet works on 2x2 patches, which keeps its maps at 14x14, where it is
bearable; nothing else was done about it.
"""

import time

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from diffusers import UNet2DModel
from flax import nnx

import cmjax
from cmjax.models import DiT, DiTConfig, UNet2D, UNet2DConfig, from_nnx
from cmjax.training import losses, trainer

WIDTH, BLOCKS, PATCH = 128, 6, 4


class TorchDiT(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = torch.nn.Linear(PATCH**2, WIDTH)
        self.position = torch.nn.Parameter(torch.randn(49, WIDTH))
        layer = torch.nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = torch.nn.TransformerEncoder(layer, BLOCKS, enable_nested_tensor=False)
        self.modulation = torch.nn.ModuleList(
            [torch.nn.Linear(WIDTH, 6 * WIDTH) for _ in range(BLOCKS)]
        )
        self.time = torch.nn.Sequential(
            torch.nn.Linear(256, WIDTH), torch.nn.SiLU(), torch.nn.Linear(WIDTH, WIDTH)
        )
        self.norm, self.last = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, 2 * WIDTH)
        self.leave = torch.nn.Linear(WIDTH, PATCH**2)

    def forward(self, x, t):
        angles = 0.01 * t[:, None] * 10000.0 ** -(torch.arange(128) / 128)
        condition = self.time(torch.cat([angles.cos(), angles.sin()], -1))
        patches = (
            x.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).reshape(len(x), 49, PATCH**2)
        )
        h = self.enter(patches) + self.position
        for block, modulation in zip(self.blocks.layers, self.modulation, strict=True):
            shift, scale, gate, shift2, scale2, gate2 = modulation(condition)[
                :, None
            ].chunk(6, -1)
            h = h + gate * block._sa_block(block.norm1(h) * (1 + scale) + shift, None, None)
            h = h + gate2 * block._ff_block(block.norm2(h) * (1 + scale2) + shift2)
        shift, scale = self.last(condition)[:, None].chunk(2, -1)
        out = (
            self.leave(self.norm(h) * (1 + scale) + shift)
            .reshape(len(x), 7, 7, PATCH, PATCH)
            .permute(0, 1, 3, 2, 4)
        )
        return out.reshape(len(x), 1, 28, 28)


class TorchUNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.unet = UNet2DModel(
            sample_size=14,
            in_channels=4,
            out_channels=4,
            block_out_channels=(64, 96),
            norm_num_groups=16,
            attention_head_dim=32,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ).to(memory_format=torch.channels_last)

    def forward(self, x, t):
        folded = torch.nn.functional.pixel_unshuffle(x, 2).contiguous(
            memory_format=torch.channels_last
        )
        return torch.nn.functional.pixel_shuffle(self.unet(folded, 0.01 * t).sample, 2)


def torch_step(network, images):
    """One EDM denoising step (Karras et al. 2022, table 1)."""
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    data = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def step():
        sigma = torch.exp(-1.2 + 1.2 * torch.randn(len(data)))
        s = sigma[:, None, None, None]
        noisy = data + s * torch.randn_like(data)
        scale = (s**2 + 0.25).sqrt()
        denoised = 0.25 / scale**2 * noisy + 0.5 * s / scale * network(
            noisy / scale, 250 * torch.log(sigma)
        )
        loss = (scale**2 / (0.5 * s) ** 2 * (denoised - data) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def jax_step(module, images):
    apply_fn, params = from_nnx(module)
    loss = losses.Denoising(cmjax.CMStochasticIterativeScheduler())
    train_step = trainer.make_train_step(loss, apply_fn, optax.adam(1e-4))
    state = train_step.init(jax.random.key(0), params)
    batch = {"data": jnp.asarray(images)}

    def step():
        nonlocal state
        state, metrics = train_step(state, batch)
        return float(metrics["loss"])

    return step


@click.command()
@click.option("--batch-size", default=64, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(batch_size, rounds):
    """Time both sides in turn."""
    images = (
        np.random.default_rng(0).uniform(-1, 1, (batch_size, 28, 28, 1)).astype(np.float32)
    )
    shared = {"sample_size": 28, "in_channels": 1, "out_channels": 1, "time_scale": 0.01}
    unet = UNet2DConfig(
        block_out_channels=(64, 96), norm_num_groups=16, patch_size=2, **shared
    )
    dit = DiTConfig(
        patch_size=PATCH,
        num_layers=BLOCKS,
        num_attention_heads=4,
        attention_head_dim=32,
        **shared,
    )
    click.echo(
        f"{'':<8}{'JAX s/step':>12}{'PyTorch s/step':>16}{'ratio':>8}{'parameters':>24}"
    )
    for name, module, network in (
        ("UNet", UNet2D(unet, rngs=nnx.Rngs(0)), TorchUNet()),
        ("DiT", DiT(dit, rngs=nnx.Rngs(0)), TorchDiT()),
    ):
        counts = [
            sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))),
            sum(p.numel() for p in network.parameters()),
        ]
        steps = {"jax": jax_step(module, images), "torch": torch_step(network, images)}
        seconds = {side: [] for side in steps}
        for step in steps.values():  # compiles, and warms up
            step()
        for _ in range(rounds):
            for side, step in steps.items():
                start = time.perf_counter()
                for _ in range(3):
                    step()
                seconds[side].append((time.perf_counter() - start) / 3)
        ours, theirs = (float(np.median(values)) for values in seconds.values())
        sizes = " / ".join(f"{count:,}" for count in counts)
        click.echo(f"{name:<8}{ours:>12.3f}{theirs:>16.3f}{theirs / ours:>8.2f}{sizes:>24}")


if __name__ == "__main__":
    main()
