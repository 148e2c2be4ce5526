"""The configuration of a training run: read from TOML or a preset, with single keys changed."""

import codecs
import contextlib
import dataclasses
import json
import os
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import optax

from cmjax.configs import did_you_mean, from_json, shown
from cmjax.files import read_regular
from cmjax.models.registry import architecture
from cmjax.registry import read_scheduler_config, scheduler_class
from cmjax.schedulers.base import Scheduler
from cmjax.schedulers.registry import own_defaults
from cmjax.training.losses.base import Loss
from cmjax.training.losses.registry import FROM_THE_RUN
from cmjax.training.losses.registry import make as make_loss
from cmjax.training.presets import preset_names, preset_text
from cmjax.training.sections import (
    DataSection,
    OptimizerSection,
    RunSection,
    TeacherSection,
    read_section,
)

LARGEST_TOML = 2**20  # bytes; a configuration has some hundreds

# Keys that hold a path, which in a file is relative to the folder of that file. A model that is not
# there is looked up as `cmjax.load` does: it may be one on a hub.
_DATA = ("data", "source")
_MODELS = (
    ("data", "autoencoder"),
    ("teacher", "model"),
    ("teacher", "weak_model"),
    ("run", "init"),
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The configuration of a whole run.

    `network`, `scheduler` and `loss` are mappings, since their keys depend on the class that they
    name; that class checks them. Wrong keys and values are found when the configuration is made.

    Attributes:
        network: `class` (UNet2D, DiT, or a class of your own) and the fields of its config; empty
            for the network of the model that the run starts from.
        loss: `name`, one of `losses.LOSSES` or "package.module:Class", and the fields of that class
            that differ from its defaults.
        scheduler: `class`, CMStochasticIterativeScheduler if left out, and its fields: the noise
            levels and the parametrization of the network. Empty for the scheduler of the model that
            the run starts from.
        data: see `DataSection`.
        teacher: see `TeacherSection`.
        optimizer: see `OptimizerSection`.
        run: see `RunSection`.

    Raises:
        ValueError: for a wrong key or value; the message names it.
    """

    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    loss: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"name": "denoising"}
    )
    scheduler: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: DataSection = DataSection()
    teacher: TeacherSection = TeacherSection()
    optimizer: OptimizerSection = OptimizerSection()
    run: RunSection = RunSection()

    def __post_init__(self):
        # Sections check their own fields; a mapping would be checked by nobody.
        for name, hint in get_type_hints(TrainConfig).items():
            wanted: Any = hint if dataclasses.is_dataclass(hint) else Mapping
            value = getattr(self, name)
            if not isinstance(value, wanted):
                raise ValueError(
                    f"{name} must be a {wanted.__name__}, got {shown(value)}; "
                    "config.from_values makes a TrainConfig of nested dicts"
                )

        # These would be overwritten in silence, as the run fills them in.
        for name, place in FROM_THE_RUN.items():
            if name in self.loss:
                raise ValueError(f"loss.{name} is given elsewhere; use {place}")

        # Make everything once, so that errors show before models and data are loaded.
        loss = self.make_loss(self.make_scheduler())
        self.make_optimizer(loss)
        self.network_config()

    @property
    def loss_name(self) -> str:
        """Name of the loss, "denoising" by default."""
        return self.loss.get("name", "denoising")

    def make_loss(self, scheduler: Scheduler, teacher_fn: Any = None) -> Loss:
        """Returns the loss.

        Args:
            scheduler: the scheduler that the network is trained for.
            teacher_fn: the teacher's network; None if it is the student's, or without a teacher.
        """
        # All of [loss] but its name are fields of the loss.
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
        # Diffusers' scheduler_config.json, which may be copied here, has `_class_name` for `class`.
        # Classes of the user's own may be imported (`trust`), as a configuration is the user's own
        # file.
        options = {"_class_name": "CMStochasticIterativeScheduler", **self.scheduler}
        if {"class", "_class_name"} <= self.scheduler.keys():
            raise ValueError("scheduler.class and scheduler._class_name exclude each other")
        if "class" in options:
            options["_class_name"] = options.pop("class")
        with _section("scheduler"):
            # Where a file of diffusers leaves an option out, it means diffusers' default, and a
            # configuration of cmjax that of the class.
            if "_class_name" not in self.scheduler:
                cls = scheduler_class(options["_class_name"])
                options = {**own_defaults(cls), **options}
            return read_scheduler_config(options, trust=True)

    def make_optimizer(self, loss: Loss) -> optax.GradientTransformation:
        """Returns the optimizer of a loss, with its learning-rate schedule and clipping."""
        return loss.make_optimizer(self.optimizer.make, self.run.steps)

    def network_config(self) -> Any:
        """Returns the network's config, such as a `UNet2DConfig`; None for `run.init`'s network."""
        if not self.network:
            if not self.run.init:
                raise ValueError(
                    "network is missing: give [network] with a class, "
                    "or run.init, a model to start from"
                )
            return None

        # The class first: an unknown one must not show as an unknown key of another.
        values = {key: value for key, value in self.network.items() if key != "class"}
        with _section("network.class"):  # of cmjax, registered, or "package.module:Class"
            _, config_class = architecture(self.network.get("class"))
        with _section("network"):
            return from_json(config_class, values)

    def to_json(self) -> dict[str, Any]:
        """Returns the configuration as JSON values, with lists for tuples."""
        # Once through JSON, so that it equals what is read back when a run is resumed.
        return json.loads(json.dumps(dataclasses.asdict(self), default=_plain_number))


def read_config(
    source: str | Path, settings: Iterable[tuple[str, Any]] = ()
) -> TrainConfig:
    """Returns the run that a TOML file or a preset describes.

    Args:
        source: path of a `.toml` file, whose paths are relative to its own folder; or the name of a
            preset, one of `presets.preset_names()`.
        settings: pairs of a key and the value to change it to, such as ("run.steps", 500). Paths
            here are relative to the working directory.

    Raises:
        ValueError: for a wrong key or value; the message names it, and the key that may be meant.
        OSError: if the file cannot be read.
    """
    values = _read_values(source)

    # A section that the file does not have is made; `from_values` then checks its name.
    for key, value in settings:
        section, dot, name = key.partition(".")
        if not dot:
            raise ValueError(f"{key} must be section.key, such as run.steps")
        if not isinstance(values.setdefault(section, {}), dict):
            raise ValueError(f"{section} must be a section, got {shown(values[section])}")
        values[section][name] = value
    return from_values(values)


def from_values(values: Mapping[str, Any]) -> TrainConfig:
    """Returns the run that nested mappings describe; see `read_config`."""
    hints = get_type_hints(TrainConfig)
    sections = {}
    for name, value in values.items():
        if name not in hints:
            raise ValueError(
                f"there is no section {name!r}{did_you_mean(name, list(hints))}"
            )
        if not isinstance(value, Mapping):
            raise ValueError(
                f"{name} must be a section, got {shown(value)}; put it under one, such as [run]"
            )

        # Sections with fixed keys are read here; mappings are checked by what they configure.
        if dataclasses.is_dataclass(hints[name]):
            sections[name] = read_section(hints[name], name, value)
        else:
            sections[name] = dict(value)
    return TrainConfig(**sections)


def _read_values(source: str | Path) -> dict[str, Any]:
    """Returns the nested dicts of a TOML file or a preset."""
    if str(source) in preset_names():
        return tomllib.loads(preset_text(str(source)))
    if Path(source).suffix.lower() != ".toml":
        hint = did_you_mean(str(source), preset_names())
        raise ValueError(f"{source} is neither a .toml file nor a preset{hint}")

    # TOML is UTF-8 whatever the locale. Some editors put a byte order mark in front, which
    # "utf-8-sig" takes away. What PowerShell redirects to a file is UTF-16, with a mark.
    try:
        content = read_regular(source, LARGEST_TOML)
    except FileNotFoundError:
        raise ValueError(
            f"{source} is not there; cmjax train --init > {shlex.quote(str(source))} writes one to "
            "begin with"
        ) from None
    encoding = "utf-8-sig"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        values = tomllib.loads(content.decode(encoding))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not TOML: {error}") from None
    _resolve_paths(values, Path(source).parent)
    return values


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """Makes the paths in a file, in place, relative to the working directory, not to `folder`."""
    for section, key in (_DATA, *_MODELS):
        # What is no section, no text, or empty is left for the checks of the sections.
        found = values.get(section)
        if not isinstance(found, dict):
            continue
        path = found.get(key)
        if not isinstance(path, str) or not path:
            continue
        # No shell has replaced the ~ of a home folder.
        resolved = folder / os.path.expanduser(path)
        if (section, key) == _DATA or os.path.exists(resolved):
            found[key] = str(resolved)
        elif os.path.exists(path):
            # `cmjax.load` would take this one, which is another where it is called from elsewhere.
            raise ValueError(
                f"{section}.{key}: there is no {resolved}, and paths in a file are relative to its "
                f"folder; for {path} of the working directory write {os.path.abspath(path)}"
            )


def _plain_number(value):
    """Returns a number of NumPy as one of Python, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(f"a configuration holds {shown(value)}, which no file can")


@contextlib.contextmanager
def _section(name):
    """Puts the name of a section in front of error messages."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
