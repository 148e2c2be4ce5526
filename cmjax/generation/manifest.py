"""What the samples of a folder depend on, written into it; a run with anything else is refused."""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from cmjax.checkpoints.checkpoint import flatten_named
from cmjax.files import replacing
from cmjax.generation.request import Request
from cmjax.generation.shards import Shards
from cmjax.model import Model
from cmjax.registry import read_scheduler_config, scheduler_to_config
from cmjax.version import __version__

MANIFEST = "manifest.json"
LOCK = ".lock"
SHARD_SIZE = 100  # of a new folder


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Everything that the samples of a run depend on, but for their number.

    Attributes:
        request: levels, classes, seed and dtype.
        model: the digest of network and parameters, by `model_digest`.
        scheduler: its configuration.
        sigmas: the noise levels that it gives the request.
        timesteps: what the network is told at them.
        shape: (H, W, C) of a sample.
        platform: JAX's name of the backend, such as "cpu".
        matmul_precision: JAX's setting, or None.
        versions: of cmjax, jax and jaxlib.
        shard_size: samples in a file.
    """

    request: Request
    model: str
    scheduler: dict[str, Any]
    sigmas: list[float]
    timesteps: list[float]
    shape: list[int]
    platform: str
    matmul_precision: str | None
    versions: dict[str, str]
    shard_size: int

    @classmethod
    def of(cls, model: Model, request: Request) -> Self:
        """Returns the settings of a run on this machine, in a new folder."""
        state = request.set_timesteps(model.scheduler)
        config = scheduler_to_config(model.scheduler)
        scheduler = json.dumps(config, default=lambda array: array.tolist())
        return cls(
            request=request,
            model=model_digest(model),
            scheduler=json.loads(scheduler),
            sigmas=np.asarray(state.sigmas).tolist(),
            timesteps=np.asarray(state.timesteps).tolist(),
            shape=list(model.sample_shape),
            platform=jax.default_backend(),
            matmul_precision=getattr(jax.config, "jax_default_matmul_precision", None),
            versions={
                "cmjax": __version__,
                "jax": jax.__version__,
                "jaxlib": importlib.metadata.version("jaxlib"),
            },
            shard_size=SHARD_SIZE,
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as one JSON object; the digests of shards are of its text."""
        request = self.request.to_json()
        return {
            "model": self.model,
            "scheduler": self.scheduler,
            "schedule": request["schedule"],
            "sigmas": self.sigmas,
            "timesteps": self.timesteps,
            "labels": request["labels"],
            "seed": request["seed"],
            "dtype": request["dtype"],
            "shape": self.shape,
            "platform": self.platform,
            "matmul_precision": self.matmul_precision,
            "versions": self.versions,
            "shard_size": self.shard_size,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Reads what `to_json` returns.

        Raises:
            ValueError: if it is of a version of cmjax with other settings.
        """
        request = Request.from_json(values)
        names = [field.name for field in dataclasses.fields(cls) if field.name != "request"]
        expected = {*names, *request.to_json()}
        if odd := sorted(expected ^ values.keys()):
            raise ValueError(f"the settings of another version of cmjax differ in {', '.join(odd)}")
        return cls(request=request, **{name: values[name] for name in names})

    def differences(self, other: "RunSettings") -> list[str]:
        """Returns what is other in `other`, a phrase for each setting."""
        before = self.to_json()
        now = other.to_json()
        if _same_scheduler(self.scheduler, other.scheduler):
            now["scheduler"] = before["scheduler"]
        return [
            f"{name} was {_short(before[name])}, now {_short(now[name])}"
            for name in sorted(before)
            if before[name] != now[name]
        ]


def _same_scheduler(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two configurations mean the same, however many options they write down."""
    try:
        return read_scheduler_config(one) == read_scheduler_config(other)
    except ValueError:  # of a class that is not imported
        return one == other


def model_digest(model: Model) -> str:
    """Returns a digest of the network and its parameters.

    Of an adapted network, the scheduler that it was trained for is part of it.
    """
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
    names = sorted(file.name for file in folder.iterdir())
    if others := [name for name in names if not name.startswith(ours)]:
        raise ValueError(
            f"{folder} must be new or empty, or of the same run, but holds {others[0]}; "
            "choose another folder"
        )


def open_shards(folder: Path, settings: RunSettings, source: str, shard_size: int | None) -> Shards:
    """Opens the folder of a run, or begins one.

    Args:
        folder: of the run; there already.
        settings: everything that samples depend on; `shard_size` replaces its own.
        source: of the model, for `cmjax generate --verify`.
        shard_size: samples in a shard; None for that of the folder, or of `settings` if it is new.

    Raises:
        ValueError: if the folder is of a run with other settings, or holds something else.
        OSError: if it cannot be written.
    """
    path = folder / MANIFEST
    if path.exists():
        before = read_manifest(folder).settings
        now = dataclasses.replace(settings, shard_size=shard_size or before.shard_size)
        if different := before.differences(now):
            raise ValueError(
                f"{folder} holds samples of other settings: {'; '.join(different)}; "
                "choose another folder"
            )
        settings = before  # 70 and 70.0 are equal, but the digests of their texts are not
    else:
        settings = dataclasses.replace(settings, shard_size=shard_size or settings.shard_size)
        content = {"settings": settings.to_json(), "source": source}
        with replacing(path) as file:
            file.write(json.dumps({**content, "digest": _digest(content)}, indent=1).encode())
    (folder / "shards").mkdir(exist_ok=True)
    return Shards(folder, settings)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder says of itself.

    Attributes:
        settings: everything that its samples depend on.
        source: what its model was loaded from, as far as the run was told; or "".
    """

    settings: RunSettings
    source: str


def read_manifest(folder: Path) -> Manifest:
    """Returns the manifest of a run.

    Raises:
        ValueError: if the folder holds none, a damaged one, or one of another version.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text())
        if content.pop("digest") != _digest(content):
            raise ValueError
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {MANIFEST}; generate_folder has not made it") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"{path} is damaged; restore it, or choose another folder") from None
    try:
        return Manifest(RunSettings.from_json(content["settings"]), content["source"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}; choose another folder") from None


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:56]} ..."
