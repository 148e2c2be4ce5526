"""Shortcut models (kvfrans/shortcut-models): training states in JAX, without a config.

Their network is a `DiT` by other conventions, all of which are linear in some layer. So that layer
is rewritten here, and the network is the same for any caller:

* time s runs from noise to data, s = 1 - t;
* the velocity is that towards the data, not towards the noise;
* queries and keys are multiplied without the usual square root, (q / C) k for heads of C channels;
* queries, keys and values are three layers, where ours is one;
* a model without classes always takes the same row of a table.

Names and shapes tell the rest, but for the size of the latents and the number of heads.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.checkpoints.checkpoint import Checkpoint, Latents, stored_alike
from cmjax.checkpoints.released_sizes import heads_of, num_blocks, preset_of
from cmjax.checkpoints.tensors import StoredTensor
from cmjax.models import SHORTCUTS, DiTConfig
from cmjax.models.dit import TIME_FEATURES
from cmjax.models.registry import preset_name
from cmjax.schedulers import FlowMapEulerDiscreteScheduler

FIRST = "PatchEmbed_0.Conv_0.kernel"
TABLE = "LabelEmbedder_0.Embed_0.embedding"
TIME = "TimestepEmbedder_0.Dense_0.kernel"
TIME_BIAS = "TimestepEmbedder_0.Dense_1.bias"
OUTPUT = "FinalLayer_0.Dense_1"
LOGVARS = "Embed_0.embedding"  # of a loss that the authors do not use
LATENTS = Latents("stabilityai/sd-vae-ft-mse")  # by the scale in its config

# Names of our modules -> theirs, where they are stored alike.
MODULES = {
    "time_embedding.linear_1": "TimestepEmbedder_0.Dense_0",
    "time_embedding.linear_2": "TimestepEmbedder_0.Dense_1",
    "further.second_time.linear_1": "TimestepEmbedder_1.Dense_0",
    "further.second_time.linear_2": "TimestepEmbedder_1.Dense_1",
    "modulation": "FinalLayer_0.Dense_0",
    "proj_out": OUTPUT,
}
IN_BLOCKS = {
    "modulation": "Dense_0",
    "to_out": "Dense_4",
    "linear_1": "MlpBlock_0.Dense_0",
    "linear_2": "MlpBlock_0.Dense_1",
}
QUERY, KEY, VALUE = "Dense_2", "Dense_1", "Dense_3"


def from_tensors(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    config: DiTConfig | str | None = None,
    note: str = "",
) -> Checkpoint:
    """Opens a shortcut model.

    Args:
        path: its file.
        tensors: its parameters by the names of Flax.
        config: config of the network, or the name of a preset; None tells it from the tensors.
        note: what is said of it already.

    Raises:
        ValueError: if the tensors are not those of such a network, or not of the one given.
    """
    config = preset_of(config, SHORTCUTS, "shortcut models")
    try:
        config = config or infer_config(tensors)
        used = rewritten(tensors, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    notes = [note]
    if LOGVARS in tensors:
        notes.append(f"ignored: {LOGVARS}, which no sample depends on")
    if not preset_name(config):
        notes.append("no released model has this size")
    return Checkpoint(
        kind="shortcut model",
        files=(path,),
        config=config,
        scheduler=FlowMapEulerDiscreteScheduler(),
        tensors=used,
        layout=stored_alike,
        note="; ".join(filter(None, notes)),
        latents=LATENTS,
    )


def infer_config(tensors: Mapping[str, StoredTensor]) -> DiTConfig:
    """Infers the network from the names and shapes of its parameters.

    Raises:
        ValueError: if they are not those of a shortcut model, or of one whose number of heads is
            not known.
    """
    depth = num_blocks(tensors, "DiTBlock_")
    try:
        patch, _, channels, width = tensors[FIRST].shape
        _, hidden = tensors["DiTBlock_0.MlpBlock_0.Dense_0.kernel"].shape
        labels, _ = tensors[TABLE].shape
        ratio = hidden / width
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"the tensors are not those of a shortcut model ({error})"
        ) from None

    heads, head_dim = heads_of(width)

    # A table of one class and none is that of a model without classes, which was trained with none.
    has_classes = labels > 2
    return DiTConfig(
        sample_size=32,
        in_channels=channels,
        out_channels=channels,
        patch_size=patch,
        num_layers=depth,
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        mlp_ratio=ratio,
        num_class_embeds=labels - 1 if has_classes else None,
        null_class=has_classes,
        time_scale=0.001,
        second_time="log_steps",
    )


def rewritten(
    tensors: Mapping[str, StoredTensor], config: DiTConfig
) -> dict[str, StoredTensor]:
    """Returns the parameters of our network, unread; unknown ones keep their names.

    Raises:
        ValueError: if one is missing, or has a shape that cannot be rewritten.
    """
    left = {name: tensor for name, tensor in tensors.items() if name != LOGVARS}

    def take(name, ndim):
        tensor = left.pop(name, None)
        if tensor is None:
            raise ValueError(f"missing {name}")
        if len(tensor.shape) != ndim:
            raise ValueError(f"{name} has the shape {tensor.shape}, not {ndim} axes")
        return tensor

    # Dense layers that are stored alike.
    modules = dict(MODULES)
    for i in range(config.num_layers):
        for ours, theirs in IN_BLOCKS.items():
            modules[f"blocks.{i}.{ours}"] = f"DiTBlock_{i}.{theirs}"
    used: dict[str, StoredTensor] = {}
    for ours, theirs in modules.items():
        used[f"{ours}.kernel"] = take(f"{theirs}.kernel", 2)
        used[f"{ours}.bias"] = take(f"{theirs}.bias", 1)

    # A convolution [p, p, in, out] is a dense layer over the pixels of a patch.
    kernel = take(FIRST, 4)
    folded = (math.prod(kernel.shape[:3]), kernel.shape[3])
    used["patch_embed.kernel"] = kernel.reshaped(folded)
    used["patch_embed.bias"] = take(FIRST.replace("kernel", "bias"), 1)

    # Queries, keys and values are one layer.
    for i in range(config.num_layers):
        for leaf, ndim in (("kernel", 2), ("bias", 1)):
            parts = [
                take(f"DiTBlock_{i}.{part}.{leaf}", ndim) for part in (QUERY, KEY, VALUE)
            ]
            used[f"blocks.{i}.to_qkv.{leaf}"] = _joined(parts, config.attention_head_dim)

    # From times s to t = 1 - s, and from velocities towards data to those towards noise.
    name = "time_embedding.linear_1.kernel"
    used[name] = _of_reversed_time(used[name])
    for leaf in ("kernel", "bias"):
        name = f"proj_out.{leaf}"
        used[name] = _derived(used[name].shape, np.negative, used[name])

    # Without classes the last row of the table, for none, is added to every embedding.
    table = take(TABLE, 2)
    if config.num_class_embeds is not None:
        used["class_embedding.embedding"] = table
    else:
        name = "time_embedding.linear_2.bias"
        used[name] = _with_last_row(used[name], table)
    return used | left


def _with_last_row(bias: StoredTensor, table: StoredTensor) -> StoredTensor:
    """Returns a bias of the embedding of time, plus the last row of the table of classes."""
    if bias.shape != table.shape[1:] or not table.shape[0]:
        raise ValueError(f"{TABLE} has the shape {table.shape}, {TIME_BIAS} {bias.shape}")

    def add(bias, rows):
        return bias + rows[-1]

    return _derived(bias.shape, add, bias, table)


def _joined(parts: list[StoredTensor], head_dim: int) -> StoredTensor:
    """Returns queries, keys and values as one layer, whose queries are divided by sqrt(C)."""
    # (q / C) k is (q / sqrt(C)) k / sqrt(C), and the network divides by sqrt(C) itself.
    shape = parts[0].shape
    if any(part.shape != shape for part in parts):
        raise ValueError(f"queries, keys and values of shapes {[p.shape for p in parts]}")

    def join(q, k, v):
        return np.concatenate([q / math.sqrt(head_dim), k, v], axis=-1)

    return _derived((*shape[:-1], 3 * shape[-1]), join, *parts)


def _of_reversed_time(kernel: StoredTensor) -> StoredTensor:
    """Returns the first layer over cosines and sines of s = 1 - t as one over those of t."""
    if kernel.shape[0] != TIME_FEATURES:
        raise ValueError(f"{TIME} has the shape {kernel.shape}, not {TIME_FEATURES} rows")

    # The rows a of the cosines and b of the sines, at the frequencies f. With
    #     cos(f - f t) = cos f cos(f t) + sin f sin(f t),
    #     sin(f - f t) = sin f cos(f t) - cos f sin(f t),
    # a cos(f s) + b sin(f s) is (a cos f + b sin f) cos(f t) + (a sin f - b cos f) sin(f t).
    def reverse(rows):
        half = TIME_FEATURES // 2
        f = 10000.0 ** -(np.arange(half) / half)[:, None]
        a = rows[:half]
        b = rows[half:]
        of_cos = np.cos(f) * a + np.sin(f) * b
        of_sin = np.sin(f) * a - np.cos(f) * b
        return np.concatenate([of_cos, of_sin])

    return _derived(kernel.shape, reverse, kernel)


def _derived(
    shape: tuple[int, ...], function: Callable[..., Any], *tensors: StoredTensor
) -> StoredTensor:
    """Returns what a function makes of tensors, unread; it computes in float64."""
    dtype = tensors[0].dtype

    def read():
        values = [tensor.read().astype(np.float64) for tensor in tensors]
        return function(*values).astype(dtype)

    return StoredTensor(shape, dtype, read)
