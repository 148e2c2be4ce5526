"""Models on the Hugging Face hub."""

from pathlib import Path

from cmjax.checkpoints import diffusers, native
from cmjax.checkpoints.json_files import CLASS_NAMES

CONFIGS = [
    CLASS_NAMES,
    diffusers.INDEX,
    "unet/config.json",
    "scheduler/scheduler_config.json",
    native.CONFIG,
    native.SCHEDULER_CONFIG,
]
FOLDERS = ("", "unet/")
SAFETENSORS = [f"{folder}{diffusers.SAFETENSORS}" for folder in FOLDERS]
INDICES = [f"{name}.index.json" for name in SAFETENSORS]
SHARDS = [f"{folder}diffusion_pytorch_model-*.safetensors" for folder in FOLDERS]
TORCH = [f"{folder}{diffusers.TORCH}" for folder in FOLDERS]


def download(source: str) -> Path:
    """Downloads the files of a model into huggingface_hub's cache, unless they are there already.

    Args:
        source: `owner/name` or `owner/name@revision`. Token, cache folder and offline mode are
            those of huggingface_hub: `HF_TOKEN`, `HF_HOME`, `HF_HUB_OFFLINE`.

    Returns:
        The folder in the cache.

    Raises:
        ValueError: if it is not an id, or the hub does not have it or is out of reach.
    """
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ValueError(
            f"model {source!r} is not there; give a folder, a .pt file, or a hub id owner/name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = source.partition("@")
    wanted = [*CONFIGS, native.WEIGHTS, *SAFETENSORS, *INDICES, *SHARDS]
    try:
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=wanted))
        # Most repositories hold the same weights as .bin too; only take those where they are alone.
        if not any(folder.rglob("*.safetensors")):
            snapshot_download(repo, revision=revision or None, allow_patterns=TORCH)
    except LocalEntryNotFoundError:
        raise ValueError(
            f"model {source!r} is neither a folder nor in the hub's cache, and the hub is not "
            "reachable (offline, or HF_HUB_OFFLINE is set)"
        ) from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"model {source!r} is not a folder, and the hub answers: {error}"
        ) from None
    return folder
