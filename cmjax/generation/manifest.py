"""The manifest of a folder: what its records depend on; other settings are refused."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmjax.checkpoints.json_files import LARGEST_JSON, parse_json
from cmjax.configs import shown
from cmjax.files import (
    MANIFEST,
    REMOVED,
    TEMPORARY,
    check_no_link,
    check_writable,
    path_of,
    replacing,
)
from cmjax.generation.folder_settings import FolderSettings
from cmjax.generation.settings import RunSettings
from cmjax.generation.shards import Shards
from cmjax.generation.sums import SUMS
from cmjax.processes import LOCK


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of a folder's manifest.

    Attributes:
        settings: everything that the records depend on.
        source: what the model was loaded from: a path relative to the folder, or the name of a
            path elsewhere, or a hub id; "" if that is unknown.
    """

    settings: Any  # a `FolderSettings`
    source: str

    def local_source(self, folder: Path) -> str | None:
        """Returns the path of the model if it is there, on this machine; else None.

        The manifest may be somebody else's: no other name in it is looked up anywhere.
        """
        if not self.source or os.path.isabs(self.source):
            return None
        path = folder.absolute() / path_of(self.source)
        return os.fspath(path) if os.path.exists(path) else None


def check_folder(folder: Path, cls: type[FolderSettings] = RunSettings) -> None:
    """Raises ValueError unless a folder is new, empty, or that of a run whose settings are `cls`.

    Where files of a run go there must be files, and no links, which could lead to anywhere.
    """
    if not folder.exists():
        return
    for name in (MANIFEST, SUMS):
        check_writable(folder / name)
    for path in (folder / "shards", folder / "shards" / REMOVED, folder / REMOVED):
        check_no_link(path)

    # Other programs have files of that name too: a whole one is ours.
    if (folder / MANIFEST).exists():
        read_manifest(folder, cls)
        return

    # A run that ended before its manifest was written leaves a lock or a temporary file.
    names = sorted(file.name for file in folder.iterdir())
    others = [name for name in names if name != LOCK and not re.fullmatch(TEMPORARY, name)]
    if "shards" in others:
        raise ValueError(
            f"{folder} holds shards without the {MANIFEST} of their run; copy it from the folder "
            "that they were made in, or choose another folder"
        )
    if others:
        raise ValueError(
            f"{folder} must be new or empty, or of the same run, but holds {others[0]}; "
            "choose another folder"
        )


def open_shards(folder: Path, settings: Any, source: str, shard_size: int | None) -> Shards:
    """Opens the folder of a run, or starts a new run in it.

    Args:
        folder: the folder of the run, which must exist.
        settings: a `FolderSettings`; its `shard_size` is replaced.
        source: what the model was loaded from, for `cmjax generate --verify`.
        shard_size: number of records in a shard; None for that of the folder, or for that of
            `settings` in a new folder.

    Raises:
        ValueError: if the folder is of a run with other settings, or its manifest is damaged.
        OSError: if the folder cannot be written.
    """
    path = folder / MANIFEST
    if path.exists():
        # An existing run: its settings must be equal.
        before = read_manifest(folder, type(settings)).settings
        now = dataclasses.replace(settings, shard_size=shard_size or before.shard_size)
        if different := before.differences(now):
            raise ValueError(
                f"{folder} holds {settings.KIND} made with other settings: "
                f"{'; '.join(different)}; "
                "choose another folder"
            )

        # Not `now`: 70 and 70.0 are equal, but as JSON they give different digests.
        settings = before
    else:
        # A new run. The manifest is written before the folder `shards` exists, so that there are
        # never shards without one.
        settings = dataclasses.replace(
            settings, shard_size=shard_size or settings.shard_size
        )
        content = {"settings": settings.to_json(), "source": _portable(source, folder)}
        text = json.dumps({**content, "digest": _digest(content)}, indent=1).encode()
        if len(text) > LARGEST_JSON:
            raise ValueError(
                f"the manifest would have {len(text)} bytes, more than {LARGEST_JSON}; "
                "give fewer labels or levels"
            )
        with replacing(path) as file:
            file.write(text)
    (folder / "shards").mkdir(exist_ok=True)
    return Shards(folder, settings)


def read_manifest(folder: Path, cls: type[FolderSettings] = RunSettings) -> Manifest:
    """Returns the manifest of a run.

    Args:
        folder: the folder of the run.
        cls: the class of its settings.

    Raises:
        ValueError: if the folder holds none, a damaged one, one of another version, or another kind
            of records.
    """
    path = folder / MANIFEST

    if not os.path.lexists(path):
        raise ValueError(f"{folder} has no {MANIFEST}; {cls.FUNCTION} has not made it")

    # Checked by a digest of its own: a manifest edited by hand would otherwise make all shards
    # look damaged, as their digests depend on it.
    try:
        content = parse_json(path)
        if content.pop("digest") != _digest(content):
            raise ValueError
        settings = content["settings"]
        source = content["source"]
        found = settings.get("kind", RunSettings.KIND)
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(
            f"{path} is damaged; restore it, or choose another folder"
        ) from None

    if found != cls.KIND:
        raise ValueError(
            f"{folder} holds {shown(found)}, not {cls.KIND}; choose another folder"
        )

    # A manifest of a version with other settings is whole, but this run cannot be resumed.
    try:
        if not isinstance(source, str):
            raise ValueError(f"the source is {shown(source)}")
        return Manifest(cls.from_json(settings), source)
    except ValueError as error:
        raise ValueError(f"{path}: {str(error)[:1000]}; choose another folder") from None


def _portable(source: str, folder: Path) -> str:
    """Returns what to write down of where a model came from, without any absolute path.

    Such a path means nothing on another machine, and tells everybody the user's folders.
    """
    if not os.path.isabs(source) and not os.path.exists(source):
        return source  # a hub id, or "" for the bundled model

    # Relative to the run's folder, which may be moved together with the model. If they have no
    # folder in common but the root, only the name.
    here = os.path.realpath(source)
    there = os.path.realpath(folder)
    try:
        common = os.path.commonpath([here, there])
    except ValueError:  # on different drives
        common = os.path.sep
    if os.path.dirname(common) == common:
        return os.path.basename(here)
    return Path(os.path.relpath(here, there)).as_posix()


def _digest(content: Mapping[str, Any]) -> str:
    # Sorted keys: the digest depends on the content, not on the order in which it is written.
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
