"""Models on disk."""

from pathlib import Path

from jax.typing import DTypeLike

from cmjax.checkpoints import native
from cmjax.checkpoints.model import Model
from cmjax.checkpoints.native import save

BUNDLED = Path(__file__).parent.parent / "assets" / "digits"


def load(source: str | Path | None = None, *, dtype: DTypeLike | None = None) -> Model:
    """Loads a model.

    Args:
        source: a cmjax folder, or the id of one on the Hugging Face hub (`owner/name`, optionally
            `owner/name@revision`); None is the bundled digits model.
        dtype: of the parameters; None is float32. The network computes in the dtype of its input.

    Returns:
        `Model(apply_fn, params, scheduler, config)`.

    Raises:
        ValueError: if there is no such model, or it is not one that cmjax reads.
    """
    if source is None:
        return native.load(BUNDLED, dtype=dtype)
    path = Path(source)
    if path.is_dir():
        return native.load(path, dtype=dtype)
    if path.exists() or str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise ValueError(f"model {str(source)!r} is not a folder; give a cmjax folder or a hub id owner/name")
    return native.load(_download(str(source)), dtype=dtype)


def _download(source: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = source.partition("@")
    try:
        return snapshot_download(repo, revision=revision or None)
    except LocalEntryNotFoundError:
        raise ValueError(
            f"model {source!r} is neither a folder, nor in the hub's cache, nor is the hub reachable"
        ) from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(f"model {source!r} is not a folder, and the hub answers: {error}") from None


__all__ = ["BUNDLED", "Model", "load", "save"]
