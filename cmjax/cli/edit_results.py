"""Where `cmjax edit` writes: a strip for the eye, or a folder of the results alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmjax.cli import checks

if TYPE_CHECKING:
    import numpy as np

PICTURE = ".png"
TILE = 112  # pixels that a picture's side is enlarged to in a strip, at least
COLUMNS = 12  # pictures in a row of a strip, at most


def is_folder(out: Path) -> bool:
    """Returns whether `--out` names a folder: one that is there, or a name without a suffix."""
    return out.is_dir() or not out.suffix


def result_names(stem: str, num: int) -> list[str]:
    """Returns the names of the results of one picture: cat.png, or cat_1.png, cat_2.png, ..."""
    if num == 1:
        return [f"{stem}{PICTURE}"]
    digits = len(str(num))
    return [f"{stem}_{number:0{digits}}{PICTURE}" for number in range(1, num + 1)]


def check_results(
    out: Path,
    given: Sequence[Path],
    stems: Sequence[str],
    num: int,
    mask: Path | None = None,
) -> None:
    """Checks before sampling that `--out` can be written, and that no picture would be lost.

    Args:
        out: the value of `--out`.
        given: the pictures that are edited.
        stems: what the names of their results begin with, one for each picture.
        num: number of results of each.
        mask: the file of the mask, or None.

    Raises:
        ValueError: if `out` cannot be written, is a file for many pictures, or if results would
            replace a picture or mask that is given, or each other.
    """
    # The same file may have other names: by a link, or in capitals.
    originals = [path for path in (*given, mask) if path is not None and path.exists()]

    def is_original(path: Path) -> bool:
        return path.exists() and any(path.samefile(original) for original in originals)

    if not is_folder(out):
        if len(stems) > 1:
            raise ValueError(
                f"--out: results of {len(stems)} pictures need a folder, not {str(out)!r}; "
                "give --out DIR"
            )
        if out.suffix.lower() != PICTURE:
            raise ValueError(
                f"--out must end in {PICTURE} (a picture) or name a folder, got {str(out)!r}"
            )
        if is_original(out):
            raise ValueError(
                f"--out: {out} is a picture or mask to read, and would be replaced; give another "
                "name"
            )
        checks.check_out(out, {PICTURE: "a picture"})
        return

    # The folder itself may be new, but not the one that it is in.
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: {out} is a file; give a folder, or a name with {PICTURE}")
    checks.check_out_folder(out if out.is_dir() else out.parent)
    made: dict[str, Path | str] = {}
    for source, stem in zip(given or stems, stems, strict=True):
        for name in result_names(stem, num):
            if is_original(out / name):
                raise ValueError(
                    f"--out: a result would replace {out / name}, a picture or mask to read; "
                    "give another folder"
                )
            if out.is_dir():
                checks.check_out_file(out / name)
            if name in made:
                raise ValueError(
                    f"--out: {made[name]} and {source} would both become {name}; rename one"
                )
            made[name] = source


def write_results(
    out: Path,
    stem: str,
    shown: "Mapping[str, np.ndarray]",
    results: Any,
    captions: Sequence[object],
) -> None:
    """Writes the results of one picture, as a strip or one by one.

    Args:
        out: a file for the strip, or a folder for the results alone.
        stem: what the names of the results begin with.
        shown: what a strip shows before the results, f32[H, W, C] in [-1, 1] by caption.
        results: `[N, H, W, C]` in [-1, 1].
        captions: one for each result, for the strip.

    Raises:
        ValueError: if some are not finite.
        OSError: if a file cannot be written.
    """
    import numpy as np

    from cmjax.images import save_grid, to_uint8

    # Converted to uint8, NaN would pass for a colour.
    results = np.asarray(results)
    if not np.isfinite(results).all():
        raise ValueError("the results are not finite; the model is broken")
    if is_folder(out):
        names = result_names(stem, len(results))
        for name, pixels in zip(names, to_uint8(results), strict=True):
            _save(out / name, pixels)
        return

    # Small pictures are enlarged by a whole factor, so that pixels stay squares.
    tiles = results
    if shown:
        before = np.stack(list(shown.values()))
        tiles = np.concatenate([before, results])
    save_grid(
        out,
        to_uint8(tiles),
        columns=min(len(tiles), COLUMNS),
        labels=[*shown, *captions],
        scale=max(1, TILE // tiles.shape[1]),
    )


def _save(path: Path, pixels: "np.ndarray") -> None:
    """Writes one result u8[H, W, C] whole or not at all, making its folder if it is new."""
    from cmjax.files import replacing
    from cmjax.image_files import picture_of

    path.parent.mkdir(exist_ok=True)
    with replacing(path) as file:
        picture_of(pixels).save(file, "PNG")
