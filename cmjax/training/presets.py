"""Training configurations by name: small ones, and the papers' as far as the papers print them.

Each is a commented file of the package: the small ones in `assets/configs`, the papers' in its
folder `papers`. Of the papers' none was run here: each needs many accelerators. What differs from
the paper is said in the file.

Give `data.source`, and for a distillation `teacher.model`, with `--set`; for DMD `run.init`, the
model that it begins as, which is also its teacher.
"""

import tomllib
from pathlib import Path
from typing import Any

from cmjax.configs import did_you_mean, shown

_FOLDER = Path(__file__).parent.parent / "assets" / "configs"

# The small presets, with what `data.source` must be where the file cannot say.
_DIGITS = (
    "an .npz of 28x28 digits and their labels, such as Keras's mnist.npz "
    "(cmjax sample --num 5000 --out drawn.npz draws some to try it with)"
)
SMALL = {
    "digits": _DIGITS,
    "digits_distilled": _DIGITS,
    "digits_mean_flow": _DIGITS,
    "digits_pixel_mean_flow": _DIGITS,
    "pictures": "a folder of pictures, or an .npz of them",
    "pictures_diffusers": "a folder of pictures, or an .npz of them",
}

# The papers' presets, each as nested dictionaries of its sections and their keys.
PRESETS: dict[str, dict[str, Any]] = {
    path.stem: tomllib.loads(path.read_text(encoding="utf-8"))
    for path in sorted((_FOLDER / "papers").glob("*.toml"))
}


def preset_names() -> list[str]:
    """Returns the names of all presets, the small ones first."""
    return [*SMALL, *PRESETS]


def preset_text(name: str) -> str:
    """Returns a preset as TOML, to be read or to be changed by hand.

    Raises:
        ValueError: if there is no such preset.
    """
    if name not in preset_names():
        hint = did_you_mean(name, preset_names())
        raise ValueError(f"there is no preset {shown(name)}{hint}")
    folder = _FOLDER if name in SMALL else _FOLDER / "papers"
    return (folder / f"{name}.toml").read_text(encoding="utf-8")
