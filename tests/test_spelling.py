"""Suggestions: of close spellings only."""

import pytest

from cmjax.configs import did_you_mean
from cmjax.spelling import close_spelling

NAMES = [
    "DDIMScheduler",
    "EDMHeunScheduler",
    "FlowMapEulerDiscreteScheduler",
    "eta",
    "--out",
]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DDIMSchedular", "DDIMScheduler"),
        ("ddim_scheduler", "DDIMScheduler"),
        ("EDMHuenScheduler", "EDMHeunScheduler"),
        ("EDMHeun", "EDMHeunScheduler"),
        ("etas", "eta"),
        ("FlowMatchEulerDiscreteScheduler", None),
        ("--num", None),
        ("beta", "eta"),
        ("alpha", None),
        ("", None),
        ("x" * 10**6, None),
        (["eta"], None),
    ],
)
def test_only_close_spellings_are_offered(name, meant):
    assert close_spelling(name, NAMES) == meant


def test_what_is_not_close_lists_all_names():
    assert did_you_mean("alpha", ["a", "b"]) == "; known are a, b"
    assert did_you_mean("gama", ["a", "b"], ["gamma"]) == "; did you mean 'gamma'?"


def test_names_that_hold_the_word_are_those_that_are_listed():
    known = ["EulerDiscreteScheduler", "EulerAncestralScheduler", "LCMScheduler"]
    alike = "; names like it are EulerDiscreteScheduler, EulerAncestralScheduler"
    assert did_you_mean("euler", known) == alike
    assert did_you_mean("eu", known) == f"; known are {', '.join(known)}"
