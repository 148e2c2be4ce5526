"""The `config.json` of diffusers' `UNet2DModel`, in its equivalent spellings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cmjax.checkpoints.json_files import drop_fixed
from cmjax.configs import from_json, shown
from cmjax.models import UNet2DConfig

NETWORK = "UNet2DModel"
VERSION = "0.36.0"  # of diffusers, whose files these are

# Defaults of options that a file leaves out (diffusers 0.36, UNet2DModel); sample_size has none.
DEFAULTS = {
    "down_block_types": ["DownBlock2D"] + ["AttnDownBlock2D"] * 3,
    "up_block_types": ["AttnUpBlock2D"] * 3 + ["UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "attention_head_dim": 8,
}
# Options that cmjax's network does not have, and the only values with which they change nothing.
FIXED = {
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (1,),
    "dropout": (0,),
    "act_fn": (
        "silu",
        "swish",
    ),  # in small letters, which `_present_spelling` makes of others
    "add_attention": (True,),
    "class_embed_type": (None,),
}
# Options that diffusers' moving averages (`EMAModel`) write beside those of the network.
OF_MOVING_AVERAGES = (
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
)
# Options that say nothing of the network; the first is read for other time embeddings only.
UNREAD = ("num_train_timesteps", *OF_MOVING_AVERAGES)
# What diffusers takes null for. A null for anything else is an error there.
NULLS = {
    "downsample_type": "conv",
    "upsample_type": "conv",
    "center_input_sample": False,
    "flip_sin_to_cos": False,
}
OLD_BLOCKS = "UNetRes"  # once began the names of blocks; diffusers still removes it
# Options that diffusers does not have, and the values with which they change nothing.
OWN_OPTIONS = {
    "time_scale": 1.0,
    "patch_size": 1,
    "null_class": False,
    "second_time": None,
    "guidance_embeds": False,
}


def config_from_diffusers(content: Mapping[str, Any]) -> UNet2DConfig:
    """Reads the content of a `UNet2DModel`'s `config.json`.

    Raises:
        ValueError: naming an option that is unknown, or has a value that `UNet2D` does not support.
    """
    if content.get("_class_name") != NETWORK:
        raise ValueError(
            f"_class_name is {shown(content.get('_class_name'))}; cmjax reads a {NETWORK}"
        )

    # Options that the file leaves out have diffusers' defaults, not those of `UNet2DConfig`.
    given = {name: value for name, value in content.items() if not name.startswith("_")}
    values = _present_spelling({**DEFAULTS, **given})

    # Options without a counterpart must have the value that `UNet2D` implements. Those that only
    # cmjax has are not to be read from a file of diffusers.
    drop_fixed(values, FIXED)
    for name in OWN_OPTIONS:
        if name in values:
            raise ValueError(f"{NETWORK} has no option {name!r}")

    # diffusers also takes [height, width].
    size = values.get("sample_size")
    if isinstance(size, list) and len(set(map(str, size))) == 1:
        values["sample_size"] = size[0]
    elif isinstance(size, list):
        raise ValueError(f"sample_size {size} is not supported, only squares")
    elif size is None:
        raise ValueError(
            "sample_size is missing; write the images' height and width into the file"
        )
    return from_json(UNet2DConfig, values)


def config_to_diffusers(config: UNet2DConfig) -> dict[str, Any]:
    """Returns the content of a `UNet2DModel`'s `config.json`.

    Raises:
        ValueError: naming the options that diffusers does not have.
    """
    # cmjax's own options are left out where they change nothing, and cannot be written elsewhere.
    values = dataclasses.asdict(config)
    own = []
    for name, neutral in OWN_OPTIONS.items():
        if values.pop(name) != neutral:
            value = getattr(config, name)
            own.append(
                f"{name} {value} is cmjax's own, and always {neutral:g} in diffusers"
            )
    if own:
        own.append("a network for diffusers has to be trained with its values")
        raise ValueError("; ".join(own))

    # The values that `UNet2D` implements are written down: diffusers' defaults may change.
    fixed = {name: supported[0] for name, supported in FIXED.items()}
    fixed.update(dict.fromkeys(("time_embedding_dim", "num_train_timesteps")))
    return {"_class_name": NETWORK, "_diffusers_version": VERSION, **values, **fixed}


def _present_spelling(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of the same network, spelt as diffusers writes them today."""
    # A later version's option that is null is not used, so that it need not be known.
    known = {field.name for field in dataclasses.fields(UNet2DConfig)} | FIXED.keys()
    known |= {"time_embedding_dim"}
    present = {
        name: value
        for name, value in values.items()
        if name not in UNREAD and (name in known or value is not None)
    }

    # diffusers takes null for some values, and capitals in the name of an activation.
    for name, meant in NULLS.items():
        if name in present and present[name] is None:
            present[name] = meant
    if isinstance(present.get("act_fn"), str):
        present["act_fn"] = present["act_fn"].lower()

    # Blocks had longer names in its first versions.
    for name in ("down_block_types", "up_block_types"):
        if isinstance(present.get(name), (list, tuple)):
            present[name] = [
                kind.removeprefix(OLD_BLOCKS) if isinstance(kind, str) else kind
                for kind in present[name]
            ]

    # The width of the embedding, where it is written down, is four times that of the first block.
    width = present.pop("time_embedding_dim", None)
    widths = present.get("block_out_channels")
    usual = None
    if isinstance(widths, (list, tuple)) and widths and isinstance(widths[0], int):
        usual = 4 * widths[0]
    if width not in (None, usual):
        raise ValueError(
            f"time_embedding_dim {shown(width)} is not supported, only {usual}, "
            "4 times the channels of the first block"
        )
    return present
