"""Which known name a misspelt one was meant to be."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

LONGEST_NAME = 100  # characters; a longer text, of a damaged file, misspells no name


def close_spelling(name: Any, known: Iterable[str]) -> str | None:
    """Returns the known name that `name` misspells or begins; None if it is no misspelling.

    Names that are only similar, such as those of two algorithms, are not offered: at most two
    letters differ, one in names of up to five letters; capitals and separators do not count.
    """
    wanted = _letters(name)
    allowed = 2 if len(wanted) > 5 else 1

    # Not of a value that a file may make millions of characters long.
    if len(wanted) > LONGEST_NAME:
        return None
    found = {other: _edits(wanted, _letters(other)) for other in known}

    # Of two equally close ones, that which has more letters in common.
    def distance(other):
        common = difflib.SequenceMatcher(None, wanted, _letters(other)).ratio()
        return found[other], -common

    closest = min(found, key=distance, default=None)
    if closest is not None and found[closest] <= allowed:
        return closest

    # Part of a name, such as EDMHeun of EDMHeunScheduler, if only one name begins with it.
    begun = [other for other in found if _letters(other).startswith(wanted)]
    if len(wanted) > 2 and len(begun) == 1:
        return begun[0]
    return None


def names_with(name: Any, known: Iterable[str]) -> list[str]:
    """Returns the known names that `name`, of at least three letters, is a part of."""
    wanted = _letters(name)
    if not 3 <= len(wanted) <= LONGEST_NAME:
        return []
    return [other for other in known if wanted in _letters(other)]


def _letters(name: Any) -> str:
    """Returns a name in lower case, without what separates its words."""
    return re.sub(r"[\s_-]", "", str(name)).lower()


def _edits(first: str, second: str) -> int:
    """Returns how many letters must be added, removed, replaced or swapped (Damerau)."""
    # edits[i][j]: from the first i letters of `first` to the first j of `second`.
    edits = [list(range(len(second) + 1))]
    for i, letter in enumerate(first, 1):
        edits.append([i])
        for j, other in enumerate(second, 1):
            removed = edits[i - 1][j] + 1
            added = edits[i][j - 1] + 1
            replaced = edits[i - 1][j - 1] + (letter != other)
            fewest = min(removed, added, replaced)

            # Two neighbours that are swapped.
            if i > 1 and j > 1 and letter == second[j - 2] and first[i - 2] == other:
                fewest = min(fewest, edits[i - 2][j - 2] + 1)
            edits[i].append(fewest)
    return edits[-1][-1]
