"""Folders of encoded data: mean and standard deviation of every picture's latents."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from cmjax.autoencoder import Autoencoder
from cmjax.checkpoints.autoencoders import load_autoencoder
from cmjax.checkpoints.json_files import parse_json
from cmjax.configs import is_int, shown
from cmjax.files import MANIFEST
from cmjax.generation.folder_settings import MAX_NUM, VALID_IN_ALL, FolderSettings
from cmjax.generation.manifest import read_manifest
from cmjax.generation.records import Records
from cmjax.generation.settings import autoencoder_digest
from cmjax.generation.shards import Shards
from cmjax.progress import Bar
from cmjax.training.latents import STD

DECODER = "vae"  # the folder of the autoencoder in such a folder
WHOLE = 2**28  # bytes of shards whose digests are checked before a training


@dataclasses.dataclass(frozen=True)
class MomentsSettings(FolderSettings):
    """Everything that the moments of a data set depend on.

    Attributes:
        data: what tells the pictures from others, the source's `fingerprint`.
        num: number of records.
        flip: whether each picture is followed by its mirror image.
        picture_shape: (H, W, C) of the pictures.
        shape: (h, w, c) of the latents.
        is_random: whether latents have a standard deviation; those of an `AutoencoderTiny` do not.
        has_labels: whether pictures have classes.
        class_names: one name per class; none if the classes have numbers alone.
        autoencoder: the digest of the autoencoder.
        dtype: what it computed in; the moments are stored in float32.
        platform: JAX's name of the backend, such as "cpu".
        matmul_precision: JAX's setting `jax_default_matmul_precision`, or None.
        versions: the versions of cmjax, jax and jaxlib, by name.
        shard_size: number of records in a file.
    """

    KIND: ClassVar[str] = "moments"
    FUNCTION: ClassVar[str] = "encode_folder"

    data: dict[str, Any]
    num: int
    flip: bool
    picture_shape: list[int]
    shape: list[int]
    is_random: bool
    has_labels: bool
    class_names: list[str]
    autoencoder: str
    dtype: str
    platform: str
    matmul_precision: str | None
    versions: dict[str, str]
    shard_size: int

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of a record's arrays: mean, and std and label where there are any."""
        latent = (tuple(self.shape), np.dtype(np.float32))
        found: dict[str, tuple[tuple[int, ...], np.dtype]] = {"mean": latent}
        if self.is_random:
            found["std"] = latent
        if self.has_labels:
            found["labels"] = ((), np.dtype(np.int32))
        return found

    @property
    def row(self) -> np.dtype:
        """The dtype of a record, with a field for each of its arrays."""
        return np.dtype(
            [(name, dtype, shape) for name, (shape, dtype) in self.arrays.items()]
        )

    def arrays_of(self, shard: range, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays of a shard by name, `[n, ...]`; rows are of the dtype `row`."""
        return {name: np.ascontiguousarray(rows[name]) for name in self.arrays}

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as one flat JSON object, on whose text the digests depend."""
        return {"kind": self.KIND, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Builds the settings that `to_json` wrote; raises ValueError for anything else."""
        names = [field.name for field in dataclasses.fields(cls)]
        if odd := sorted({"kind", *names} ^ values.keys()):
            raise ValueError(
                f"the settings of another version of cmjax differ in {', '.join(odd)}"
            )
        for name, is_valid in _VALID.items():
            if not is_valid(values[name]):
                raise ValueError(f"the settings have {name}={shown(values[name])}")
        return cls(**{name: values[name] for name in names})

    def differences(self, other: Self) -> list[str]:
        """Returns a phrase for each setting that differs in `other`."""
        before = self.to_json()
        now = other.to_json()
        return [
            f"{name} was {shown(before[name])}, now {shown(now[name])}"
            for name in before
            if before[name] != now[name]
        ]


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(is_int(n, 1) for n in value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


_VALID = {
    "data": lambda value: isinstance(value, dict),
    "num": lambda value: is_int(value, 1, MAX_NUM),
    "flip": lambda value: isinstance(value, bool),
    "picture_shape": _is_shape,
    "shape": _is_shape,
    "is_random": lambda value: isinstance(value, bool),
    "has_labels": lambda value: isinstance(value, bool),
    "class_names": _are_texts,
    "autoencoder": lambda value: isinstance(value, str),
    "dtype": lambda value: isinstance(value, str),
    **VALID_IN_ALL,
}


class Moments:
    """Records of encoded data, of which the trainer draws latents.

    A record has "data", the mean f32[h, w, c] as samplers want latents; "data_std", its standard
    deviation, if the autoencoder has one; and "class_labels", if there are labels. Records are read
    when needed, so the data may be larger than the memory.

    Args:
        folder: a folder that `encode_folder` has finished.

    Attributes:
        settings: everything that the moments depend on.
        classes: one name per class, or none.

    Raises:
        ValueError: if it is not such a folder, is not finished, or its manifest is damaged.
    """

    def __init__(self, folder: str | Path):  # noqa: D107
        self.folder = Path(folder)
        self.settings = read_manifest(self.folder, MomentsSettings).settings
        self.classes = self.settings.class_names
        self._shards = Shards(self.folder, self.settings)
        self._records = Records(self._shards, self.settings.num)

    def __len__(self) -> int:
        """Number of records."""
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record number `index`."""
        arrays = self._records.read(index)
        record: dict[str, Any] = {"data": arrays["mean"]}
        if "std" in arrays:
            record[STD] = arrays["std"]
        if "labels" in arrays:
            record["class_labels"] = arrays["labels"]
        return record

    def fingerprint(self) -> dict[str, Any]:
        """Returns, as JSON, what tells these moments from others."""
        # The name of a shard has a digest of its content and of all settings.
        digest = hashlib.blake2b(digest_size=16)
        for _, path in self._records.files:
            digest.update(f"{path.name}\n".encode())
        return {
            "samples": len(self),
            "shape": self.settings.shape,
            "digest": digest.hexdigest(),
        }

    def labels(self) -> np.ndarray | None:
        """The labels of all records, i32[N], or None."""
        return self._records.column("labels") if self.settings.has_labels else None

    def check(self, *, shown: bool = False) -> None:
        """Checks the digests of as many shards, evenly spaced, as `WHOLE` bytes of files hold.

        Args:
            shown: whether to show a progress bar.

        Raises:
            ValueError: naming a file that is damaged.
        """
        files = self._records.files
        total = sum(path.stat().st_size for _, path in files)
        chosen = files[:: max(1, -(-total // WHOLE))]
        doing = "looking at the data"
        with Bar(len(chosen), unit="file", doing=doing, shown=shown, keep=False) as bar:
            for number, (shard, path) in enumerate(chosen):
                self._shards.read(shard, path, "mean")
                bar.advance_to(number + 1)

    def autoencoder(self) -> Autoencoder:
        """Loads the autoencoder that made the moments.

        Raises:
            ValueError: if it is not there, or is another one.
        """
        path = self.folder / DECODER

        # Otherwise a relative path would be an id of the hub, of somebody else's autoencoder.
        if not path.is_dir():
            raise ValueError(
                f"{path} is missing; put it back, or name the autoencoder by data.autoencoder"
            )
        found = load_autoencoder(path)
        if autoencoder_digest(found) != self.settings.autoencoder:
            raise ValueError(
                f"{path} is not the autoencoder that encoded {self.folder}; put that one back"
            )
        return found


def holds_moments(folder: Path) -> bool:
    """Returns whether a folder is one of `encode_folder`, by its manifest."""
    try:
        settings = parse_json(folder / MANIFEST)["settings"]
        return settings["kind"] == MomentsSettings.KIND
    except (KeyError, TypeError, OSError):
        return False
    except ValueError:
        # A damaged one; opening the folder says so. Pictures may have a file of this name, too.
        return (folder / MANIFEST).exists() and (folder / "shards").is_dir()
