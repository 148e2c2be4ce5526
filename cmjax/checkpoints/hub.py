"""Models on the Hugging Face hub."""

from pathlib import Path

from cmjax.checkpoints import diffusers, native
from cmjax.checkpoints.json_files import CLASS_NAMES

# Files of a pipeline, and of a cmjax folder.
CONFIGS = [
    CLASS_NAMES,
    diffusers.INDEX,
    "unet/config.json",
    "scheduler/scheduler_config.json",
    native.CONFIG,
    native.SCHEDULER_CONFIG,
]

# Weights are in the folder itself (a UNet alone) or in that of a pipeline's network; large ones are
# divided into shards, which an index lists.
FOLDERS = ("", "unet/")
SAFETENSORS = [f"{folder}{diffusers.SAFETENSORS}" for folder in FOLDERS]
INDICES = [f"{name}.index.json" for name in SAFETENSORS]
SHARDS = [f"{folder}diffusion_pytorch_model-*.safetensors" for folder in FOLDERS]
TORCH = [f"{folder}{diffusers.TORCH}" for folder in FOLDERS]


def download(source: str) -> Path:
    """Downloads a model's files into huggingface_hub's cache, unless they are there already.

    Args:
        source: `owner/name` or `owner/name@revision`. Token, cache folder and offline mode are
            those of huggingface_hub: `HF_TOKEN`, `HF_HOME`, `HF_HUB_OFFLINE`.

    Returns:
        The folder in the cache.

    Raises:
        ValueError: if it is not an id, or the hub does not have it or cannot be reached.
    """
    # A path that does not exist comes here too; the hub need not be asked for "./runs/mine".
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ValueError(
            f"model {source!r} is not there; give a folder, a .pt file, or a hub id owner/name"
        )

    # Imported late: most models are on disk already.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    repo, _, revision = source.partition("@")
    wanted = [*CONFIGS, native.WEIGHTS, *SAFETENSORS, *INDICES, *SHARDS]
    try:
        folder = Path(
            snapshot_download(repo, revision=revision or None, allow_patterns=wanted)
        )
        # Most repositories hold the same weights as .bin too: gigabytes that nobody reads.
        if not any(folder.rglob("*.safetensors")):
            snapshot_download(repo, revision=revision or None, allow_patterns=TORCH)
    # Nothing is cached and the hub did not answer, of which its own message says little.
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
