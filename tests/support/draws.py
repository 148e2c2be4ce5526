"""How many drawn cases a test tries: a tenth of them, or all.

`pytest` tries a tenth, as compiling takes its time; with `--hypothesis-profile thorough`, as before
a release, all. The profiles are in tests/conftest.py.
"""

from hypothesis import settings


def draws(number: int) -> int:
    """Returns how many of `number` cases to try under the profile that tests run with."""
    return max(1, number * settings.default.max_examples // 100)
