"""Reading and writing `scheduler_config.json`, the configurations of diffusers' schedulers.

A file has a scheduler's own options, and others that are without effect here.
"""

import dataclasses
import types
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from cmjax.configs import did_you_mean, from_json, inherited, is_finite, shown
from cmjax.former_names import OF_SCHEDULERS, with_way_out
from cmjax.schedulers import diffusers_names
from cmjax.schedulers.checks import check_config

# Every option of any scheduler.
OTHERS = (
    diffusers_names.OPTIONS | diffusers_names.EARLIER_OPTIONS | diffusers_names.CALL_OPTIONS
)


class FileOption(NamedTuple):
    """An option of diffusers' `scheduler_config.json` files that has no effect here.

    Attributes:
        default: the value that `to_config` writes.
        values: further values that `from_config` accepts.
        numbers: or the range (low, high) of numbers that it accepts besides the default.
        hint: what to do instead; ends the error for a value that is not accepted.
    """

    default: Any
    values: tuple[Any, ...] = ()
    numbers: tuple[float, float] | None = None
    hint: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raises ValueError, naming the option, for a value that is not accepted."""
        if self.numbers is not None:
            low, high = self.numbers
            is_inside = is_finite(value) and low <= value <= high
            if not is_inside and not (value is None and self.default is None):
                allowed = "None or a number" if self.default is None else "a number"
                raise ValueError(
                    f"{name} must be {allowed} from {low:g} to {high:g}, got {shown(value)}"
                )
            return

        # Compared together with the type, since 0 equals False, and arrays have no single answer.
        accepted = (self.default, *self.values)
        if not any(type(value) is type(known) and value == known for known in accepted):
            if self.hint:
                raise ValueError(f"{name}={shown(value)} is not supported; {self.hint}")
            allowed = " or ".join(map(repr, accepted))
            raise ValueError(f"{name} must be {allowed}, got {shown(value)}")


class Configured:
    """A frozen dataclass that reads and writes the configuration of a scheduler of diffusers."""

    # Defaults of diffusers' class of this name, where they are not those of the fields.
    _diffusers_defaults: ClassVar[Mapping[str, Any]] = {}

    # Options of diffusers' files that have no effect here.
    _file_options: ClassVar[Mapping[str, FileOption]] = {}

    # Options that diffusers' class of this name lacks: in its files they are a sibling's.
    _sibling_options: ClassVar[frozenset[str]] = frozenset()

    # Values of options in the configs of other solvers, and this class's own for them.
    _others_values: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    # What `from_config` read of sibling schedulers' options, for `to_config` to write again. They
    # have no part in what the scheduler does, nor in whether two are equal.
    _kept: Mapping[str, Any] = types.MappingProxyType({})

    if not TYPE_CHECKING:
        __getattr__ = with_way_out(OF_SCHEDULERS)

    def to_config(self) -> dict[str, Any]:
        """Returns the configuration as a dict for JSON, in the layout of diffusers' files."""
        fields = dataclasses.asdict(self)  # type: ignore[call-overload]

        # Options without effect are written too, since diffusers' classes expect them.
        file_options = inherited(type(self), "_file_options")
        unused = {name: option.default for name, option in file_options.items()}
        # A class that a user registered is written by the name that it was registered under.
        name = vars(type(self)).get("_config_name", type(self).__name__)
        return {"_class_name": name, **self._kept, **fields, **unused}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Builds the scheduler from `to_config()` or from diffusers' `scheduler_config.json`.

        Options that only other schedulers have are without effect, as in diffusers; `to_config`
        writes them again. So `Other.from_config(scheduler.to_config())` samples the same network
        by another class. What diffusers takes as arguments of `step`, such as eta and churn, then
        has its default.

        Args:
            config: options by name; names that begin with `_` are diffusers' metadata, and ignored.

        Raises:
            ValueError: if `config` is no mapping of names, for an unknown or missing option, or a
                value out of its domain.
        """
        check_config(config)
        fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        own, siblings = sort_options(
            cls.__name__,
            config,
            fields=fields,
            file_options=inherited(cls, "_file_options"),
            not_in_diffusers=cls._sibling_options,
        )

        # Another solver's value of an option may have another name here.
        for name, names in inherited(cls, "_others_values").items():
            if isinstance(own.get(name), str):
                own[name] = names.get(own[name], own[name])

        # An option that the file leaves out has diffusers' default. `to_config` writes all of them,
        # so its own configs are read as they were.
        scheduler = from_json(cls, {**cls._diffusers_defaults, **own})

        # A frozen dataclass has no other way to set what is not a field. A dict, since read-only
        # views of one cannot be pickled.
        if siblings:
            object.__setattr__(scheduler, "_kept", siblings)
        return scheduler


def sort_options(
    class_name: str,
    config: Mapping[str, Any],
    *,
    fields: Collection[str],
    file_options: Mapping[str, FileOption],
    not_in_diffusers: Collection[str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divides the options of a file into those of a scheduler and those of its siblings.

    Args:
        class_name: the scheduler, for errors.
        config: options by name; names that begin with `_` are diffusers' metadata, and left out.
        fields: names of the scheduler's own options.
        file_options: options of diffusers' class that have no effect here; their values are
            checked, and they are left out.
        not_in_diffusers: of both, those that diffusers' class lacks.

    Returns:
        The scheduler's own options, and those of other schedulers of diffusers.

    Raises:
        ValueError: for an option that no scheduler has, or a value of `file_options` that is not
            accepted.
    """
    # diffusers writes its version into its files, and its class ignores what it does not know.
    foreign = set()
    if "_diffusers_version" in config:
        foreign.update(not_in_diffusers)

    # Another class's eta or churn is no choice for this one, whose default may differ.
    maker = config.get("_class_name")
    others = diffusers_names.SCHEDULERS - {class_name}
    if isinstance(maker, str) and maker.removeprefix("Flax") in others:
        foreign.update(diffusers_names.CALL_OPTIONS)

    own = {}
    siblings = {}
    for name, value in config.items():
        if name.startswith("_"):  # such as _class_name and _diffusers_version
            continue
        if name in file_options and name not in foreign:
            file_options[name].check(name, value)
        elif name in fields and name not in foreign:
            own[name] = value
        elif name in OTHERS:
            siblings[name] = value

        # Anything else is misspelt, and would otherwise silently keep its default.
        else:
            known = [*fields, *file_options]
            hint = did_you_mean(name, known, elsewhere=sorted(diffusers_names.OPTIONS))
            raise ValueError(f"{class_name} has no option {shown(name)}{hint}")
    return own, siblings
