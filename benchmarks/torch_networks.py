"""The networks of `train_step.py` in PyTorch, and a training step of it, for either device."""

import torch

WIDTH, BLOCKS, PATCH = 128, 6, 4


class TorchDiT(torch.nn.Module):
    """A DiT of `TransformerEncoderLayer`s, whose normalisations have parameters of their own."""

    def __init__(self):
        super().__init__()
        self.enter = torch.nn.Linear(PATCH**2, WIDTH)
        self.position = torch.nn.Parameter(torch.randn(49, WIDTH))
        layer = torch.nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, 0.0, gelu, batch_first=True, norm_first=True
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
    """A `UNet2DModel` of the pixels of 2x2 patches, as cmjax's UNet with `patch_size=2`."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet.to(memory_format=torch.channels_last)

    def forward(self, x, t):
        folded = torch.nn.functional.pixel_unshuffle(x, 2).contiguous(
            memory_format=torch.channels_last
        )
        return torch.nn.functional.pixel_shuffle(self.unet(folded, 0.01 * t).sample, 2)


class WithLabels(torch.nn.Module):
    """A `UNet2DModel` with the classes that it takes."""

    def __init__(self, unet, labels):
        super().__init__()
        self.unet = unet
        self.labels = labels

    def forward(self, x, t):
        return self.unet(x, t, self.labels).sample


def gelu(x):
    """The approximation that cmjax's DiT has, too."""
    return torch.nn.functional.gelu(x, approximate="tanh")


def torch_step(network, images, dtype=torch.float32):
    """One EDM denoising step (Karras et al. 2022, table 1), as a function.

    In another dtype than float32 the network computes under autocast, and its parameters stay.
    """
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    device = next(network.parameters()).device
    data = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)

    def step():
        sigma = torch.exp(-1.2 + 1.2 * torch.randn(len(data), device=device))
        s = sigma[:, None, None, None]
        noisy = data + s * torch.randn_like(data)
        scale = (s**2 + 0.25).sqrt()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = network(noisy / scale, 250 * torch.log(sigma))
        denoised = 0.25 / scale**2 * noisy + 0.5 * s / scale * output.float()
        loss = (scale**2 / (0.5 * s) ** 2 * (denoised - data) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()  # waits for the device

    return step
