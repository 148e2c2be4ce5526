"""Folders of pictures: which of their files are pictures, and whether their folders are classes."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from cmjax.files import check_regular

# Endings of pictures' names; what a file holds is checked when it is opened.
PICTURES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".avif",
    ".jp2",
    ".j2k",
    ".ppm",
    ".pgm",
    ".pbm",
    ".ico",
)
# Names of the folders of a data set that comes in parts, of which the first are to train on.
_TRAIN = ("train", "training")
_PARTS = (*_TRAIN, "val", "valid", "validation", "dev", "test", "testing")


def find_pictures(folder: Path, *, below: bool = False) -> list[str]:
    """Returns the paths of all pictures that are not hidden, in order of their names.

    Args:
        folder: the folder to look in.
        below: whether to look in all folders below it, too. Links to folders are followed.

    Raises:
        ValueError: for a link that leads nowhere, or to a folder that the link lies in.
        OSError: if a folder cannot be read.
    """
    return pictures_among(visible_files(folder, below=below))


def pictures_among(files: Iterable[Path]) -> list[str]:
    """Returns the paths of the pictures among files, in order of their names."""
    # Sorted, since the order of a folder differs between machines: the data of a step must not.
    found = []
    for file in files:
        if file.suffix.lower() in PICTURES:
            check_regular(file)
            found.append(str(file))
    return sorted(found)


def endings_of_others(files: Iterable[Path]) -> Counter[str]:
    """Returns how many of the files are no pictures, by the endings of their names."""
    endings = (file.suffix.lower() for file in files)
    return Counter(ending or "no ending" for ending in endings if ending not in PICTURES)


def visible_files(folder: Path, *, below: bool) -> list[Path]:
    """Returns the files of a folder that are not hidden; arguments as for `find_pictures`."""
    return list(_walk(folder, below, [os.path.realpath(folder)]))


def _walk(folder: Path, below: bool, within: list[str]) -> Iterator[Path]:
    """Yields the files of a folder, which lies `within` these."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
        elif below:
            target = os.path.realpath(path)
            if target in within:
                raise ValueError(
                    f"{path} leads back to {target}, in which it lies; remove the link"
                )
            yield from _walk(path, below, [*within, target])


def check_classes(folder: Path, classes: Mapping[str, list[str]], loose: list[str]) -> None:
    """Checks that all pictures are in the folder itself, or that each class has some.

    Args:
        folder: the folder.
        classes: the pictures in and below each of its folders, by name.
        loose: the pictures in the folder itself.

    Raises:
        ValueError: otherwise, or if the folders are no classes.
    """
    # The folders of a data set that comes in parts would silently become the labels.
    train = next((name for name in classes if name.lower() in _TRAIN), None)
    if train and all(name.lower() in _PARTS for name in classes):
        raise ValueError(
            f"{folder} holds {', '.join(classes)}: the parts of a data set, not classes; give "
            f"{folder / train}"
        )

    # Folders without pictures, such as one of notes, are fine next to loose pictures.
    empty = [name for name, files in classes.items() if not files]
    if loose and len(empty) < len(classes):
        raise ValueError(
            f"{folder} holds pictures and also folders of pictures, its classes; "
            f"move {loose[0]} into one"
        )
    if not loose and len(empty) == len(classes):
        raise ValueError(
            f"{folder} must hold pictures ({', '.join(PICTURES)}), "
            "or a folder of them for each class"
        )
    if not loose and empty:
        raise ValueError(
            f"{folder / empty[0]} is a class without pictures ({', '.join(PICTURES)}); remove it"
        )

    # A folder around the folders of all classes, as archives have it, would make them one class.
    if not loose and len(classes) == 1:
        ((name, files),) = classes.items()
        places = [Path(file).relative_to(folder).parts for file in files]
        inner = sorted({place[1] for place in places})
        if len(inner) > 1 and all(len(place) > 2 for place in places):
            raise ValueError(
                f"{folder} holds one folder, {name}, whose folders ({', '.join(inner[:5])}) would "
                f"be a single class; give {folder / name}"
            )
