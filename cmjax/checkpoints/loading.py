"""Loading and saving models, whatever the kind of file."""

import os
from pathlib import Path
from typing import Literal

from jax.typing import DTypeLike

from cmjax.checkpoints import diffusers, hub, native, openai
from cmjax.checkpoints.checkpoint import Checkpoint, read_json
from cmjax.configs import did_you_mean
from cmjax.files import replacing_folder
from cmjax.model import Model
from cmjax.models import UNet2DConfig
from cmjax.models.registry import ARCHITECTURES

BUNDLED = Path(__file__).parent.parent / "assets" / "digits"
PARTS = (
    native.CONFIG,
    native.SCHEDULER_CONFIG,
    native.WEIGHTS,
    diffusers.INDEX,
    "unet",
    "scheduler",
)
WRITERS = {"cmjax": native.write, "diffusers": diffusers.write}


def load(
    source: str | Path | None = None,
    *,
    dtype: DTypeLike | None = None,
    config: UNet2DConfig | str | None = None,
) -> Model:
    """Loads a model; what kind it is, is seen by looking at it.

    Args:
        source: a cmjax folder, a diffusers pipeline or UNet folder, an OpenAI `.pt` file, or the id of a pipeline
            or cmjax folder on the Hugging Face hub (`owner/name`, optionally `owner/name@revision`); None is the
            bundled digits model.
        dtype: of the parameters; None is float32. The network computes in the dtype of its input.
        config: of an OpenAI file's network, or the name of a preset; None infers it. Others say it themselves.

    Returns:
        `Model(apply_fn, params, scheduler, config)`.

    Raises:
        ValueError: if there is no such model, or it is not one that cmjax reads.
    """
    return open_checkpoint(source, config=config).load(dtype=dtype)


def open_checkpoint(
    source: str | Path | None = None, *, config: UNet2DConfig | str | None = None
) -> Checkpoint:
    """Opens a model without reading its tensors; the arguments and errors are those of `load`."""
    path = BUNDLED if source is None else Path(source)
    if os.path.isfile(path):  # of os.path, to which a name that is too long is just not there
        return openai.open_file(path, config)
    if config is not None:
        raise ValueError(f"config is for OpenAI files, which do not say their own; {path} does")
    if not os.path.exists(path):
        path = hub.download(str(source))
    if (path / diffusers.INDEX).exists():
        return diffusers.open_pipeline(path)
    name = read_json(path / native.CONFIG).get("_class_name")
    if name == diffusers.NETWORK:
        return diffusers.open_unet(path)
    if isinstance(name, str) and name in ARCHITECTURES:
        return native.open_folder(path)
    hint = did_you_mean(name, [*ARCHITECTURES, diffusers.NETWORK])
    raise ValueError(f"{path / native.CONFIG}: _class_name is {name!r:.200}{hint}")


def save(path: str | Path, model: Model, *, to: Literal["cmjax", "diffusers"] = "cmjax") -> None:
    """Writes a model's folder; a crash leaves what was there before, or the new folder, whole.

    Args:
        path: the folder, made if need be, and replaced if it is a model's.
        model: with the config of one of cmjax's own networks.
        to: "cmjax", or "diffusers" for a folder that `ConsistencyModelPipeline.from_pretrained` opens.

    Raises:
        ValueError: if `model.config` is not such a config or has options that diffusers does not have, if `path`
            holds other files, or if the network is adapted to another scheduler.
    """
    if to not in WRITERS:
        raise ValueError(f"to must be one of {list(WRITERS)}, got {to!r}")
    if model.trained_for is not None:
        adapted, own = type(model.scheduler).__name__, type(model.trained_for).__name__
        raise ValueError(
            f"model is adapted to {adapted}, which files cannot say; save the one of {own} it was made of"
        )
    path = Path(path)
    others = (
        sorted(file.name for file in path.iterdir() if file.name not in PARTS)
        if path.is_dir()
        else []
    )
    if others:
        raise ValueError(
            f"{path} holds other files than a model's, such as {others[0]}; give another name"
        )
    with replacing_folder(path) as folder:
        WRITERS[to](folder, model)
