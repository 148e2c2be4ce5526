"""Writes `openai_names.json`: names of OpenAI's tensors, and what diffusers' script makes of them.

    python tests/golden/make_openai_names.py CONSISTENCY_MODELS CONVERT_SCRIPT

CONSISTENCY_MODELS is a clone of openai/consistency_models (its `cm/unet.py` builds the networks),
CONVERT_SCRIPT is `scripts/convert_consistency_to_diffusers.py` of huggingface/diffusers. For each
network below the file holds the names and shapes of OpenAI's tensors, and for each of diffusers'
names the tensor it comes from and its first row there. Needs the parity extra.
"""

import json
import sys
import tempfile
import types
from importlib import util
from pathlib import Path

import diffusers  # noqa: F401 (before the stand-ins below, which it would look for)
import torch

NETWORKS = {  # arguments of OpenAI's UNetModel; attention_resolutions are factors
    "imagenet64": dict(
        image_size=64,
        model_channels=192,
        num_res_blocks=3,
        attention_resolutions=(2, 4, 8),
        channel_mult=(1, 2, 3, 4),
        num_classes=1000,
        use_scale_shift_norm=True,
    ),
    "lsun256": dict(
        image_size=256,
        model_channels=256,
        num_res_blocks=2,
        attention_resolutions=(8, 16, 32),
        channel_mult=(1, 1, 2, 2, 4, 4),
    ),
    "small": dict(
        image_size=64,
        model_channels=64,
        num_res_blocks=1,
        attention_resolutions=(2,),
        channel_mult=(1, 2),
        num_classes=10,
        use_scale_shift_norm=True,
    ),
    "small256": dict(
        image_size=256,
        model_channels=64,
        num_res_blocks=2,
        attention_resolutions=(8,),
        channel_mult=(1, 1, 1, 2),
    ),
}


def openai_tensors(clone, options):
    """The state dict of OpenAI's network, on no device: names and shapes."""
    sys.modules["flash_attn"] = sys.modules["flash_attn.flash_attention"] = (
        types.SimpleNamespace(FlashAttention=lambda **_: torch.nn.Identity())
    )
    sys.modules.setdefault("einops", types.SimpleNamespace(rearrange=None))
    for name in ("blobfile", "mpi4py"):
        sys.modules.setdefault(name, types.SimpleNamespace(MPI=None))
    sys.path.insert(0, str(clone))
    from cm.unet import UNetModel

    with torch.device("meta"):
        network = UNetModel(
            in_channels=3,
            out_channels=3,
            num_head_channels=64,
            resblock_updown=True,
            **options,
        )
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def by_diffusers(script, shapes, options):
    """diffusers' name -> (OpenAI's name, first row), by converting tensors of addresses."""
    spec = util.spec_from_file_location("convert", script)
    convert = util.module_from_spec(spec)
    spec.loader.exec_module(convert)
    names = list(shapes)
    addressed = {
        name: (torch.arange(shape[0], dtype=torch.float64) + 1e5 * i)
        .reshape(-1, *[1] * (len(shape) - 1))
        .expand(shape)
        for i, (name, shape) in enumerate(shapes.items())
    }
    width, mult = options["model_channels"], options["channel_mult"]
    attention = [2**level in options["attention_resolutions"] for level in range(len(mult))]
    config = {
        "num_class_embeds": options.get("num_classes"),
        "down_block_types": [
            "AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attention
        ],
        "up_block_types": [
            "AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in attention[::-1]
        ],
        "layers_per_block": options["num_res_blocks"],
        "attention_head_dim": 64,
        "block_out_channels": [width * m for m in mult],
    }
    with tempfile.TemporaryDirectory() as folder:
        torch.save(
            {
                name: tensor[(slice(None), *[slice(1)] * (tensor.ndim - 1))].clone()
                for name, tensor in addressed.items()
            },
            f"{folder}/x.pt",
        )
        converted = convert.con_pt_to_diffuser(f"{folder}/x.pt", config)
    firsts = {name: int(tensor.flatten()[0]) for name, tensor in converted.items()}
    return {
        name: (names[first // 100000], first % 100000) for name, first in firsts.items()
    }


def main(clone, script):
    networks = {}
    for name, options in NETWORKS.items():
        shapes = openai_tensors(Path(clone), options)
        networks[name] = {
            "openai": shapes,
            "diffusers": by_diffusers(script, shapes, options),
        }
    path = Path(__file__).with_name("openai_names.json")
    path.write_text(json.dumps(networks, separators=(",", ":")) + "\n")
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
