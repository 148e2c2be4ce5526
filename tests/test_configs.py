"""Configuration dataclasses: checks by annotation and domain, and names that are imported."""

import dataclasses
from typing import get_type_hints

import ml_dtypes
import numpy as np
import pytest

import cmjax
from cmjax.configs import check_options, from_json, import_by_name, shown
from cmjax.models import DiTConfig, UNet2DConfig
from cmjax.registry import read_scheduler_config
from cmjax.schedulers import SCHEDULERS


@dataclasses.dataclass(frozen=True)
class Options:
    size: int
    kinds: tuple[str, ...] = ("a",)
    widths: tuple[int, ...] = (1,)
    groups: int | None = None
    rate: float = 0.5
    shift: float = 0.0
    mode: str = "fast"
    fixed: str = "only"
    flag: bool = False
    anything: object = None

    _domains = {
        "size": (1, None),
        "kinds": ("a", "b"),
        "widths": (1, 9),
        "groups": (1, None),
        "rate": (0.0, 1.0),
        "shift": (None, None),
        "mode": ("fast", "slow"),
    }

    def __post_init__(self):
        check_options(self)


@pytest.mark.parametrize(
    "values",
    [
        {"size": 2**40, "groups": 3, "shift": -1e300, "anything": object()},
        {"size": 1, "kinds": ["a", "b", "b"], "widths": [9, 1], "mode": "slow", "rate": 1},
        {"size": 1, "kinds": [], "flag": True},
    ],
)
def test_values_that_fit(values):
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    for name, value in values.items():
        assert getattr(Options(**values), name) == value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "size must be an integer of at least 1, got 0"),
        ({"size": 1.0}, "size must be an integer"),
        ({"size": True}, "size must be an integer"),
        ({"kinds": ("a", "c")}, "kinds must be a list, each item 'a' or 'b', got"),
        ({"kinds": "ab"}, "kinds must be a list"),
        (
            {"widths": (1, 10)},
            "widths must be a list, each item an integer from 1 to 9, got",
        ),
        ({"groups": 0}, "groups must be an integer of at least 1, or null, got 0"),
        ({"rate": 2}, "rate must be a number from 0 to 1, got 2"),
        ({"rate": float("nan")}, "rate must be a number from 0 to 1, got nan"),
        ({"shift": float("inf")}, "shift must be a finite number, got inf"),
        ({"shift": 10**400}, "shift must be a finite number"),
        ({"shift": None}, "shift must be a finite number"),
        ({"mode": "slwo"}, "mode must be 'fast' or 'slow', got 'slwo'"),
        ({"fixed": "other"}, "fixed must be 'only', got 'other'"),
        ({"flag": 1}, "flag must be true or false, got 1"),
    ],
)
def test_values_that_do_not(values, message):
    with pytest.raises(ValueError) as caught:
        Options(**{"size": 1, **values})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("size", np.int64(3), 3),
        ("size", np.uint8(3), 3),
        ("rate", np.float32(0.5), 0.5),
        ("rate", np.float64(0.5), 0.5),
        ("rate", np.longdouble(0.5), 0.5),
        ("rate", ml_dtypes.bfloat16(0.5), 0.5),
        ("rate", np.array(0.5), 0.5),
        ("rate", np.int32(1), 1),
        ("flag", np.bool_(True), True),
        ("mode", np.str_("slow"), "slow"),
        ("kinds", ["a", np.str_("b")], ("a", "b")),
        ("widths", np.array([1, 2]), (1, 2)),
        ("widths", (np.int8(1), 2), (1, 2)),
        ("anything", np.float32(2), 2.0),
    ],
)
def test_values_of_numpy_become_pythons_own(name, value, expected):
    found = getattr(Options(**{"size": 1, name: value}), name)
    assert found == expected and type(found) is type(expected)
    if isinstance(found, tuple):
        assert [type(item) for item in found] == [type(item) for item in expected]


