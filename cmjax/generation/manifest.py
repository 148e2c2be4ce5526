"""The manifest of a run's folder: what its samples depend on; other settings are refused."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmjax.files import replacing
from cmjax.generation.settings import RunSettings
from cmjax.generation.shards import Shards
from cmjax.processes import LOCK

MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of a folder's manifest.

    Attributes:
        settings: everything that the samples depend on.
        source: what the model was loaded from; "" if that is unknown.
    """

    settings: RunSettings
    source: str


def check_folder(folder: Path) -> None:
    """Raises ValueError unless a folder is new, empty, or that of a run."""
    if (folder / MANIFEST).exists() or not folder.exists():
        return

    # A run that ended before its manifest was written leaves a lock or a temporary file.
    ours = (LOCK, ".cmjax-")
    names = sorted(file.name for file in folder.iterdir())
    if others := [name for name in names if not name.startswith(ours)]:
        raise ValueError(
            f"{folder} must be new or empty, or of the same run, but holds {others[0]}; "
            "choose another folder"
        )


def open_shards(
    folder: Path, settings: RunSettings, source: str, shard_size: int | None
) -> Shards:
    """Opens the folder of a run, or starts a new run in it.

    Args:
        folder: the folder of the run, which must exist.
        settings: everything that the samples depend on; its `shard_size` is replaced.
        source: what the model was loaded from, for `cmjax generate --verify`.
        shard_size: number of samples in a shard; None for that of the folder, or for that of
            `settings` in a new folder.

    Raises:
        ValueError: if the folder is of a run with other settings, or its manifest is damaged.
        OSError: if the folder cannot be written.
    """
    path = folder / MANIFEST
    if path.exists():
        # An existing run: its settings must be equal.
        before = read_manifest(folder).settings
        now = dataclasses.replace(settings, shard_size=shard_size or before.shard_size)
        if different := before.differences(now):
            raise ValueError(
                f"{folder} holds samples made with other settings: {'; '.join(different)}; "
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
        content = {"settings": settings.to_json(), "source": source}
        with replacing(path) as file:
            file.write(
                json.dumps({**content, "digest": _digest(content)}, indent=1).encode()
            )
    (folder / "shards").mkdir(exist_ok=True)
    return Shards(folder, settings)


def read_manifest(folder: Path) -> Manifest:
    """Returns the manifest of a run.

    Raises:
        ValueError: if the folder holds none, a damaged one, or one of another version.
    """
    path = folder / MANIFEST

    # Checked by a digest of its own: a manifest edited by hand would otherwise make all shards
    # look damaged, as their digests depend on it.
    try:
        content = json.loads(path.read_text())
        if content.pop("digest") != _digest(content):
            raise ValueError
    except FileNotFoundError:
        raise ValueError(
            f"{folder} has no {MANIFEST}; generate_folder has not made it"
        ) from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(
            f"{path} is damaged; restore it, or choose another folder"
        ) from None

    # A manifest of a version with other settings is whole, but these samples cannot be resumed.
    try:
        return Manifest(RunSettings.from_json(content["settings"]), content["source"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}; choose another folder") from None


def _digest(content: Mapping[str, Any]) -> str:
    # Sorted keys: the digest depends on the content, not on the order in which it is written.
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
