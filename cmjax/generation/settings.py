"""Everything that the samples of a run depend on: the request, the model and the machine."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from cmjax.arrays import add_to_digest
from cmjax.autoencoder import Autoencoder
from cmjax.checkpoints.checkpoint import flatten_named
from cmjax.configs import is_finite, is_int, shown
from cmjax.generation.folder_settings import (
    SHARD_SIZE,
    VALID_IN_ALL,
    FolderSettings,
    machine,
)
from cmjax.generation.request import Request
from cmjax.model import Model
from cmjax.registry import read_scheduler_config, scheduler_to_config

GUIDANCE = ("guidance", "guidance_interval")  # keys of a request that not all have


@dataclasses.dataclass(frozen=True)
class RunSettings(FolderSettings):
    """Everything that the samples of a run depend on, except their number.

    Attributes:
        request: the levels, classes, seed and dtype.
        model: the digest of the network and its parameters; see `model_digest`.
        scheduler: the configuration of the scheduler, as JSON.
        sigmas: the noise levels of the run, those of `scheduler.set_timesteps`.
        timesteps: the times that the network is conditioned on at these levels.
        shape: (H, W, C) of a picture.
        platform: JAX's name of the backend, such as "cpu".
        matmul_precision: JAX's setting `jax_default_matmul_precision`, or None.
        versions: the versions of cmjax, jax and jaxlib, by name.
        shard_size: number of samples in a file.
    """

    KIND: ClassVar[str] = "samples"
    FUNCTION: ClassVar[str] = "generate_folder"

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

        # Through JSON and back, which turns tuples into lists, so that the configuration compares
        # equal to that of a manifest.
        config = scheduler_to_config(model.scheduler)
        scheduler = json.dumps(config, default=lambda array: array.tolist())
        return cls(
            request=request,
            model=model_digest(model),
            scheduler=json.loads(scheduler),
            # The levels themselves, too: another version could space them differently.
            sigmas=np.asarray(state.sigmas).tolist(),
            timesteps=np.asarray(state.timesteps).tolist(),
            shape=list(model.picture_shape),
            shard_size=SHARD_SIZE,
            **machine(),
        )

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of a sample's arrays: its pixels and, with classes, its label."""
        found: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        found["images"] = (tuple(self.shape), np.dtype(np.uint8))
        if self.request.labels is not None:
            found["labels"] = ((), np.dtype(np.int32))
        return found

    def arrays_of(self, shard: range, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays of a shard by name: images u8[n, H, W, C], and labels i32[n]."""
        labels = self.request.labels_of(shard)
        if labels is None:
            return {"images": rows}
        return {"images": rows, "labels": labels}

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as one flat JSON object.

        The digests of shards depend on its text: another name here makes old folders unreadable.
        """
        # The request's own keys and those of the run in one object, as folders have had it since
        # version 0.1.0.
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
            **{name: request[name] for name in GUIDANCE if name in request},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Builds the settings that `to_json` wrote.

        Raises:
            ValueError: if a version of cmjax with other settings wrote them, or something else.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"the settings must be a JSON object, got {shown(values)}")
        request = Request.from_json(values)

        # Neither missing nor unknown keys: an unknown setting may have changed the samples.
        names = [field.name for field in dataclasses.fields(cls) if field.name != "request"]
        expected = {*names, *request.to_json()}
        if odd := sorted(expected ^ values.keys()):
            raise ValueError(
                f"the settings of another version of cmjax differ in {', '.join(odd)}"
            )
        settings = cls(request=request, **{name: values[name] for name in names})
        settings._check()
        return settings

    def _check(self) -> None:
        """Raises ValueError for values that no run has: a file may say anything."""
        for name, is_valid in _VALID.items():
            value = getattr(self, name)
            if not is_valid(value):
                raise ValueError(f"the settings have {name}={shown(value)}")

        # Every step has a network call: a large number alone could exhaust the memory.
        steps = self.request.num_inference_steps
        if steps is not None and steps > len(self.timesteps):
            raise ValueError(
                f"the settings have {steps} steps, but {len(self.timesteps)} timesteps"
            )

    def differences(self, other: "RunSettings") -> list[str]:
        """Returns a phrase for each setting that differs in `other`."""
        before = self.to_json()
        now = other.to_json()
        was_scheduler = before.pop("scheduler")
        is_scheduler = now.pop("scheduler")
        was_schedule = before.pop("schedule")
        is_schedule = now.pop("schedule")

        # What only follows from a change is left out.
        following = set()

        # Another version may write more options of the same scheduler: that is no difference.
        if not _same_scheduler(self.scheduler, other.scheduler):
            was = _options(was_scheduler)
            is_now = _options(is_scheduler)

            # Another class has other options, of which there is no use in a list.
            if was["scheduler.class"] != is_now["scheduler.class"]:
                was = {"scheduler.class": was["scheduler.class"]}
                is_now = {"scheduler.class": is_now["scheduler.class"]}
            before |= was
            now |= is_now
            following = {"sigmas", "timesteps"}

            # The digest of a model is that of its network as it is adapted.
            for settings in (before, now):
                settings["model (or what adapts it)"] = settings.pop("model")

        # Levels that were given are part of the schedule, and all others follow from it.
        if was_schedule != is_schedule:
            following |= {"sigmas", "timesteps"}
        changes = [
            f"{name} was {_short(before.get(name))}, now {_short(now.get(name))}"
            for name in sorted((before.keys() | now.keys()) - following)
            if before.get(name) != now.get(name)
        ]
        changes += [
            f"{name} was {_short(was_schedule.get(name))}, now {_short(is_schedule.get(name))}"
            for name in sorted(was_schedule.keys() | is_schedule.keys())
            if was_schedule.get(name) != is_schedule.get(name)
        ]
        return changes


