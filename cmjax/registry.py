"""Networks and schedulers of your own, known by name to files, training and the command line."""

from collections.abc import Mapping
from typing import Any, TypeVar

from cmjax.configs import did_you_mean, import_by_name
from cmjax.models.registry import register_network
from cmjax.schedulers import SCHEDULERS, Scheduler, scheduler_from_config

Class = TypeVar("Class", bound=type)
_BUILT_IN = frozenset(SCHEDULERS)


def register(cls: Class, config: type | None = None, *, name: str | None = None) -> Class:
    """Makes a network or a scheduler of your own known, so that files may name it.

    Usable as a decorator. `cmjax.load` imports nothing that a file names, only what is registered,
    unless it is told to trust the file.

    Args:
        cls: a Flax NNX module made by `cls(config, rngs=rngs)` and called by `(x, t, **cond)`, all
            of whose variables are `nnx.Param`; or a subclass of `Scheduler`, a frozen dataclass.
        config: of a network, the frozen dataclass of its configuration; None takes the annotation
            of the argument `config` of `cls.__init__`. Its fields are what JSON can hold, tuples
            for lists, and it has `sample_shape`, or else `sample_size` and `out_channels`.
        name: that files use; None is "package.module:Name", where it can be imported from.

    Returns:
        `cls`.

    Raises:
        ValueError: if `cls` is neither, its config is no frozen dataclass or another network's, or
            the name is one of cmjax's own.
    """
    if _is_scheduler(cls):
        _register_scheduler(cls, name)
    else:
        register_network(cls, config, name=name)
    return cls


def scheduler_class(name: Any, *, trust: bool = True) -> type[Scheduler]:
    """Returns the scheduler class of that name.

    Args:
        name: a name of `cmjax.schedulers.SCHEDULERS`, a registered one, or "package.module:Name".
        trust: whether a class that is not registered may be imported, which runs its module. Pass
            False for a name that was read from somebody else's file.

    Raises:
        ValueError: if there is no such scheduler, it is not one, or it may not be imported.
    """
    if isinstance(name, str) and name in SCHEDULERS:
        return SCHEDULERS[name]
    if not isinstance(name, str) or ":" not in name:
        hint = did_you_mean(name, list(SCHEDULERS))
        raise ValueError(f"there is no scheduler {name!r:.200}{hint}")
    if not trust:
        raise ValueError(
            f"the scheduler is {name!r:.200}, which is not part of cmjax; call cmjax.register with "
            "it first, or import it by trust=True, which runs its module"
        )
    cls = import_by_name(name, "scheduler")
    if name not in SCHEDULERS:  # the module may have registered it
        _register_scheduler(cls, name)
    return SCHEDULERS[name]


def scheduler_name(scheduler: Scheduler) -> str:
    """Returns the name by which `scheduler_class` finds the class of a scheduler."""
    for name, cls in SCHEDULERS.items():
        if type(scheduler) is cls:
            return name
    return _importable_name(type(scheduler))


def scheduler_to_config(scheduler: Scheduler) -> dict[str, Any]:
    """Returns `scheduler.to_config()` with a name that `read_scheduler_config` finds again."""
    return {**scheduler.to_config(), "_class_name": scheduler_name(scheduler)}


def read_scheduler_config(config: Mapping[str, Any], *, trust: bool = False) -> Scheduler:
    """Builds a scheduler from a config dict, as `scheduler_from_config`, your own ones included.

    Args:
        config: `scheduler_to_config(scheduler)`, or the content of a `scheduler_config.json`.
        trust: whether a class that is not registered may be imported, which runs its module.

    Raises:
        ValueError: if the scheduler is unknown or may not be imported, or an option is wrong.
    """
    name = config.get("_class_name")
    if isinstance(name, str) and ":" in name:
        scheduler_class(name, trust=trust)
    return scheduler_from_config(config)


def _is_scheduler(cls: Any) -> bool:
    return isinstance(cls, type) and Scheduler in cls.__mro__


def _register_scheduler(cls: Any, name: str | None) -> None:
    name = name or _importable_name(cls)
    if not _is_scheduler(cls):
        raise ValueError(f"scheduler {name!r} must be a subclass of Scheduler, got {cls!r:.200}")
    if cls.__hash__ is None or not hasattr(cls, "__dataclass_fields__"):
        raise ValueError(f"scheduler {name!r} must be a frozen dataclass; decorate it as one")
    if name in _BUILT_IN:
        raise ValueError(f"name {name!r} is taken by a scheduler of cmjax; choose another")
    SCHEDULERS[name] = cls


def _importable_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"
