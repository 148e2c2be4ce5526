"""`SHA256SUMS`: the digests of all that a run has exported, in the format of `sha256sum`.

`sha256sum -c` checks it too. A name in it is also what tells an export of cmjax from a file of the
user's: the digests are written before an export gets its name.
"""

import hashlib
import os
import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

from cmjax.files import open_regular, replacing

SUMS = "SHA256SUMS"
LONGEST_LINE = 2**12  # bytes; those of exports have about 100


def read_sums(folder: Path) -> dict[str, str]:
    """Returns the recorded SHA-256 digests of all exported files, by name.

    Raises:
        ValueError: if the file is damaged.
    """
    path = folder / SUMS
    if not os.path.lexists(path):
        return {}
    sums = {}
    with open_regular(path) as file:
        while line := file.readline(LONGEST_LINE):
            # 64 hex digits, two spaces, the name.
            if not re.fullmatch(rb"[0-9a-f]{64}  [ -~]+\n", line):
                raise ValueError(
                    f"{path} is damaged; remove it and the samples_* next to it, and run the same "
                    "generate_folder again, which makes them again"
                )
            digest, name = line.decode().rstrip("\n").split("  ", 1)
            sums[name] = digest
    return sums


def damaged_exports(folder: Path) -> Iterator[Path]:
    """Yields exported files that are altered or missing, and files that no export has written."""
    recorded = read_sums(folder)

    # A folder can hold several exports: of other formats, or of earlier, smaller numbers.
    there = {}
    for path in folder.glob("samples_*"):
        there |= digests_of(path, path.name, recorded)

    # A file in only one of the two is either missing or unknown: `get` gives None for it.
    for name in sorted(recorded.keys() | there.keys()):
        if recorded.get(name) != there.get(name):
            yield folder / name


def record_sums(folder: Path, export: str, digests: Mapping[str, str]) -> None:
    """Records the digests of an export, and drops those of exports that no longer exist.

    Args:
        folder: the folder of the run.
        export: the export's name in it.
        digests: by the names of its files, relative to the folder.
    """
    before = read_sums(folder)

    # A whole export that is gone was removed on purpose, and does not count as missing. Lines of
    # this export are replaced: an earlier one may have had other files.
    old = sums_of_export(before, export)
    kept = {
        name: digest
        for name, digest in before.items()
        if name not in old and os.path.lexists(folder / name.split("/")[0])
    }
    with replacing(folder / SUMS) as file:
        for name, digest in sorted({**kept, **digests}.items()):
            file.write(f"{digest}  {name}\n".encode())


def sums_of_export(sums: Mapping[str, str], export: str) -> dict[str, str]:
    """Selects the digests of one export, which is a file or a folder of files."""
    # Names are relative to the run's folder: "samples.npz", or "samples_png/000000.png".
    return {name: digest for name, digest in sums.items() if name.split("/")[0] == export}


def digests_of(
    path: Path, export: str, wanted: Container[str] | None = None
) -> dict[str, str]:
    """Computes the SHA-256 digests of an export's files, by their names in the run's folder.

    Args:
        path: the file or folder, which may have another name than the export yet.
        export: the export's name.
        wanted: names to compute digests for; None for all. Others, and what is no file or is a
            link, have "" instead.
    """
    files = {export: path}
    if path.is_dir() and not path.is_symlink():
        files = {f"{export}/{file.name}": file for file in sorted(path.iterdir())}
    digests = dict.fromkeys(files, "")
    for name, file in files.items():
        is_wanted = wanted is None or name in wanted
        if is_wanted and file.is_file() and not file.is_symlink():
            with open_regular(file) as opened:
                digests[name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return digests
