"""Opens what a task of `cmjax edit` needs, and checks it before anything is computed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cmjax.cli import checks, edit_results, opening, terminal
from cmjax.cli.edit_task import Task

if TYPE_CHECKING:
    from cmjax.checkpoints import Checkpoint

EXAMPLES = Path(__file__).parent.parent / "assets" / "examples"
EXAMPLE_LABEL = 7  # class of the pictures there
INTERPOLATED = "interpolated"  # names the results of the task without a picture


def open_task(
    image: Path | None,
    example: str,
    factor: int = 1,
    *,
    in_latents: bool = True,
    mask: Path | None = None,
    model: str | None,
    labels: list[str] | None,
    num: int,
    seed: int,
    out: Path,
    quiet: bool,
    method: str = "projection",
    steps: int | None = None,
    timesteps: list[float] | None = None,
    sigmas: list[float] | None = None,
    guidance: float | None = None,
    guidance_interval: list[float] | None = None,
) -> Task:
    """Loads the model, and the picture or the package's example for the task.

    Args:
        image: file of the picture, or folder of pictures, or None.
        example: name of the package's picture for the task; "" if it has none.
        factor: pictures of 1/factor of the model's size are taken without a note on their scaling.
        in_latents: whether a projection of latents can do the task.
        mask: the file of the mask, or None.
        model: as for `cmjax.load`; None is the bundled one, which has the class of the examples.
        labels: classes of the results, by number or name.
        num: number of results of each picture.
        seed: seed of all randomness.
        out: the file or folder to write.
        quiet: whether to print nothing but errors.
        method: of editing under a constraint.
        steps: number of steps; at most one of this and the next two is given.
        timesteps: indices of training levels.
        sigmas: noise levels.
        guidance: scale of the guidance; 1 for none, None for what the model recommends.
        guidance_interval: the noise levels to guide at; None for what the model recommends.

    Raises:
        ValueError: naming the option that is wrong, or the file that cannot be read.
    """
    from cmjax.autoencoder import picture_shape
    from cmjax.images.checks import MODES

    # What costs least is checked first: the tensors are read last.
    paths = _pictures_of(image, example)
    stems = [path.stem for path in paths] or [INTERPOLATED]
    edit_results.check_results(out, paths, stems, num, mask)
    schedule = checks.schedule(steps, timesteps, sigmas)

    # The model's pictures.
    checkpoint = opening.open_checkpoint(model)
    decoder = None if checkpoint.autoencoder is None else checkpoint.autoencoder.config
    size, _, channels = picture_shape(checkpoint.config, decoder)
    if channels not in MODES:
        raise ValueError(
            f"--model: its samples have {channels} channels, which is no picture"
        )

    # A projection keeps what is known of the latents, and these measurements are of pixels.
    if decoder is not None and method == "projection" and not in_latents:
        raise ValueError(
            "--method projection cannot do this with a model that samples latents; give "
            "--method posterior, for a consistency model"
        )

    is_example = model is None and image is None
    indices = _classes_of(checkpoint, labels, is_example)

    # A picture that cannot be edited should not end a run halfway.
    note = _check_pictures(paths, size, factor, channels)
    if note and not quiet:
        terminal.note(note)
    return Task(
        model=checkpoint.load(),
        paths=paths,
        labels=indices,
        num=num,
        schedule=schedule,
        method=method,
        seed=seed,
        out=out,
        quiet=quiet,
        guidance=guidance,
        guidance_interval=guidance_interval,
    )


def _classes_of(
    checkpoint: "Checkpoint", labels: list[str] | None, is_example: bool
) -> list[int] | None:
    """Returns the classes of the results, by number; None for a model without classes.

    Args:
        checkpoint: the model.
        labels: the classes that were asked for, by number or name, or None.
        is_example: whether the bundled model edits a picture of the package.

    Raises:
        ValueError: for a class that the model has not, or if none is given and none is known.
    """
    # The class of the package's pictures is known. That of a user's picture is not, and a model
    # conditioned on another class would repaint a cat as something else.
    num_classes = getattr(checkpoint.config, "num_class_embeds", None)
    if num_classes is not None and labels is None:
        if not is_example:
            raise ValueError(
                f"--labels: the model has classes 0..{num_classes - 1}; say which to make"
            )
        labels = [str(EXAMPLE_LABEL)]
    return checks.check_labels(labels, num_classes, checkpoint.class_names)


def _pictures_of(image: Path | None, example: str) -> list[Path]:
    """Returns the files to edit: one, all of a folder, the package's example, or none.

    Raises:
        ValueError: if there is no picture in the folder.
    """
    from cmjax.training.picture_folders import PICTURES, find_pictures

    if image is None:
        return [EXAMPLES / example] if example else []
    if not image.is_dir():
        return [image]
    found = find_pictures(image)
    if not found:
        raise ValueError(f"{image} holds no pictures ({', '.join(PICTURES)})")
    return [Path(path) for path in found]


def _check_pictures(paths: Sequence[Path], size: int, factor: int, channels: int) -> str:
    """Checks that pictures can be read; returns what is to be said of their sizes, or ""."""
    from cmjax.images import read_image

    # super-resolution takes its picture at the smaller size, so that one is no surprise either.
    usual = ((size, size), (size // factor, size // factor))
    notes = []
    for path in paths:
        height, width = read_image(path, channels).shape[:2]
        if (height, width) not in usual:
            what = f"its middle square scaled to {size}x{size}"
            notes.append(f"{path}: {width}x{height} pixels, {what}")
    if len(notes) > 1:
        return (
            f"{len(notes)} of {len(paths)} pictures have another size: "
            f"their middle squares scaled to {size}x{size}"
        )
    return "".join(notes)
