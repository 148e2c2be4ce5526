"""Files with a few bytes changed, and how many of them a test tries."""

import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.support.draws import draws

INTERESTING = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff" * 4,
    b"\0" * 4,
    b"\xff" * 8,
    b"\xff" * 7 + b"\x7f",
    b"PK\1\2",
    b".",
]


@st.composite
def mutations(draw, content):
    """The content with a few places changed, most near its ends, where the structure is."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        size = len(content)
        near = st.integers(0, max(min(size - 1, 400), 0))
        at = draw(
            st.one_of(
                near,
                near.map(lambda i, size=size: max(size - 1 - i, 0)),
                st.integers(0, max(size - 1, 0)),
            )
        )
        match draw(
            st.sampled_from(["flip", "set", "cut", "remove", "insert", "splice", "swap"])
        ):
            case "flip" if size:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                some = draw(st.sampled_from(INTERESTING))
                content[at : at + len(some)] = some
            case "cut":
                del content[at:]
            case "remove":
                del content[at : at + draw(st.integers(1, 64))]
            case "insert":
                content[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "splice":
                start = draw(st.integers(0, max(size - 1, 0)))
                content[at:at] = content[start : start + draw(st.integers(1, 200))]
            case "swap" if size:
                other = draw(st.integers(0, size - 1))
                content[at], content[other] = content[other], content[at]
    return bytes(content)


def fuzz(examples):
    checks = [
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.data_too_large,
    ]
    return settings(
        max_examples=draws(examples), suppress_health_check=checks, database=None
    )


def seeds(examples):
    """Seeds of `random.Random`, one for each of the cases that a test tries by `changed_bytes`.

    For models of several files, whose names and sizes differ between runs: the choices of
    Hypothesis must not.
    """
    return range(draws(examples))


def changed_bytes(rng: random.Random, content):
    """The content with a few places changed, as by `mutations`."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        size = len(content)
        near = rng.randint(0, max(min(size - 1, 400), 0))
        at = rng.choice([near, max(size - 1 - near, 0), rng.randint(0, max(size - 1, 0))])
        match rng.choice(["flip", "set", "cut", "remove", "insert", "splice", "swap"]):
            case "flip" if size:
                content[at] ^= 1 << rng.randint(0, 7)
            case "set":
                some = rng.choice(INTERESTING)
                content[at : at + len(some)] = some
            case "cut":
                del content[at:]
            case "remove":
                del content[at : at + rng.randint(1, 64)]
            case "insert":
                content[at:at] = rng.randbytes(rng.randint(1, 16))
            case "splice":
                start = rng.randint(0, max(size - 1, 0))
                content[at:at] = content[start : start + rng.randint(1, 200)]
            case "swap" if size:
                other = rng.randint(0, size - 1)
                content[at], content[other] = content[other], content[at]
    return bytes(content)
