"""What `cmjax train` is told: typed sections, read from TOML or a preset, changed by `section.key=value`."""

import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import optax

from cmjax.configs import did_you_mean, from_json, is_finite
from cmjax.models.registry import ARCHITECTURES
from cmjax.schedulers import scheduler_from_config
from cmjax.training.losses import LossConfig, Recipe, recipe
from cmjax.training.presets import PRESETS

OPTIMIZERS = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "radam": optax.radam,
    "lion": optax.lion,
    "sgd": optax.sgd,
}
SCHEDULES = ("constant", "cosine")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class DataSection:
    """Where the training images come from.

    Attributes:
        source: an `.npz`, an IDX file, or a folder of pictures; see `cmjax.training.data.open_source`.
        flip: mirror images left to right by chance.
    """

    source: str = ""
    flip: bool = False


@dataclasses.dataclass(frozen=True)
class TeacherSection:
    """What a distillation learns from.

    Attributes:
        model: a denoiser, as `cmjax.load` takes it; "" for the model that the run starts from.
        weak_model: a worse one, to guide the teacher away from; "" for no guidance (`cmjax.parametrization.guided`).
        guidance: how far; 1 is not at all.
    """

    model: str = ""
    weak_model: str = ""
    guidance: float = 2.0


@dataclasses.dataclass(frozen=True)
class OptimizerSection:
    """How parameters move.

    Attributes:
        name: one of `OPTIMIZERS`, optax's.
        learning_rate: after the warm-up.
        schedule: "constant", or "cosine" down to 0 at the last step.
        warmup_steps: steps of linear growth from 0.
        clip_norm: largest norm of the gradient; 0 for no clipping.
        options: what else the optimizer takes, such as {b2 = 0.99}.
    """

    name: str = "adam"
    learning_rate: float = 1e-4
    schedule: str = "constant"
    warmup_steps: int = 0
    clip_norm: float = 1.0
    options: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RunSection:
    """How long, in which parts, and what is written when.

    Attributes:
        steps: training steps, K of the curricula.
        batch_size: images a step, over all devices and processes.
        seed: of the first weights, the order of the data and all noise.
        init: a model to start from, as `cmjax.load` takes it; "" for a new one.
        ema_decays: of the moving averages; the first is saved as `model`, others as `model_DECAY`.
        accumulate: parts that a batch is worked through in, to save memory.
        dtype: what the network computes in; all else is float32.
        log_every: steps between rows of metrics.
        sample_every: steps between pictures of samples; 0 for none.
        save_every: steps between checkpoints.
        keep: checkpoints to keep.
        tensorboard: write TensorBoard's event files as well (needs tensorboardX).
    """

    steps: int = 1000
    batch_size: int = 64
    seed: int = 0
    init: str = ""
    ema_decays: tuple[float, ...] = (0.999,)
    accumulate: int = 1
    dtype: str = "float32"
    log_every: int = 50
    sample_every: int = 500
    save_every: int = 500
    keep: int = 2
    tensorboard: bool = False


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A whole run. `network`, `scheduler` and `loss` are kept as mappings, checked by what they configure.

    Attributes:
        network: `class` (UNet2D or DiT) and the fields of its config; empty: as the model that the run starts from.
        loss: `name`, one of `losses.RECIPES`, and fields of `LossConfig` that differ from its paper's.
        scheduler: `class`, CMStochasticIterativeScheduler if left out, and its fields; the noise levels and the
            preconditioning. Empty: as the model that the run starts from.
        data: see `DataSection`.
        teacher: see `TeacherSection`.
        optimizer: see `OptimizerSection`.
        run: see `RunSection`.
    """

    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    loss: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "denoising"})
    scheduler: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: DataSection = DataSection()
    teacher: TeacherSection = TeacherSection()
    optimizer: OptimizerSection = OptimizerSection()
    run: RunSection = RunSection()

    def __post_init__(self):
        run, optimizer = self.run, self.optimizer
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every", "keep"):
            if getattr(run, name) < 1:
                raise ValueError(f"run.{name} must be at least 1, got {getattr(run, name)}")
        if run.batch_size % run.accumulate:
            raise ValueError(
                f"run.accumulate={run.accumulate} does not divide run.batch_size={run.batch_size}"
            )
        for name, value, known in (
            ("run.dtype", run.dtype, DTYPES),
            ("optimizer.name", optimizer.name, OPTIMIZERS),
            ("optimizer.schedule", optimizer.schedule, SCHEDULES),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}{did_you_mean(value, list(known))}")
        for name in ("learning_rate", "clip_norm"):
            if not (is_finite(getattr(optimizer, name)) and getattr(optimizer, name) >= 0):
                raise ValueError(
                    f"optimizer.{name} must be at least 0 and finite, got {getattr(optimizer, name)}"
                )
        if not 0 <= optimizer.warmup_steps < run.steps:
            raise ValueError(
                f"optimizer.warmup_steps must be from 0 to below run.steps={run.steps}, got {optimizer.warmup_steps}"
            )
        for name, home in (
            ("total_steps", "run.steps"),
            ("scheduler", "[scheduler]"),
            ("teacher_fn", "[teacher]"),
        ):
            if name in self.loss:
                raise ValueError(f"loss.{name} has a place of its own; use {home}")
        self.loss_config()
        self.make_optimizer()
        self.network_config()

    @property
    def recipe(self) -> Recipe:
        """The recipe that `loss.name` names."""
        return recipe(self.loss.get("name", "denoising"))

    def loss_config(self, **changes: Any) -> LossConfig:
        """Returns the settings of the loss: the paper's, with those of the `loss` section over them."""
        named = {"class": "CMStochasticIterativeScheduler", **self.scheduler}
        named["_class_name"] = named.pop("class")
        scheduler = _built("scheduler", scheduler_from_config, named)
        own = {name: value for name, value in self.loss.items() if name != "name"}
        values = {
            **self.recipe.defaults,
            **own,
            "scheduler": scheduler,
            "total_steps": self.run.steps,
            **changes,
        }
        return _built("loss", from_json, LossConfig, values)

    def network_config(self) -> Any:
        """Returns the config of the network (`UNet2DConfig` or `DiTConfig`), or None for that of `run.init`."""
        if not self.network:
            if not self.run.init:
                raise ValueError(
                    "network is missing: give [network] with a class, or run.init, a model to start from"
                )
            return None
        name = self.network.get("class")
        if name not in ARCHITECTURES:
            raise ValueError(f"network.class is {name!r}{did_you_mean(name, list(ARCHITECTURES))}")
        values = {key: value for key, value in self.network.items() if key != "class"}
        return _built("network", from_json, ARCHITECTURES[name][1], values)

    def make_optimizer(self) -> optax.GradientTransformation:
        """Returns the optimizer, with its schedule and clipping."""
        o, steps = self.optimizer, self.run.steps
        if o.schedule == "cosine":
            first = 0.0 if o.warmup_steps else o.learning_rate
            rate = optax.warmup_cosine_decay_schedule(first, o.learning_rate, o.warmup_steps, steps)
        else:
            rate = (
                optax.linear_schedule(0.0, o.learning_rate, o.warmup_steps)
                if o.warmup_steps
                else o.learning_rate
            )
        try:
            optimizer = OPTIMIZERS[o.name](rate, **o.options)
        except TypeError as error:
            raise ValueError(f"optimizer.options: {error}") from None
        return (
            optax.chain(optax.clip_by_global_norm(o.clip_norm), optimizer)
            if o.clip_norm
            else optimizer
        )

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
    if str(source) in PRESETS:
        values = json.loads(json.dumps(PRESETS[str(source)]))
    elif Path(source).suffix == ".toml":
        try:
            values = tomllib.loads(Path(source).read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{source} is not TOML: {error}") from None
    else:
        hint = did_you_mean(str(source), list(PRESETS))
        raise ValueError(f"{source} is neither a .toml file nor a preset{hint}")
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
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"there is no section {name!r}{did_you_mean(name, list(hints))}")
        if not isinstance(value, Mapping):
            raise ValueError(
                f"{name} must be a section, got {value!r}; put it under one, such as [run]"
            )
    sections = {}
    for name, value in values.items():
        sections[name] = (
            _section(name, hints[name], value)
            if dataclasses.is_dataclass(hints[name])
            else dict(value)
        )
    return TrainConfig(**sections)


def _section(name, cls, values):
    hints = get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"{name} has no key {key!r}{did_you_mean(key, list(hints))}")
        if not _fits(value, hints[key]):
            raise ValueError(f"{name}.{key} must be {_words(hints[key])}, got {value!r}")
    return cls(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    )


def _fits(value, hint):
    if get_origin(hint) is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(v, get_args(hint)[0]) for v in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_fits(v, get_args(hint)[1]) for v in value.values())
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if hint is float else hint)


def _words(hint):
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
    return names.get(
        hint, "a list of numbers" if get_origin(hint) is tuple else "a table of numbers"
    )


def _built(section, build, *values):
    """What `build` makes of a section, its errors naming the section."""
    try:
        return build(*values)
    except ValueError as error:
        raise ValueError(f"{section}: {error}") from None
