"""Configuration dataclasses: checks by annotation and domain, and names that are imported."""

import dataclasses
from typing import get_type_hints

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
        cls(**required | {field.name: getattr(default, field.name)})
        for value in NUMBERS:
            if value is None and hints[field.name] in (int | None, float | None):
                continue
            with pytest.raises(ValueError, match=field.name) as caught:
                cls(**required | {field.name: value})
            assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__name__)
def test_words_and_switches_are_of_their_kind(cls):
    required = {"sample_size": 32} if cls is UNet2DConfig else {}
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if hints[field.name] in (str, bool):
            for value in ("x", 1, np.zeros(3), [], b"x"):
                with pytest.raises(ValueError, match=f"{field.name} must be"):
                    cls(**required | {field.name: value})


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
