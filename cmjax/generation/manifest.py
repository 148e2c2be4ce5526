"""What a folder of samples was made with; anything else is refused."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import cmjax
from cmjax.checkpoints.checkpoint import flatten_named
from cmjax.files import replacing
from cmjax.generation.shards import Shards
from cmjax.model import Model
from cmjax.schedulers import SchedulerState

MANIFEST = "manifest.json"
LOCK = ".lock"


def run_settings(
    model: Model,
    schedule: Mapping[str, Any],
    state: SchedulerState,
    labels: Sequence[int] | None,
    seed: int,
    dtype: str,
) -> dict[str, Any]:
    """Returns everything that samples depend on, as JSON would return it."""
    settings = {
        "model": model_digest(model),
        "scheduler": model.scheduler.to_config(),
        "schedule": schedule,
        "sigmas": np.asarray(state.sigmas).tolist(),
        "timesteps": np.asarray(state.timesteps).tolist(),
        "labels": None if labels is None else list(labels),
        "seed": seed,
        "dtype": dtype,
        "shape": list(model.sample_shape),
        "platform": jax.default_backend(),
        "matmul_precision": jax.config.jax_default_matmul_precision,  # pyright: ignore[reportAttributeAccessIssue]
        "versions": {
            "cmjax": cmjax.__version__,
            "jax": jax.__version__,
            "jaxlib": importlib.metadata.version("jaxlib"),
        },
    }
    return json.loads(json.dumps(settings, default=lambda array: array.tolist()))  # of NumPy or JAX


def model_digest(model: Model) -> str:
    """Returns a digest of the network, its parameters and, if it is adapted, the scheduler that it was trained for."""
    network = repr((model.config, model.trained_for) if model.trained_for else model.config)
    digest = hashlib.blake2b(network.encode(), digest_size=16)
    for name, leaf in flatten_named(model.params).items():
        values = np.ascontiguousarray(leaf)
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def check_folder(folder: Path) -> None:
    """Raises ValueError unless a folder is one of a run, or new or empty."""
    if (folder / MANIFEST).exists() or not folder.exists():
        return
    ours = (LOCK, ".cmjax-")  # of a run that ended before its manifest was there
    if others := sorted(file.name for file in folder.iterdir() if not file.name.startswith(ours)):
        raise ValueError(
            f"{folder} must be new or empty, or of the same run, but holds {others[0]}; choose another"
        )


def open_shards(
    folder: Path, settings: Mapping[str, Any], source: str, shard_size: int | None
) -> Shards:
    """Opens the folder of a run, or begins one.

    Args:
        folder: of the run; there already.
        settings: everything that samples depend on; `shard_size` is added.
        source: of the model, for `--verify`.
        shard_size: samples in a shard; None for that of the folder, 100 if it is new.

    Raises:
        ValueError: if the folder is of a run with other settings, or holds something else.
        OSError: if it cannot be written.
    """
    path = folder / MANIFEST
    if path.exists():
        before = read_manifest(folder)["settings"]
        settings = {**settings, "shard_size": shard_size or before.get("shard_size")}
        if different := [
            f"{name} was {_short(before.get(name))}, now {_short(settings.get(name))}"
            for name in sorted(before.keys() | settings.keys())
            if before.get(name) != settings.get(name)
        ]:
            raise ValueError(
                f"{folder} holds samples of other settings: {'; '.join(different)}; choose another --out"
            )
        settings = before  # digests are of its spelling: 70 and 70.0 are equal
    else:
        settings = {**settings, "shard_size": shard_size or 100}
        manifest = {"settings": settings, "source": source}
        with replacing(path) as file:
            file.write(json.dumps({**manifest, "digest": _digest(manifest)}, indent=1).encode())
    (folder / "shards").mkdir(exist_ok=True)
    return Shards(folder, settings)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns `settings` and `source` of a run.

    Raises:
        ValueError: if the folder holds none, or a damaged one.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest.pop("digest") == _digest(manifest):
            return manifest
    except FileNotFoundError:
        raise ValueError(
            f"{folder} has no {MANIFEST}; it is no folder of `cmjax generate`"
        ) from None
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    raise ValueError(f"{folder / MANIFEST} is damaged; restore it, or choose another --out")


def _digest(manifest):
    return hashlib.blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=8).hexdigest()


def _short(value):
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:56]} ..."
