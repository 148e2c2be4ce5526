"""The manifest of a folder says what its samples depend on; a run with anything else is refused."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmjax.files import replacing
from cmjax.generation.settings import RunSettings
from cmjax.generation.shards import Shards

MANIFEST = "manifest.json"
LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder says of itself.

    Attributes:
        settings: everything that its samples depend on.
        source: what its model was loaded from; "" if that is unknown.
    """

    settings: RunSettings
    source: str


def check_folder(folder: Path) -> None:
    """Raises ValueError unless a folder is one of a run, or new or empty."""
    if (folder / MANIFEST).exists() or not folder.exists():
        return
    ours = (LOCK, ".cmjax-")  # of a run that ended before its manifest was there
    names = sorted(file.name for file in folder.iterdir())
    if others := [name for name in names if not name.startswith(ours)]:
        raise ValueError(
            f"{folder} must be new or empty, or of the same run, but holds {others[0]}; "
            "choose another folder"
        )


def open_shards(folder: Path, settings: RunSettings, source: str, shard_size: int | None) -> Shards:
    """Opens the folder of a run, or begins one.

    Args:
        folder: of the run; there already.
        settings: everything that samples depend on; `shard_size` replaces its own.
        source: of the model, for `cmjax generate --verify`.
        shard_size: samples in a shard; None for that of the folder, or of `settings` if it is new.

    Raises:
        ValueError: if the folder is of a run with other settings, or holds something else.
        OSError: if it cannot be written.
    """
    path = folder / MANIFEST
    if path.exists():
        before = read_manifest(folder).settings
        now = dataclasses.replace(settings, shard_size=shard_size or before.shard_size)
        if different := before.differences(now):
            raise ValueError(
                f"{folder} holds samples of other settings: {'; '.join(different)}; "
                "choose another folder"
            )
        settings = before  # 70 and 70.0 are equal, but the digests of their texts are not
    else:
        settings = dataclasses.replace(settings, shard_size=shard_size or settings.shard_size)
        content = {"settings": settings.to_json(), "source": source}
        with replacing(path) as file:
            file.write(json.dumps({**content, "digest": _digest(content)}, indent=1).encode())
    (folder / "shards").mkdir(exist_ok=True)
    return Shards(folder, settings)


def read_manifest(folder: Path) -> Manifest:
    """Returns the manifest of a run.

    Raises:
        ValueError: if the folder holds none, a damaged one, or one of another version.
    """
    path = folder / MANIFEST

    # A manifest that was edited by hand would make all shards look damaged: say so here.
    try:
        content = json.loads(path.read_text())
        if content.pop("digest") != _digest(content):
            raise ValueError
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {MANIFEST}; generate_folder has not made it") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"{path} is damaged; restore it, or choose another folder") from None

    # A version with other settings cannot say what these samples depend on.
    try:
        return Manifest(RunSettings.from_json(content["settings"]), content["source"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}; choose another folder") from None


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
