"""Training configurations by name: small ones, and the papers' as far as the papers print them.

The small ones, `SMALL`, are commented files of the package. Of the papers' none was run here: each
needs many accelerators. They differ from the papers in these ways:

* The networks of CD and CT are the 2023 paper's. On CIFAR-10 the networks of iCT and MeanFlow are
  replaced by a UNet of similar size.
* Flow maps take the length of a step (`second_time = "span"`), as MeanFlow's networks do; those of
  shortcut models take its logarithm.
* No network here has dropout, which the papers' networks have on some data sets.
* DMD's two networks share an optimizer, which clips their gradients together and counts the steps
  that are not the network's as gradients of 0; see docs/training.md.
* The metric is the l2 norm instead of LPIPS, the 2023 paper's, which is a network itself. In Python
  a loss takes LPIPS as `metric=function`.

Give `data.source`, and for a distillation `teacher.model`, with `--set`; for DMD `run.init`, the
model that it begins as, which is also its teacher.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from cmjax.configs import did_you_mean, shown
from cmjax.models import DIT_SIZES
from cmjax.models.registry import RELEASED, network_name

_FOLDER = Path(__file__).parent.parent / "assets" / "configs"

# The small presets, each a file there, with what `data.source` must be where the file cannot say.
_DIGITS = (
    "an .npz of 28x28 digits and their labels, such as Keras's mnist.npz "
    "(cmjax sample --num 5000 --out drawn.npz draws some to try it with)"
)
SMALL = {
    "digits": _DIGITS,
    "digits_distilled": _DIGITS,
    "digits_mean_flow": _DIGITS,
    "digits_pixel_mean_flow": _DIGITS,
    "pictures": "a folder of pictures, or an .npz of them",
    "pictures_diffusers": "a folder of pictures, or an .npz of them",
}

# Decay of the moving average of the 2023 paper on ImageNet and LSUN.
_EMA_LARGE = 0.999943

# In place of NCSN++ with other frequencies, and of DDPM++: attention at 16x16, as there, and a
# width that gives a similar size.
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

# DiT-B/2 on the latents of 256x256 pixels.
_LATENTS_NETWORK = {
    "class": "DiT",
    **DIT_SIZES["B"],
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "patch_size": 2,
}


def _network(name: str) -> dict[str, Any]:
    """Returns a network of the 2023 paper as the section [network]."""
    config = RELEASED[name]
    return {"class": network_name(config), **dataclasses.asdict(config)}


def _consistency(
    network, loss, *, learning_rate, batch_size, steps, ema_decay, dtype="float32"
):
    """Returns a configuration of a consistency model.

    Both papers use RAdam without schedule, warm-up or clipping.
    """
    return {
        "network": network,
        "loss": loss,
        "optimizer": {"name": "radam", "learning_rate": learning_rate, "clip_norm": 0.0},
        "run": {
            "batch_size": batch_size,
            "steps": steps,
            "ema_decays": [ema_decay],
            "save_every": 10_000,
            "dtype": dtype,
        },
    }


def _flow_map(network, loss, *, steps, run, optimizer):
    """Returns a configuration of a flow map, which takes both ends of a step."""
    return {
        "network": {**network, "second_time": "span", "time_scale": 0.01},
        "scheduler": {"class": "FlowMapEulerDiscreteScheduler"},
        "loss": loss,
        "optimizer": {"name": "adam", "clip_norm": 0.0, **optimizer},
        "run": {"steps": steps, "save_every": 10_000, **run},
    }


def _distillation(*, num_levels, target_decay):
    """Returns the section [loss] of consistency distillation."""
    return {
        "name": "cd",
        "metric": "l2",
        "num_levels": num_levels,
        "target_decay": target_decay,
    }


def _training(*, final_levels, initial_target_decay):
    """Returns the section [loss] of consistency training."""
    return {
        "name": "ct",
        "metric": "l2",
        "initial_levels": 2,
        "final_levels": final_levels,
        "initial_target_decay": initial_target_decay,
    }


PRESETS: dict[str, dict[str, Any]] = {
    # Song et al. 2023, appendix C, table 3. CD has a fixed grid, CT one that grows.
    "cifar10_cd": _consistency(
        _network("cifar10"),
        _distillation(num_levels=18, target_decay=0.0),
        learning_rate=4e-4,
        batch_size=512,
        steps=800_000,
        ema_decay=0.9999,
    ),
    "cifar10_ct": _consistency(
        _network("cifar10"),
        _training(final_levels=150, initial_target_decay=0.9),
        learning_rate=4e-4,
        batch_size=512,
        steps=800_000,
        ema_decay=0.9999,
    ),
    "imagenet64_cd": _consistency(
        _network("imagenet64"),
        _distillation(num_levels=40, target_decay=0.95),
        learning_rate=8e-6,
        batch_size=2048,
        steps=600_000,
        ema_decay=_EMA_LARGE,
        dtype="bfloat16",
    ),
    "imagenet64_ct": _consistency(
        _network("imagenet64"),
        _training(final_levels=200, initial_target_decay=0.95),
        learning_rate=8e-6,
        batch_size=2048,
        steps=800_000,
        ema_decay=_EMA_LARGE,
        dtype="bfloat16",
    ),
    "lsun256_cd": _consistency(
        _network("lsun256"),
        _distillation(num_levels=40, target_decay=0.95),
        learning_rate=1e-5,
        batch_size=2048,
        steps=600_000,
        ema_decay=_EMA_LARGE,
        dtype="bfloat16",
    ),
    "lsun256_ct": _consistency(
        _network("lsun256"),
        _training(final_levels=150, initial_target_decay=0.95),
        learning_rate=1e-5,
        batch_size=2048,
        steps=1_000_000,
        ema_decay=_EMA_LARGE,
        dtype="bfloat16",
    ),
    # Song and Dhariwal 2023, appendix A. The loss has the paper's settings as its defaults.
    "cifar10_ict": _consistency(
        _CIFAR10_NETWORK,
        {"name": "ict"},
        learning_rate=1e-4,
        batch_size=1024,
        steps=400_000,
        ema_decay=0.99993,
    ),
    "imagenet64_ict": _consistency(
        _network("imagenet64"),
        {"name": "ict"},
        learning_rate=1e-4,
        batch_size=4096,
        steps=800_000,
        ema_decay=0.99997,
        dtype="bfloat16",
    ),
    # Yin et al. 2024, arXiv 2405.14867: the run without an adversary, whose FID is 2.61, by the
    # script imagenet_lr2e-6_scratch.sh of tianweiy/DMD2. Its warm-up of 500 is counted on each of 7
    # GPUs. There is no moving average: one of decay 0 is the parameters themselves.
    "imagenet64_dmd": {
        "network": _network("imagenet64"),
        "loss": {"name": "dmd"},
        "optimizer": {
            "name": "adamw",
            "learning_rate": 2e-6,
            "warmup_steps": 71,
            "clip_norm": 10.0,
            "options": {"weight_decay": 0.01},
        },
        "run": {
            "batch_size": 280,
            "steps": 410_000,
            "ema_decays": [0.0],
            "save_every": 10_000,
            "dtype": "bfloat16",
        },
    },
    # Geng et al. 2025, arXiv 2505.13447, appendix A: CIFAR-10, unconditional.
    "cifar10_mean_flow": _flow_map(
        _CIFAR10_NETWORK,
        {
            "name": "mean_flow",
            "p_mean": -2.0,
            "p_std": 2.0,
            "instant_fraction": 0.25,
            "norm_p": 0.75,
        },
        steps=800_000,
        run={"batch_size": 1024, "ema_decays": [0.99995]},
        optimizer={"learning_rate": 6e-4, "warmup_steps": 10_000},
    ),
    # Frans et al. 2024, kvfrans/shortcut-models: CelebA-HQ, on latents of 32x32x4 in an .npz.
    "celebahq256_shortcut": _flow_map(
        _LATENTS_NETWORK,
        {"name": "shortcut"},
        steps=410_000,
        run={"batch_size": 64, "ema_decays": [0.999]},
        optimizer={
            "name": "adamw",
            "learning_rate": 1e-4,
            "options": {"weight_decay": 0.1},
        },
    ),
}


def preset_names() -> list[str]:
    """Returns the names of all presets, the small ones first."""
    return [*SMALL, *PRESETS]


def preset_text(name: str) -> str:
    """Returns a preset as TOML, to be read or to be changed by hand.

    Raises:
        ValueError: if there is no such preset.
    """
    if name in SMALL:
        return (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    if name not in PRESETS:
        hint = did_you_mean(name, preset_names())
        raise ValueError(f"there is no preset {shown(name)}{hint}")

    # None is left out.
    lines = [
        f"# The preset {name} of cmjax, after the paper. data.source is still to be given."
    ]
    for section, values in PRESETS[name].items():
        lines += ["", f"[{section}]"]
        for key, value in values.items():
            if value is not None:
                lines.append(f"{key} = {_toml(value)}")
    return "\n".join([*lines, ""])


def _toml(value: Any) -> str:
    """Returns a value as TOML, where strings, numbers and lists are those of JSON."""
    if not isinstance(value, dict):
        return json.dumps(value)
    entries = [f"{name} = {_toml(entry)}" for name, entry in value.items()]
    return f"{{ {', '.join(entries)} }}"
