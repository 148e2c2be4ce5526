"""Reading and writing `scheduler_config.json`, the configurations of diffusers' schedulers.

A file has a scheduler's own options, and others that are without effect here.
"""

import dataclasses
import types
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from cmjax.configs import did_you_mean, from_json, inherited, is_finite, plain, shown
from cmjax.former_names import OF_SCHEDULERS, with_way_out
from cmjax.schedulers import diffusers_names
from cmjax.schedulers.checks import check_config

# Every option of diffusers' schedulers.
KNOWN_OPTIONS = (
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


# Of diffusers before 0.13, in any of its files: whether the network predicts epsilon or x0.
FORMER_OPTIONS = {
    "predict_epsilon": FileOption(True, hint="give prediction_type='sample' instead")
}


# Where our configs have the options that were not given, with their values, and where those of
# diffusers' schedulers in memory list their names. diffusers does not read options on its own list
# from a file, even if they were changed there, so ours has another name.
LEFT_OUT = "_left_out"
DIFFUSERS_LEFT_OUT = "_use_default_values"


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

    # What `from_config` was given of options without effect, for `to_config` to write again, and
    # which options it was not given. They have no part in what the scheduler does, nor in whether
    # two are equal.
    _kept: Mapping[str, Any] = types.MappingProxyType({})
    _left_out: frozenset[str] = frozenset()

    if not TYPE_CHECKING:
        __getattr__ = with_way_out(OF_SCHEDULERS)

    def to_config(self) -> dict[str, Any]:
        """Returns the configuration as a dict for JSON, in the layout of diffusers' files.

        It has all options. Of a scheduler that `from_config` made, `_left_out` has those that were
        left out there: another class that is made from this config takes its own defaults for
        these, as in diffusers, unless their value was changed since.
        """
        fields = dataclasses.asdict(self)  # type: ignore[call-overload]

        # Options without effect are written too, since diffusers' classes expect them.
        file_options = inherited(type(self), "_file_options")
        unused = {name: option.default for name, option in file_options.items()}
        options = {**fields, **unused, **self._kept}

        # A class that a user registered is written by the name that it was registered under.
        name = vars(type(self)).get("_config_name", type(self).__name__)
        config = {"_class_name": name, **options}
        if self._left_out:
            config[LEFT_OUT] = {name: options[name] for name in sorted(self._left_out)}
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **options: Any) -> Self:
        """Builds the scheduler from `to_config()` or from diffusers' `scheduler_config.json`.

        Options that only other schedulers have are without effect, as in diffusers; `to_config`
        writes them again. So `Other.from_config(scheduler.to_config())` samples the same network
        by another class. Where the config leaves an option out, the other class has its own
        default, and so it has for what diffusers takes as arguments of `step`, such as eta and
        churn.

        Args:
            config: options by name. Names that begin with `_` are diffusers' metadata, and ignored,
                but `_left_out` and diffusers' `_use_default_values`: these list what was not given
                to the scheduler that the config is of, which another class does not take over.
            **options: of this scheduler, over those of `config`.

        Raises:
            ValueError: if `config` is no mapping of names, for an unknown or missing option, or a
                value out of its domain.
        """
        check_config(config)
        own, others = cls._divided(config, options)

        # Another solver's value of an option may have another name here.
        for name, names in inherited(cls, "_others_values").items():
            if isinstance(own.get(name), str):
                own[name] = names.get(own[name], own[name])

        # An option that the file leaves out has diffusers' default.
        scheduler = from_json(cls, {**cls._diffusers_defaults, **own})

        # A frozen dataclass has no other way to set what is not a field. A dict, since read-only
        # views of one cannot be pickled.
        left_out = cls._options_left_out(config, options, read=own.keys() | others.keys())
        object.__setattr__(scheduler, "_left_out", left_out)
        if kept := cls._options_to_keep(others, config):
            object.__setattr__(scheduler, "_kept", kept)
        return scheduler

    @classmethod
    def _divided(
        cls, config: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns this class's own options out of a config, and those that have no effect on it."""
        given = {name: value for name, value in config.items() if not name.startswith("_")}

        # Another class's defaults are not taken over; this class has its own.
        if made_by(config) != cls.__name__:
            for name in left_out_options(config):
                given.pop(name, None)

        # What the caller gives is meant for this class, whatever the config is of.
        foreign = foreign_options(
            cls.__name__, config, not_in_diffusers=cls._sibling_options
        )
        return sort_options(
            cls.__name__,
            {**given, **options},
            fields=[field.name for field in dataclasses.fields(cls)],  # type: ignore[arg-type]
            file_options=inherited(cls, "_file_options"),
            foreign=foreign - options.keys(),
        )

    @classmethod
    def _options_left_out(
        cls, config: Mapping[str, Any], options: Mapping[str, Any], read: Collection[str]
    ) -> frozenset[str]:
        """Returns the names of this class's options that nobody chose a value for.

        Args:
            config: what was read.
            options: what the caller gave besides; always chosen.
            read: names of the options that were found in either.
        """
        fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        names = fields | inherited(cls, "_file_options").keys()

        # Not in the config, or listed there as not chosen.
        left_out = names - set(read) | names & left_out_options(config)

        # Where the default of diffusers' files is not that of the class, it is a choice.
        return frozenset(left_out - options.keys() - cls._diffusers_defaults.keys())

    @classmethod
    def _options_to_keep(
        cls, others: Mapping[str, Any], config: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Returns what `to_config` writes again of the options that have no effect."""
        # Options of the name of a field here, such as another class's eta, are dropped: written
        # again, they would be read as this class's own. Siblings' options stay, since the version
        # below makes `foreign_options` pass over them again.
        fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        shared_names = fields - cls._sibling_options
        kept = {
            name: plain(value) for name, value in others.items() if name not in shared_names
        }

        # That diffusers made the config says which options mean nothing to which class.
        if "_diffusers_version" in config:
            kept["_diffusers_version"] = config["_diffusers_version"]
        return kept


def left_out_options(config: Mapping[str, Any]) -> set[str]:
    """Returns the names of options that were not given to the scheduler which a config is of.

    An option whose value was changed since counts as given, where the config says what it was.
    """
    names = config.get(DIFFUSERS_LEFT_OUT)
    left_out = set(names) if isinstance(names, list | tuple | set) else set()
    values = config.get(LEFT_OUT)
    if isinstance(values, Mapping):
        left_out |= {name for name in values if config.get(name) == values[name]}
    return left_out


def made_by(config: Mapping[str, Any]) -> str | None:
    """Returns the class that a config names, without diffusers' former "Flax"; None if none."""
    maker = config.get("_class_name")
    return maker.removeprefix("Flax") if isinstance(maker, str) else None


def foreign_options(
    class_name: str, config: Mapping[str, Any], not_in_diffusers: Collection[str]
) -> set[str]:
    """Returns the names of options that say nothing to a scheduler, though it has them.

    Args:
        class_name: the scheduler that is made.
        config: the metadata and options of a file, by name.
        not_in_diffusers: those of the scheduler's options that diffusers' class lacks.
    """
    # diffusers writes its version into its files, and its class ignores what it does not know.
    foreign = set()
    if "_diffusers_version" in config:
        foreign.update(not_in_diffusers)

    # Another class's eta or churn is no choice for this one, whose default may differ.
    if made_by(config) in diffusers_names.SCHEDULERS - {class_name}:
        foreign.update(diffusers_names.CALL_OPTIONS)
    return foreign


def sort_options(
    class_name: str,
    options: Mapping[str, Any],
    *,
    fields: Collection[str],
    file_options: Mapping[str, FileOption],
    foreign: Collection[str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divides options into those of a scheduler and those that have no effect on it.

    Args:
        class_name: the scheduler, for errors.
        options: their values by name.
        fields: names of the scheduler's own options.
        file_options: options of diffusers' class that have no effect here; their values are
            checked.
        foreign: of both, those that are a sibling's in this file.

    Returns:
        The scheduler's own options, and the others.

    Raises:
        ValueError: for an option that no scheduler has, or a value of `file_options` that is not
            accepted.
    """
    own = {}
    others = {}
    for name, value in options.items():
        if name in FORMER_OPTIONS:
            FORMER_OPTIONS[name].check(name, value)
            others[name] = value
        elif name in file_options and name not in foreign:
            file_options[name].check(name, value)
            others[name] = value
        elif name in fields and name not in foreign:
            own[name] = value
        elif name in KNOWN_OPTIONS:
            others[name] = value

        # Anything else is misspelt, and would otherwise silently keep its default.
        else:
            known = [*fields, *file_options]
            hint = did_you_mean(name, known, elsewhere=sorted(diffusers_names.OPTIONS))
            if "did you mean" not in hint:
                hint += "; leave it out if it is another program's, as diffusers does"
            raise ValueError(f"{class_name} has no option {shown(name)}{hint}")
    return own, others
