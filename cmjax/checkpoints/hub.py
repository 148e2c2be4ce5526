"""Models on the Hugging Face hub."""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from cmjax.checkpoints import diffusers, diffusers_weights, dit_pipelines, native
from cmjax.checkpoints.autoencoder_config_files import PART as AUTOENCODER
from cmjax.checkpoints.json_files import CLASS_NAMES, read_json
from cmjax.checkpoints.weight_files import (
    FLAX,
    STEM,
    has_weights,
    only_variant,
    weight_names,
)
from cmjax.spelling import close_spelling

# Configs besides the network's own: those of a pipeline, and of a cmjax folder.
CONFIGS = [
    CLASS_NAMES,
    diffusers.INDEX,
    "scheduler/scheduler_config.json",
    native.CONFIG,
    native.SCHEDULER_CONFIG,
]
SOURCES = "a folder, a file or a hub id owner/name"  # where a model can be, for errors
PATIENCE = 10.0  # seconds that the hub may take to answer a request


def download(
    source: str,
    parts: Sequence[str] = ("unet", dit_pipelines.PART),
    networks: Collection[str] = (diffusers.NETWORK, *dit_pipelines.NETWORKS),
    last: Sequence[str] = (),
    further: Sequence[str] = (AUTOENCODER,),
) -> Path:
    """Downloads a model's files into huggingface_hub's cache, unless they are there already.

    Args:
        source: `owner/name` or `owner/name@revision`. Token, cache folder and offline mode are
            those of huggingface_hub: `HF_TOKEN`, `HF_HOME`, `HF_HUB_OFFLINE`.
        parts: the folders that the network may be in, in a pipeline.
        networks: the classes of diffusers that it may be of.
        last: files of weights to ask for if there are no others.
        further: folders of further networks, which a pipeline or a cmjax folder may have besides.

    Returns:
        The folder in the cache.

    Raises:
        ValueError: if it is not an id, or the hub does not have it, cannot be reached, or does not
            answer as a hub does.
    """
    # A path that does not exist comes here too; the hub need not be asked for "./runs/mine".
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ValueError(
            f"model {source!r} is not there{_near_path(source)}; give a folder, a .pt file, or a "
            "hub id owner/name"
        )

    # First the configs and the weights as most repositories have them: in the repository itself (a
    # network alone) or in the folder of a pipeline's network. Large ones are divided into shards,
    # which an index lists.
    weights = [native.WEIGHTS]
    for folder in ("", *(f"{part}/" for part in (*parts, *further))):
        single = f"{folder}{diffusers_weights.SAFETENSORS}"
        weights += [single, f"{single}.index.json", f"{folder}{STEM}-*.safetensors"]
    configs = [f"{part}/{diffusers.CONFIG}" for part in (*parts, *further)]
    found = _fetch(source, [*CONFIGS, *configs, *weights])

    # Then what is missing, whatever other files the cache holds: .bin files hold the same weights
    # as gigabytes that nobody reads, and variants less exact ones.
    inside = ""
    if (found / diffusers.INDEX).exists():
        there = [part for part in parts if (found / part / diffusers.CONFIG).exists()]
        inside = f"{(there or parts)[0]}/"
    if inside or _is_network(found, networks):
        found = _fetch_missing(source, found, inside, last)
    for part in further:
        if (found / part / diffusers.CONFIG).exists():
            found = _fetch_missing(source, found, f"{part}/", [FLAX])
    return found


def _near_path(source: str) -> str:
    """Returns the path that a misspelt one may mean, as " (did you mean ...?)", or ""."""
    # The first part that is not there, among what lies next to it. A source may be no path at all,
    # and its folders may not be open to everybody.
    try:
        path = Path(source).expanduser()
        missing = [part for part in (path, *path.parents) if not part.exists()][-1]
        beside = [entry.name for entry in missing.parent.iterdir()]
    except (OSError, ValueError, RuntimeError, IndexError):
        return ""
    close = close_spelling(missing.name, beside)
    if not close:
        return ""
    meant = missing.with_name(close) / path.relative_to(missing)
    return f" (did you mean {str(meant)!r}?)"


def _fetch_missing(source: str, found: Path, inside: str, last: Sequence[str]) -> Path:
    """Downloads other files of weights of a folder that has none; returns that in the cache."""
    for patterns in (_torch_patterns(inside), _variant_patterns(inside)):
        if not has_weights(found / inside):
            found = _fetch(source, patterns)
    if last and not has_weights(found / inside) and not only_variant(found / inside):
        found = _fetch(source, [f"{inside}{name}" for name in last])
    return found


def _is_network(folder: Path, networks: Collection[str]) -> bool:
    """Whether a folder is that of diffusers' network alone."""
    config = folder / diffusers.CONFIG
    return config.exists() and read_json(config).get("_class_name") in networks


def _torch_patterns(inside: str) -> list[str]:
    """The names of the weights as PyTorch's pickle, whole or in shards."""
    return [
        f"{inside}{weight_names().torch}",
        f"{inside}{weight_names().torch}.index.json",
        f"{inside}{STEM}-*.bin",
    ]


def _variant_patterns(inside: str) -> list[str]:
    """The names of variants of the weights, such as diffusion_pytorch_model.fp16.safetensors."""
    return [
        f"{inside}{STEM}.*.safetensors",
        f"{inside}{STEM}.*.json",
    ]


def _fetch(source: str, patterns: list[str]) -> Path:
    """Downloads the files of these names, if the repository has them; returns its folder."""
    # Imported late: most models are on disk already.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    repo, _, revision = source.partition("@")
    arguments: dict[str, Any] = {"revision": revision or None, "allow_patterns": patterns}
    try:
        with _bounded_requests():
            return Path(snapshot_download(repo, **arguments))
    # Nothing is cached and the hub did not answer, of which its own message says little.
    except LocalEntryNotFoundError:
        raise ValueError(
            f"model {source!r} is neither a folder{_near_path(source)} nor in the hub's cache, and "
            "the hub is not reachable (offline, or HF_HUB_OFFLINE is set)"
        ) from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"model {source!r} is not a folder{_near_path(source)}, and the hub answers: {error}"
        ) from None
    except MemoryError:
        raise
    # What a network's login page answers in place of the hub fails anywhere in the library.
    except Exception as error:
        with contextlib.suppress(Exception):
            return Path(snapshot_download(repo, local_files_only=True, **arguments))
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise ValueError(
            f"model {source!r} is not in the hub's cache, and what answers is not the hub, or "
            f"breaks off ({reason:.200}); is there a login page in between?"
        ) from None


@contextlib.contextmanager
def _bounded_requests() -> Iterator[None]:
    """Bounds how long each request within it waits: huggingface_hub has requests without bound."""
    from huggingface_hub.utils import get_session

    # A hook of httpx, since a timeout of the session does not hold for requests that ask for none.
    def bound(request):
        for kind, seconds in request.extensions.get("timeout", {}).items():
            if seconds is None:
                request.extensions["timeout"][kind] = PATIENCE

    session = get_session()
    before = session.event_hooks
    session.event_hooks = {**before, "request": [*before["request"], bound]}
    try:
        yield
    finally:
        session.event_hooks = before