def _options(scheduler: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of a scheduler as settings, such as "scheduler.s_churn"."""
    # With defaults filled in, as a folder of another version may have fewer options.
    try:
        config = scheduler_to_config(read_scheduler_config(scheduler))
        scheduler = json.loads(json.dumps(config, default=np.ndarray.tolist))
    except ValueError:
        pass  # of the user's own, and not registered
    options = {"scheduler.class": scheduler.get("_class_name")}
    for name, value in scheduler.items():
        if not name.startswith("_"):
            options[f"scheduler.{name}"] = value
    return options


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(is_finite(item) for item in value)


# Which values the fields of `RunSettings` may have; the request checks its own.
_VALID = {
    "model": lambda value: isinstance(value, str),
    "scheduler": lambda value: isinstance(value, dict),
    "sigmas": _are_numbers,
    "timesteps": _are_numbers,
    "shape": lambda value: isinstance(value, list) and all(is_int(n, 1) for n in value),
    **VALID_IN_ALL,
}


def _same_scheduler(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Returns whether two configurations give equal schedulers, defaults filled in."""
    try:
        return read_scheduler_config(one) == read_scheduler_config(other)
    except ValueError:
        # A scheduler of the user's own that is not registered cannot be built.
        return one == other


def model_digest(model: Model) -> str:
    """Returns a digest of a model's networks and parameters, 32 hexadecimal digits.

    The autoencoder of a latent model is one of its networks. For a network that is adapted to
    another scheduler, the digest includes the scheduler that it was trained for.
    """
    # The network is known by its configuration, whose `repr` names all fields.
    network: Any = model.config
    if model.trained_for:
        network = (model.config, model.trained_for)
    digest = hashlib.blake2b(repr(network).encode(), digest_size=16)
    _add_params(digest, model.params)

    # Models without one have the digest that they had before there were autoencoders.
    if model.autoencoder is not None:
        digest.update(repr(model.autoencoder.config).encode())
        _add_params(digest, model.autoencoder.params)
    return digest.hexdigest()


def autoencoder_digest(autoencoder: Autoencoder) -> str:
    """Returns a digest of an autoencoder and its parameters, 32 hexadecimal digits."""
    digest = hashlib.blake2b(repr(autoencoder.config).encode(), digest_size=16)
    _add_params(digest, autoencoder.params)
    return digest.hexdigest()


def _add_params(digest: Any, params: Any) -> None:
    """Adds a pytree of parameters to a digest of `hashlib`."""
    for name, leaf in flatten_named(params).items():
        # Names, dtypes and shapes too: equal bytes can be different parameters.
        values = np.ascontiguousarray(leaf)
        add_to_digest(digest, f"{name} {values.dtype} {values.shape}", values)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:56]} ..."
