"""The configuration of a training run, read from TOML or a preset and changed key by key."""

import contextlib
import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import optax

from cmjax.configs import did_you_mean, from_json
from cmjax.models.registry import network_class
from cmjax.registry import read_scheduler_config
from cmjax.schedulers.base import Scheduler
from cmjax.training.losses.base import Loss
from cmjax.training.losses.registry import make as make_loss
from cmjax.training.presets import PRESETS
from cmjax.training.sections import (
    DataSection,
    OptimizerSection,
    RunSection,
    TeacherSection,
    read_section,
)

# Fields of losses that are given elsewhere in a configuration.
_ELSEWHERE = {"total_steps": "run.steps", "scheduler": "[scheduler]", "teacher_fn": "[teacher]"}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A whole run. `network`, `scheduler` and `loss` are mappings, checked by what they configure.

    Attributes:
        network: `class` (UNet2D or DiT) and the fields of its config; empty for the network of the
            model that the run starts from.
        loss: `name`, one of `losses.LOSSES` or "package.module:Class", and fields of that class
            that differ from its defaults.
        scheduler: `class`, CMStochasticIterativeScheduler if left out, and its fields: the noise
            levels, and what the network means. Empty for that of the model that the run starts
            from.
        data: see `DataSection`.
        teacher: see `TeacherSection`.
        optimizer: see `OptimizerSection`.
        run: see `RunSection`.

    Raises:
        ValueError: naming the key that is wrong.
    """

    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    loss: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "denoising"})
    scheduler: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: DataSection = DataSection()
    teacher: TeacherSection = TeacherSection()
    optimizer: OptimizerSection = OptimizerSection()
    run: RunSection = RunSection()

    def __post_init__(self):
        warmup_steps = self.optimizer.warmup_steps
        if not 0 <= warmup_steps < self.run.steps:
            raise ValueError(
                "optimizer.warmup_steps must be from 0 to below "
                f"run.steps={self.run.steps}, got {warmup_steps}"
            )
        for name, place in _ELSEWHERE.items():
            if name in self.loss:
                raise ValueError(f"loss.{name} is given elsewhere; use {place}")
        # What cannot be made is found here, before anything is loaded.
        self.make_loss(self.make_scheduler())
        self.make_optimizer()
        self.network_config()

    @property
    def loss_name(self) -> str:
        """Name of the loss, "denoising" by default."""
        return self.loss.get("name", "denoising")

    def make_loss(self, scheduler: Scheduler, teacher_fn: Any = None) -> Loss:
        """Returns the loss.

        Args:
            scheduler: that the network is trained for.
            teacher_fn: the teacher's network; None for the student's, or no teacher.
        """
        options = {name: value for name, value in self.loss.items() if name != "name"}
        with _section("loss"):
            return make_loss(
                self.loss_name,
                scheduler,
                total_steps=self.run.steps,
                teacher_fn=teacher_fn,
                **options,
            )

    def make_scheduler(self) -> Scheduler:
        """Returns the scheduler that the `scheduler` section describes."""
        options = {"class": "CMStochasticIterativeScheduler", **self.scheduler}
        options["_class_name"] = options.pop("class")
        with _section("scheduler"):
            return read_scheduler_config(options, trust=True)

    def make_optimizer(self) -> optax.GradientTransformation:
        """Returns the optimizer, with its schedule and clipping."""
        return self.optimizer.make(self.run.steps)

    def network_config(self) -> Any:
        """Returns the config of the network (`UNet2DConfig` or `DiTConfig`).

        None for the network of `run.init`.
        """
        if not self.network:
            if not self.run.init:
                raise ValueError(
                    "network is missing: give [network] with a class, "
                    "or run.init, a model to start from"
                )
            return None
        values = {key: value for key, value in self.network.items() if key != "class"}
        with _section("network.class"):
            _, config_class = network_class(self.network.get("class"))
        with _section("network"):
            return from_json(config_class, values)

    def to_json(self) -> dict[str, Any]:
        """Returns the run as JSON would hold it."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def read_config(source: str | Path, settings: Iterable[tuple[str, Any]] = ()) -> TrainConfig:
    """Returns the run that a TOML file or a preset describes.

    Args:
        source: a path of a `.toml` file, or a name of `PRESETS`.
        settings: changes, such as ("run.steps", 500).

    Raises:
        ValueError: naming the key that is wrong, and the one that may be meant.
        OSError: if the file cannot be read.
    """
    values = _read_values(source)
    for key, value in settings:
        section, dot, name = key.partition(".")
        if not dot:
            raise ValueError(f"{key} must be section.key, such as run.steps")
        if not isinstance(values.setdefault(section, {}), dict):
            raise ValueError(f"{section} must be a section, got {values[section]!r}")
        values[section][name] = value
    return from_values(values)


def from_values(values: Mapping[str, Any]) -> TrainConfig:
    """Returns the run that nested mappings describe; see `read_config`."""
    hints = get_type_hints(TrainConfig)
    sections = {}
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"there is no section {name!r}{did_you_mean(name, list(hints))}")
        if not isinstance(value, Mapping):
            raise ValueError(
                f"{name} must be a section, got {value!r}; put it under one, such as [run]"
            )
        if dataclasses.is_dataclass(hints[name]):
            sections[name] = read_section(hints[name], name, value)
        else:
            sections[name] = dict(value)
    return TrainConfig(**sections)


def _read_values(source):
    """The nested dicts of a TOML file or a preset."""
    if str(source) in PRESETS:
        return json.loads(json.dumps(PRESETS[str(source)]))
    if Path(source).suffix != ".toml":
        hint = did_you_mean(str(source), list(PRESETS))
        raise ValueError(f"{source} is neither a .toml file nor a preset{hint}")
    try:
        return tomllib.loads(Path(source).read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} is not TOML: {error}") from None


@contextlib.contextmanager
def _section(name):
    """Puts the name of a section in front of errors."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
