"""The `config.json` of diffusers' autoencoders."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cmjax.checkpoints.json_files import drop_fixed
from cmjax.checkpoints.unet_config_files import VERSION
from cmjax.configs import from_json, shown
from cmjax.model import Model
from cmjax.models.registry import AUTOENCODERS, autoencoder_name

# Defaults of options that a file leaves out, where they are not those of our configs
# (diffusers 0.42).
DEFAULTS = {
    "AutoencoderKL": {
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
        "block_out_channels": [64],
        "layers_per_block": 1,
        "sample_size": 32,
    },
    "AutoencoderTiny": {},
}

# Options that cmjax's networks do not have, and the only values with which they change nothing.
FIXED = {
    "AutoencoderKL": {"act_fn": ("silu", "swish")},
    "AutoencoderTiny": {
        "act_fn": ("relu",),
        "upsample_fn": ("nearest",),
        "upsampling_scaling_factor": (2,),
    },
}

PART = "vae"  # the folder of the autoencoder in a model's folder

# Of diffusers' Flax classes the names began so.
FLAX_PREFIX = "Flax"


def config_from_diffusers(content: Mapping[str, Any]) -> Any:
    """Reads the content of an autoencoder's `config.json`.

    Raises:
        ValueError: if it is of another class, or naming an option that is unknown or has a value
            that cmjax's network does not support.
    """
    name = content.get("_class_name")
    if isinstance(name, str):
        name = name.removeprefix(FLAX_PREFIX)
    if not isinstance(name, str) or name not in AUTOENCODERS:
        raise ValueError(
            f"_class_name is {shown(content.get('_class_name'))}; cmjax reads the autoencoders "
            f"{' and '.join(AUTOENCODERS)}"
        )

    # Options that the file leaves out have diffusers' defaults. One that is null and not known is
    # of a later version, and not used.
    _, config = AUTOENCODERS[name]
    fields = {field.name: field for field in dataclasses.fields(config)}
    values = dict(DEFAULTS[name])
    for option, value in content.items():
        if not option.startswith("_") and (option in fields or value is not None):
            values[option] = value

    # diffusers takes capitals in the name of an activation, and null for no shift.
    if isinstance(values.get("act_fn"), str):
        values["act_fn"] = values["act_fn"].lower()
    if values.get("shift_factor", 0) is None and name == "AutoencoderTiny":
        del values["shift_factor"]
    drop_fixed(values, FIXED[name])

    # diffusers also takes [height, width], and writes the decoder's channels twice.
    size = values.get("sample_size")
    if isinstance(size, list) and size:
        values["sample_size"] = size[0]
    if name == "AutoencoderTiny":
        values.pop("block_out_channels", None)
    return from_json(config, values)


def config_to_diffusers(config: Any) -> dict[str, Any]:
    """Returns the content of an autoencoder's `config.json`."""
    # The values that the network implements are written down: diffusers' defaults may change.
    name = autoencoder_name(config)
    fixed = {option: supported[0] for option, supported in FIXED[name].items()}
    values = dataclasses.asdict(config)
    if name == "AutoencoderTiny":
        values["block_out_channels"] = config.decoder_block_out_channels
    return {"_class_name": name, "_diffusers_version": VERSION, **values, **fixed}


def autoencoder_in_index(model: Model) -> dict[str, list[str]]:
    """Returns the entry of a model's autoencoder in the `model_index.json` of a pipeline."""
    if model.autoencoder is None:
        return {}
    return {PART: ["diffusers", autoencoder_name(model.autoencoder.config)]}
