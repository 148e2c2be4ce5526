"""How stored runs are packed: one flat array per quantity, all cases one after the other."""

import numpy as np


def pack(cases: list[dict]) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Takes the arrays out of the cases.

    Returns the cases with the shapes of their arrays instead, and one flat array per quantity.
    """
    rest = []
    parts = {}
    for case in cases:
        arrays = {
            key: value for key, value in case.items() if isinstance(value, np.ndarray)
        }
        others = {key: value for key, value in case.items() if key not in arrays}
        rest.append(
            others | {"shapes": {key: value.shape for key, value in arrays.items()}}
        )
        for key, value in arrays.items():
            parts.setdefault(key, []).append(value.ravel())
    return rest, {key: np.concatenate(parts[key]) for key in sorted(parts)}