@pytest.mark.parametrize("cls", [*SCHEDULERS.values(), UNet2DConfig, DiTConfig])
def test_every_config_holds_pythons_own_numbers(cls):
    options = {"sample_size": 8} if cls in (UNet2DConfig, DiTConfig) else {}
    plain = cls(**options)
    kinds = {int: np.int64, float: np.float64, bool: np.bool_}
    values = {field.name: getattr(plain, field.name) for field in dataclasses.fields(cls)}
    numbers = {name: kinds[type(v)](v) for name, v in values.items() if type(v) in kinds}
    config = cls(**{**options, **numbers})
    assert config == plain and hash(config) == hash(plain) and repr(config) == repr(plain)


def test_json_must_name_options():
    assert from_json(Options, {"size": 3, "widths": [2]}) == Options(3, widths=(2,))
    with pytest.raises(ValueError, match="Options needs the option 'size'"):
        from_json(Options, {})
    with pytest.raises(ValueError, match="no option 'sise'; did you mean 'size'"):
        from_json(Options, {"sise": 3})
    with pytest.raises(ValueError, match="size has a number of 41 bits"):
        from_json(Options, {"size": 2**40})


def test_names_are_imported():
    assert import_by_name("collections:OrderedDict", "class").__name__ == "OrderedDict"
    assert import_by_name("collections.abc:Mapping.get", "method").__name__ == "get"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("collections", "network 'collections' must be like 'package.module:Name'"),
        (":x", "must be like"),
        (
            "no_such.nets:Net",
            "there is no module 'no_such'; install it, or put its folder on",
        ),
        ("collections.nets:Net", "there is no module 'collections.nets'"),
        ("collections:OrderedDcit", "has no 'OrderedDcit'; did you mean 'OrderedDict'?"),
        ("broken_module:X", "importing broken_module failed: ZeroDivisionError: division"),
        ("needy_module:X", "needy_module needs 'no_such_dependency'"),
    ],
)
def test_names_that_cannot_be(text, message, tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("1 / 0")
    (tmp_path / "needy_module.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError) as caught:
        import_by_name(text, "network")
    assert message in str(caught.value) and "\n" not in str(caught.value)


NUMBERS = [np.nan, np.inf, -np.inf, -1e30, 1e30, True, 2**63, "1", None, [1], 1 + 0j, {}]
CONFIGS = [*SCHEDULERS.values(), UNet2DConfig, DiTConfig]


def of_type(cls, kinds):
    """The fields of a configuration that are of one of these types, with their types."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if hints[field.name] in kinds:
            yield field.name, hints[field.name]


def make(cls, **options):
    required = {"sample_size": 32} if cls is UNet2DConfig else {}
    return cls(**required | options)


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__name__)
def test_every_number_of_a_configuration_has_a_domain(cls):
    for name, hint in of_type(cls, (int, float, int | None, float | None)):
        default = getattr(make(cls), name)
        make(cls, **{name: default})
        for value in NUMBERS:
            if value is None and hint in (int | None, float | None):
                continue
            if value == default == -np.inf:  # lambda_min_clipped: no bound
                continue
            with pytest.raises(ValueError, match=name) as caught:
                make(cls, **{name: value})
            assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__name__)
def test_words_and_switches_are_of_their_kind(cls):
    for name, _ in of_type(cls, (str, bool)):
        for value in ("x", 1, np.zeros(3), [], b"x"):
            with pytest.raises(ValueError, match=f"{name} must be"):
                make(cls, **{name: value})


@pytest.mark.parametrize("config", [None, [1], "x", {1: 2}, 3])
def test_configs_that_are_none(config):
    for read in (
        cmjax.scheduler_from_config,
        cmjax.DDIMScheduler.from_config,
        read_scheduler_config,
    ):
        with pytest.raises(ValueError, match="config must map the names of options"):
            read(config)


def test_values_are_shown_in_one_line():
    class Foreign:
        def __repr__(self):
            raise RuntimeError

    assert shown(np.zeros((2, 2))) == "array([[0., 0.], [0., 0.]])"
    assert shown(Foreign()) == "<Foreign>"
    assert shown(10**5000) == "<int>"
    assert shown("a" * 500) == f"'{'a' * 199} ..."
    assert shown("a\n\x1b[2J") == r"'a\n\x1b[2J'"
