"""cmjax's own checkpoint folder: `config.json`, `scheduler_config.json`, `model.safetensors`."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike
from safetensors import SafetensorError
from safetensors.flax import load_file, save_file

from cmjax.checkpoints.model import Model
from cmjax.configs import did_you_mean, from_json
from cmjax.models import UNet2D, UNet2DConfig, from_nnx
from cmjax.schedulers import scheduler_from_config

CONFIG, SCHEDULER_CONFIG, WEIGHTS = "config.json", "scheduler_config.json", "model.safetensors"
ARCHITECTURES = {"UNet2D": (UNet2D, UNet2DConfig)}


def save(path: str | Path, model: Model) -> None:
    """Writes a model as a cmjax folder.

    Args:
        path: the folder, made if need be.
        model: with the config of one of cmjax's own networks.

    Raises:
        ValueError: if `model.config` is not such a config.
    """
    name = next((n for n, (_, config) in ARCHITECTURES.items() if type(model.config) is config), None)
    if name is None:
        raise ValueError(f"model.config must be the config of one of {list(ARCHITECTURES)}, got {model.config!r}")
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    config = {"_class_name": name, **dataclasses.asdict(model.config)}
    (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    (path / SCHEDULER_CONFIG).write_text(json.dumps(model.scheduler.to_config(), indent=2) + "\n")
    save_file(_flat(model.params), path / WEIGHTS)


def load(path: str | Path, *, dtype: DTypeLike | None = None) -> Model:
    """Reads a cmjax folder; the arguments and errors are those of `cmjax.load`."""
    path = Path(path)
    config = dict(_read_json(path / CONFIG))
    name = config.pop("_class_name", None)
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(f"{path / CONFIG}: _class_name is {name!r}{did_you_mean(name, list(ARCHITECTURES))}")
    network, config_class = ARCHITECTURES[name]
    try:
        config = from_json(config_class, config)
    except ValueError as error:
        raise ValueError(f"{path / CONFIG}: {error}") from None
    try:
        scheduler = scheduler_from_config(_read_json(path / SCHEDULER_CONFIG))
    except ValueError as error:
        raise ValueError(f"{path / SCHEDULER_CONFIG}: {error}") from None
    apply_fn, abstract = from_nnx(nnx.eval_shape(lambda: network(config, rngs=nnx.Rngs(0))))
    return Model(apply_fn, _fill(abstract, _read_weights(path / WEIGHTS), dtype), scheduler, config)


def _fill(abstract: Any, tensors: dict[str, jax.Array], dtype: DTypeLike | None) -> Any:
    """Puts the tensors where `abstract` has names for them; names and shapes must match both ways."""
    expected = _flat(abstract)
    problems = [f"missing {name} {leaf.shape}" for name, leaf in expected.items() if name not in tensors]
    problems += [f"unexpected {name} {leaf.shape}" for name, leaf in tensors.items() if name not in expected]
    problems += [
        f"misshapen {name}: {tensors[name].shape} in the file, {leaf.shape} in the network"
        for name, leaf in expected.items()
        if name in tensors and tensors[name].shape != leaf.shape
    ]
    if problems:
        raise ValueError(f"{len(problems)} tensors do not fit the network: {'; '.join(problems[:10])}")
    leaves = [tensors[name].astype(dtype or expected[name].dtype) for name in expected]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _flat(params: Any) -> dict[str, Any]:
    """Dotted names of all leaves, in the order of the tree."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): x for path, x in leaves}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not a cmjax folder: it has no {path.name}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def _read_weights(path: Path) -> dict[str, jax.Array]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path.parent} has no {path.name}") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None
