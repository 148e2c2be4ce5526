"""What a checkpoint holds, in memory and on disk."""

import dataclasses
import json
import math
import os
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from cmjax.arrays import ApplyFn
from cmjax.checkpoints.tensors import StoredTensor
from cmjax.configs import Config
from cmjax.model import Model
from cmjax.models import DiTConfig, UNet2DConfig, from_nnx
from cmjax.models.registry import ARCHITECTURES, network_name
from cmjax.schedulers import scheduler_from_config
from cmjax.schedulers.base import Scheduler

LARGEST_JSON = 16 * 2**20  # bytes
DEEPEST_JSON = 10  # levels

# From a parameter's name and number of axes to its name in the file, and the axes it is stored with.
Layout = Callable[[str, int], tuple[str, tuple[int, ...]]]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model on disk: everything about it but the values of its tensors.

    Attributes:
        kind: what it is, in words.
        files: the files that hold its tensors.
        config: of its network.
        scheduler: the sampler it was trained for.
        tensors: by the names that the files use.
        layout: from the network's names to those of the files.
        note: what a user should know, or "".
    """

    kind: str
    files: tuple[Path, ...]
    config: UNet2DConfig | DiTConfig
    scheduler: Scheduler
    tensors: Mapping[str, StoredTensor]
    layout: Layout
    note: str = ""

    def load(self, *, dtype: DTypeLike | None = None, keep_dtypes: bool = False) -> Model:
        """Reads the tensors, one by one.

        Args:
            dtype: of the parameters; None is float32.
            keep_dtypes: leave every tensor in the dtype it is stored in; excludes `dtype`.

        Raises:
            ValueError: if the tensors are not those of the network, both ways, or are not finite.
        """
        apply_fn, abstract = self.check()
        leaves = []
        for name, leaf in flat(abstract).items():
            stored_name, axes = self.layout(name, leaf.ndim)
            stored = self.tensors[stored_name]
            wanted = np.dtype(stored.dtype if keep_dtypes else dtype or leaf.dtype)
            if jax.dtypes.canonicalize_dtype(wanted) != wanted:
                raise ValueError(
                    f"{self.files[0]}: tensor {stored_name} as {wanted} needs jax_enable_x64; or ask for another dtype"
                )
            values = _aligned(leaf.shape, wanted)
            with np.errstate(over="ignore", invalid="ignore"):
                values[...] = stored.read().transpose(np.argsort(axes))
            if not np.isfinite(values).all():
                why = (
                    f"too large for {wanted}"
                    if np.isfinite(stored.read()).all()
                    else "that are not finite"
                )
                raise ValueError(f"{self.files[0]}: tensor {stored_name} has values {why}")
            leaves.append(jax.device_put(values))
        return Model(
            apply_fn,
            jax.tree.unflatten(jax.tree.structure(abstract), leaves),
            self.scheduler,
            self.config,
        )

    def check(self) -> tuple[ApplyFn, Any]:
        """Compares the tensors with those of the network, without reading them.

        Returns:
            `apply_fn` and the parameters as shapes and dtypes.

        Raises:
            ValueError: listing tensors that are missing, unexpected, misshapen or not of floating-point numbers.
        """
        blocks = self.config.num_blocks
        if blocks > max(
            len(self.tensors), 256
        ):  # making the network of a damaged config could take minutes
            raise ValueError(
                f"{self.files[0]} has {len(self.tensors)} tensors, but the config has {blocks} blocks"
            )
        try:
            apply_fn, abstract = _abstract_network(self.config)
        except ValueError as error:
            raise ValueError(f"{self.files[0]}: the config makes no network: {error}") from None
        wanted = {}
        for name, leaf in flat(abstract).items():
            stored_name, axes = self.layout(name, leaf.ndim)
            wanted[stored_name] = tuple(leaf.shape[axis] for axis in axes)
        have = self.tensors
        problems = [f"missing {name} {shape}" for name, shape in wanted.items() if name not in have]
        problems += [
            f"unexpected {name} {tensor.shape}"
            for name, tensor in have.items()
            if name not in wanted
        ]
        problems += [
            f"misshapen {name}: {have[name].shape} in the file, {shape} in the network"
            for name, shape in wanted.items()
            if name in have and have[name].shape != shape
        ]
        problems += [
            f"{name} holds {tensor.dtype}, not floating-point numbers"
            for name, tensor in have.items()
            if not jnp.issubdtype(tensor.dtype, jnp.floating)
        ]
        if problems:
            more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
            raise ValueError(
                f"{self.files[0]}: {len(problems)} tensors do not fit the network: {'; '.join(problems[:10])}{more}"
            )
        return apply_fn, abstract


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an array where XLA wants arrays to start, which on a CPU it takes over without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _abstract_network(config: Any) -> tuple[ApplyFn, Any]:
    """Returns `apply_fn` and the parameters as shapes and dtypes."""
    network, _ = ARCHITECTURES[network_name(config)]

    def make():
        # Values play no part, so one key does for all: under a trace nnx.Rngs takes time quadratic in their number.
        key = jax.random.key(0)
        return network(config, rngs=cast(nnx.Rngs, types.SimpleNamespace(params=lambda: key)))

    return from_nnx(nnx.eval_shape(make))


def flat(params: Any) -> dict[str, Any]:
    """Returns the leaves by their dotted names, in the order of the tree."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): x
        for path, x in leaves
    }


def read_config(path: Path, build: Callable[[dict[str, Any]], Config]) -> Config:
    """Builds something from a JSON file; errors name the file."""
    content = read_json(path)
    try:
        return build(content)
    except ValueError as error:
        raise ValueError(f"{path}: {str(error)[:1000]}") from None


def read_scheduler(path: Path) -> Scheduler:
    """Reads a `scheduler_config.json`, diffusers' or ours."""
    return read_config(path, scheduler_from_config)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ValueError: if there is no such file, or it holds something else.
    """
    if not os.path.exists(path):
        raise ValueError(f"{path.parent} is not a whole model: it has no {path.name}")
    if not path.is_file() or path.stat().st_size > LARGEST_JSON:
        raise ValueError(
            f"{path} is not JSON of a model: it is not a file, or larger than {LARGEST_JSON} bytes"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: also a number of thousands of digits
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    values = [content]
    for _ in range(DEEPEST_JSON):
        inside = [
            list(v.values()) if isinstance(v, dict) else v
            for v in values
            if isinstance(v, (dict, list))
        ]
        values = [value for part in inside for value in part]
    if values:
        raise ValueError(f"{path} is nested more than {DEEPEST_JSON} deep, which no model needs")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object, indented."""
    path.write_text(json.dumps(content, indent=2) + "\n")
