"""The settings of a folder of records: the base of those of all kinds of folders."""

import abc
import importlib.metadata
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import numpy as np

from cmjax.configs import is_int
from cmjax.version import __version__

SHARD_SIZE = 100  # records in a file, in a new folder
MAX_NUM = 2**32  # records of a folder: `fold_in` takes their numbers as 32 bits


class FolderSettings(abc.ABC):
    """Everything that the records of a folder depend on; a frozen dataclass.

    Attributes:
        KIND: what the folder holds, in the plural.
        FUNCTION: the function that fills such a folder, for errors.
        shard_size: number of records in a file.
    """

    KIND: ClassVar[str]
    FUNCTION: ClassVar[str]
    shard_size: int

    @property
    @abc.abstractmethod
    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of each array of a record, by name."""

    @abc.abstractmethod
    def arrays_of(self, shard: range, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays of a shard by name, `[n, ...]` each.

        Args:
            shard: the numbers of its records, n of them.
            rows: the records as they were made, `[n, ...]`.
        """

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Returns everything as one JSON object, which `from_json` reads."""

    @classmethod
    @abc.abstractmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Reads what `to_json` returned; raises ValueError for anything else."""

    @abc.abstractmethod
    def differences(self, other: Any) -> list[str]:
        """Returns a phrase for each setting that differs in `other`."""


def machine() -> dict[str, Any]:
    """Returns what decides the rounding of a run: fields that all kinds of folders have."""
    return {
        "platform": jax.default_backend(),
        "matmul_precision": getattr(jax.config, "jax_default_matmul_precision", None),
        "versions": {
            "cmjax": __version__,
            "jax": jax.__version__,
            "jaxlib": importlib.metadata.version("jaxlib"),
        },
    }


# Which values these fields may have, and the size of the shards: a file may say anything.
VALID_IN_ALL = {
    "platform": lambda value: isinstance(value, str),
    "matmul_precision": lambda value: value is None or isinstance(value, str),
    "versions": lambda value: isinstance(value, dict),
    "shard_size": lambda value: is_int(value, 1, MAX_NUM),
}
