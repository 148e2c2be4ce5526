"""The `config.json` of diffusers' `DiTTransformer2DModel`, under its two names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cmjax.checkpoints.json_files import drop_fixed
from cmjax.checkpoints.unet_config_files import OF_MOVING_AVERAGES
from cmjax.configs import from_json, shown
from cmjax.models.dit_transformer_config import DiTTransformer2DConfig

NETWORK = "DiTTransformer2DModel"
OLD_NETWORK = "Transformer2DModel"  # the class that it was a part of until diffusers 0.28
VERSION = "0.36.0"  # of diffusers, whose files these are

# Defaults of options that a file leaves out (diffusers 0.36), by class.
DEFAULTS = {
    NETWORK: {"norm_elementwise_affine": False},
    OLD_NETWORK: {
        "attention_head_dim": 88,
        "in_channels": None,
        "num_layers": 1,
        "attention_bias": False,
        "sample_size": None,
        "patch_size": None,
        "activation_fn": "geglu",
        "num_embeds_ada_norm": None,
        "norm_type": "layer_norm",
        "norm_elementwise_affine": True,
    },
}

# Options that cmjax's network does not have, and the only values with which they change nothing.
FIXED = {
    "dropout": (0,),
    "activation_fn": ("gelu-approximate",),
    "norm_type": ("ada_norm_zero",),
    "norm_elementwise_affine": (False,),
    "cross_attention_dim": (None,),
    "num_vector_embeds": (None,),
    "use_linear_projection": (False,),
    "only_cross_attention": (False,),
    "double_self_attention": (False,),
    "attention_type": ("default",),
    "caption_channels": (None,),
    "interpolation_scale": (None,),
    "use_additional_conditions": (None,),
}

# Options that have no effect on such a network in float32.
UNREAD = ("norm_num_groups", "upcast_attention", *OF_MOVING_AVERAGES)


def config_from_diffusers(content: Mapping[str, Any]) -> DiTTransformer2DConfig:
    """Reads the content of a `DiTTransformer2DModel`'s `config.json`.

    Raises:
        ValueError: naming an option that is unknown, or has a value that the network does not
            support.
    """
    name = content.get("_class_name")
    if name not in DEFAULTS:
        raise ValueError(f"_class_name is {shown(name)}; cmjax reads a {NETWORK}")

    # Options that the file leaves out have the defaults of its class.
    values = dict(DEFAULTS[name])
    for option, value in content.items():
        if not option.startswith("_") and option not in UNREAD:
            values[option] = value

    # Options without a counterpart must have the value that the network implements.
    drop_fixed(values, FIXED)
    if "keep_variance" in values:
        raise ValueError(f"{NETWORK} has no option 'keep_variance'")

    # Of a width diffusers makes null the other one.
    if values.get("out_channels") is None:
        default = DiTTransformer2DConfig.in_channels
        values["out_channels"] = values.get("in_channels", default)
    return from_json(DiTTransformer2DConfig, values)


def config_to_diffusers(config: DiTTransformer2DConfig) -> dict[str, Any]:
    """Returns the content of a `DiTTransformer2DModel`'s `config.json`."""
    # What the network returns is cmjax's own choice: diffusers' always returns all channels.
    values = dataclasses.asdict(config)
    del values["keep_variance"]

    # The values that the network implements are written down: diffusers' defaults may change.
    own = ("dropout", "activation_fn", "norm_type", "norm_elementwise_affine")
    fixed = {name: FIXED[name][0] for name in own}
    return {"_class_name": NETWORK, "_diffusers_version": VERSION, **values, **fixed}
