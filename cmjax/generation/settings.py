"""Everything that the samples of a run depend on: what was asked for, the model, the machine."""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any, Self

import jax
import numpy as np

from cmjax.checkpoints.checkpoint import flatten_named
from cmjax.generation.request import Request
from cmjax.model import Model
from cmjax.registry import read_scheduler_config, scheduler_to_config
from cmjax.version import __version__

SHARD_SIZE = 100  # of a new folder


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Everything that the samples of a run depend on, but for their number.

    Attributes:
        request: levels, classes, seed and dtype.
        model: the digest of network and parameters, by `model_digest`.
        scheduler: its configuration.
        sigmas: the noise levels that it gives the request.
        timesteps: the times that the network is conditioned on.
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
        # As JSON would give it back, so that it compares equal to what a manifest holds.
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
        # The order is that of version 0.1.0; the names are part of every digest.
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
        # A later version may write down more options of the same scheduler.
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
    except ValueError:  # of a class of the user's own
        return one == other


def model_digest(model: Model) -> str:
    """Returns a digest of the network and its parameters.

    Of an adapted network, the scheduler that it was trained for is part of it.
    """
    network = repr((model.config, model.trained_for) if model.trained_for else model.config)
    digest = hashlib.blake2b(network.encode(), digest_size=16)
    for name, leaf in flatten_named(model.params).items():
        # Names, dtypes and shapes too: equal bytes can mean other parameters.
        values = np.ascontiguousarray(leaf)
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:56]} ..."
