"""The papers' training configurations, as far as they print them. None was run here: they need many accelerators.

The networks are this package's: those of the 2023 paper on ImageNet and LSUN are `cmjax.models.PRESETS`; its NCSN++ on
CIFAR-10 is replaced by a UNet of like size, and no network here has dropout, which the papers' have on some data sets.
LPIPS, the 2023 paper's metric, is a network of its own: `losses.LossConfig(metric=function)` takes it in Python; here
stands the l2 norm. Give `data.source`, and for distillation `teacher.model`, by `--set`.
"""

import dataclasses
from typing import Any

from cmjax.models import PRESETS as NETWORKS


def _network(name: str) -> dict[str, Any]:
    return {"class": "UNet2D", **dataclasses.asdict(NETWORKS[name])}


_CIFAR10_NETWORK = {
    "class": "UNet2D",
    "sample_size": 32,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [128, 256, 256, 256],
    "layers_per_block": 4,
    "attention_head_dim": 64,
    "resnet_time_scale_shift": "scale_shift",
}
_EMA_LARGE = 0.999943  # of the 2023 paper on ImageNet and LSUN


def _run(network, loss, optimizer, rate, batch_size, steps, ema, **run):
    return {
        "network": network,
        "loss": loss,
        "optimizer": {"name": optimizer, "learning_rate": rate, "clip_norm": 0.0},
        "run": {
            "batch_size": batch_size,
            "steps": steps,
            "ema_decays": [ema],
            "save_every": 10_000,
            **run,
        },
    }


def _song2023(network, loss, rate, batch_size, steps, ema, **run):
    """Song et al. 2023, appendix C, table 3: RAdam, without decay or warm-up."""
    return _run(network, {"metric": "l2", **loss}, "radam", rate, batch_size, steps, ema, **run)


PRESETS: dict[str, dict[str, Any]] = {
    "cifar10_cd": _song2023(
        _CIFAR10_NETWORK, {"name": "cd", "s1": 18, "mu0": 0.0}, 4e-4, 512, 800_000, 0.9999
    ),
    "cifar10_ct": _song2023(
        _CIFAR10_NETWORK, {"name": "ct", "s0": 2, "s1": 150, "mu0": 0.9}, 4e-4, 512, 800_000, 0.9999
    ),
    "imagenet64_cd": _song2023(
        _network("imagenet64"),
        {"name": "cd", "s1": 40, "mu0": 0.95},
        8e-6,
        2048,
        600_000,
        _EMA_LARGE,
        dtype="bfloat16",
    ),
    "imagenet64_ct": _song2023(
        _network("imagenet64"),
        {"name": "ct", "s0": 2, "s1": 200, "mu0": 0.95},
        8e-6,
        2048,
        800_000,
        _EMA_LARGE,
        dtype="bfloat16",
    ),
    "lsun256_cd": _song2023(
        _network("lsun256"),
        {"name": "cd", "s1": 40, "mu0": 0.95},
        1e-5,
        2048,
        600_000,
        _EMA_LARGE,
        dtype="bfloat16",
    ),
    "lsun256_ct": _song2023(
        _network("lsun256"),
        {"name": "ct", "s0": 2, "s1": 150, "mu0": 0.95},
        1e-5,
        2048,
        1_000_000,
        _EMA_LARGE,
        dtype="bfloat16",
    ),
    # Song & Dhariwal 2023, appendix A: RAdam, 1e-4.
    "cifar10_ict": _run(_CIFAR10_NETWORK, {"name": "ict"}, "radam", 1e-4, 1024, 400_000, 0.99993),
    "imagenet64_ict": _run(
        _network("imagenet64"),
        {"name": "ict"},
        "radam",
        1e-4,
        4096,
        800_000,
        0.99997,
        dtype="bfloat16",
    ),
}
