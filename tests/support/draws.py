"""How many drawn cases a test tries: a tenth of them, a fifth, or all.

`pytest` tries a tenth, as compiling takes its time; with `--hypothesis-profile fifth`, as .ci/run
calls it, a fifth of them; with `thorough`, as before a release, all. The profiles are in
tests/conftest.py.
"""

from hypothesis import settings


def draws(number: int) -> int:
    """Returns how many of `number` cases to try under the profile that tests run with."""
    return max(1, number * settings.default.max_examples // 100)
