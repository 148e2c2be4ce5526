"""Registration of your own networks and schedulers, and schedulers by name.

What is registered can be named in files, in training configs and on the command line.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from cmjax.configs import import_by_name, shown
from cmjax.models.registry import check_registration, register_network
from cmjax.schedulers import SCHEDULERS, Scheduler, scheduler_from_config
from cmjax.schedulers.checks import check_config
from cmjax.schedulers.registry import name_of_class, registered_name

Class = TypeVar("Class", bound=type)

# The names of cmjax's own schedulers, taken before any registration adds to the table.
_BUILT_IN = frozenset(SCHEDULERS)


def register(cls: Class, config: type | None = None, *, name: str | None = None) -> Class:
    """Registers a network or a scheduler of your own, so that files may name it.

    Can be used as a decorator. `cmjax.load` uses registered classes only: it does not import a
    module that a file names, unless it is called with `trust=True`.

    Args:
        cls: a Flax NNX module that is built by `cls(config, rngs=rngs)` and called with
            `(x, t, **cond)`, all of whose variables are `nnx.Param`; or a subclass of `Scheduler`
            that is a frozen dataclass.
        config: for a network, the frozen dataclass of its configuration; None means the annotation
            of the argument `config` of `cls.__init__`. Its fields must be what JSON can hold, with
            tuples for lists. It must have `sample_shape`, or `sample_size` and `out_channels`.
        name: the name that files use; None means "package.module:Name", from where the class can be
            imported.

    Returns:
        `cls`.

    Raises:
        ValueError: if `cls` is neither kind of class or is abstract, if `config` is not a frozen
            dataclass or is that of another network, or if the name is no printable text or belongs
            to another class.
    """
    if _is_scheduler(cls):
        _register_scheduler(cls, name)
    else:
        register_network(cls, config, name=name)
    return cls


def scheduler_class(name: Any, *, trust: bool = True) -> type[Scheduler]:
    """Returns the scheduler class with the given name.

    Args:
        name: a key of `cmjax.schedulers.SCHEDULERS`, a registered name, or "package.module:Name".
        trust: whether a class that is not registered may be imported, which runs its module. Pass
            False for a name that was read from somebody else's file.

    Raises:
        ValueError: if there is no such class, it is no scheduler, or it may not be imported.
    """
    # Only a name with a colon can be imported.
    if not isinstance(name, str) or ":" not in name or name in SCHEDULERS:
        return SCHEDULERS[registered_name(name)]

    # The name could be of any module, whose import could run any program.
    if not trust:
        raise ValueError(
            f"the scheduler is {shown(name)}, which is not part of cmjax; register it with "
            "cmjax.register, or pass trust=True to import its module, which runs it"
        )
    cls = import_by_name(name, "scheduler")

    # The imported module may itself have registered the class.
    if name not in SCHEDULERS:
        _register_scheduler(cls, name)
    return SCHEDULERS[name]


def scheduler_name(scheduler: Scheduler) -> str:
    """Returns the name by which `scheduler_class` finds the class of a scheduler."""
    cls = type(scheduler)
    return name_of_class(cls) or _importable_name(cls)


def scheduler_to_config(scheduler: Scheduler) -> dict[str, Any]:
    """Returns `scheduler.to_config()` with the class name that `read_scheduler_config` expects."""
    # For a class of the user's own, "package.module:Name" or its registered name.
    return {**scheduler.to_config(), "_class_name": scheduler_name(scheduler)}


def read_scheduler_config(config: Mapping[str, Any], *, trust: bool = False) -> Scheduler:
    """Builds a scheduler from a config dict.

    Unlike `scheduler_from_config`, it can import the class that a config names, if it is trusted.

    Args:
        config: the result of `scheduler_to_config`, or the content of a `scheduler_config.json`.
        trust: whether a class that is not registered may be imported, which runs its module.

    Raises:
        ValueError: if the scheduler is unknown or may not be imported, or an option is wrong.
    """
    check_config(config)
    name = config.get("_class_name")

    # A colon marks an importable name: finding the class registers it for the next line.
    if isinstance(name, str) and ":" in name:
        scheduler_class(name, trust=trust)
    return scheduler_from_config(config)


def _is_scheduler(cls: Any) -> bool:
    return isinstance(cls, type) and Scheduler in cls.__mro__


def _register_scheduler(cls: Any, name: str | None) -> None:
    """Adds a scheduler class to the table by which all of cmjax finds schedulers."""
    if not _is_scheduler(cls):
        raise ValueError(
            f"scheduler {name!r} must be a subclass of Scheduler, got {shown(cls)}"
        )
    name = _importable_name(cls) if name is None else name
    if isinstance(name, str) and name in _BUILT_IN:
        raise ValueError(f"name {name!r} is taken by a scheduler of cmjax; choose another")
    check_registration(cls, name, SCHEDULERS.get(name) if isinstance(name, str) else None)

    # A scheduler is a static argument of jitted functions, so it must be hashable. A dataclass that
    # is not frozen has None for `__hash__`.
    if cls.__hash__ is None or not hasattr(cls, "__dataclass_fields__"):
        raise ValueError(
            f"scheduler {name!r} must be a frozen dataclass; decorate it as one"
        )
    SCHEDULERS[name] = cls
    cls._config_name = name


def _importable_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"
