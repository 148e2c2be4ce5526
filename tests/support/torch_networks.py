"""Small networks of diffusers with every tensor drawn; needs PyTorch and diffusers."""

import torch
from diffusers import UNet2DModel

SMALL = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def draw_network(**options):
    """A `UNet2DModel` in which every tensor is random, norm scales and biases too."""
    torch.manual_seed(0)
    network = UNet2DModel(**options).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 4
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + torch.randn_like(parameter) / fan_in**0.5)
    return network
