"""Folders of pictures: which of their files are pictures, and whether their folders are classes."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
    """Returns the files of a folder that are not hidden; arguments as for `find_pictures`.

    A folder is looked into once, however many links lead to it.
    """
    root = os.path.realpath(folder)
    seen = {root}
    files, folders, links = _entries(folder)
    while below and (folders or links):
        # Links last and in order of their names, so that a file has the same path on every machine.
        if folders:
            inner = folders.pop()
        else:
            inner = links.pop(links.index(min(links)))
        target = os.path.realpath(inner)
        if inner.is_symlink() and Path(root).is_relative_to(target):
            raise ValueError(
                f"{inner} leads to {target}, in which it lies; remove the link"
            )
        if target in seen:
            continue
        seen.add(target)
        found = _entries(inner)
        files += found[0]
        folders += found[1]
        links += found[2]
    return files


def _entries(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Returns the files, the folders, and the links to folders in a folder, but hidden ones."""
    files = []
    folders = []
    links = []
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            files.append(path)
        elif path.is_symlink():
            links.append(path)
        else:
            folders.append(path)
    return files, folders, links


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


def check_not_around_classes(
    folder: Path, classes: Sequence[str], pictures: Sequence[str]
) -> None:
    """Checks that the only class is no folder around those of several, as archives have it.

    Args:
        folder: the folder of the data.
        classes: the names of the folders in it.
        pictures: the paths of all pictures.

    Raises:
        ValueError: if the pictures of the only class are all in folders of that one.
    """
    if len(classes) != 1:
        return
    places = [Path(picture).relative_to(folder).parts for picture in pictures]
    inner = sorted({place[1] for place in places})
    if len(inner) > 1 and all(len(place) > 2 for place in places):
        name = places[0][0]
        raise ValueError(
            f"{folder} holds one folder, {name}, whose folders ({', '.join(inner[:5])}) are one "
            f"class; give {folder / name} if each is a class"
        )
