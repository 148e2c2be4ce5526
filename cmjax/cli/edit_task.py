"""What the tasks of `cmjax edit` have in common: opening, and sampling under a constraint."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cmjax.cli import checks, edit_results, opening, terminal, wording

if TYPE_CHECKING:
    import numpy as np

    from cmjax.constraints import Constraint
    from cmjax.model import Model

EXAMPLES = Path(__file__).parent.parent / "assets" / "examples"
EXAMPLE_LABEL = 7  # class of the pictures there
DECODED_AT_ONCE = 8  # samples of a latent model
INTERPOLATED = "interpolated"  # names the results of the task without a picture


class Given(NamedTuple):
    """A picture that is edited.

    Attributes:
        path: its file.
        pixels: u8[H, W, C], C being the channels of the model's pictures.
    """

    path: Path
    pixels: "np.ndarray"


class Case(NamedTuple):
    """One picture and what is kept of it.

    Attributes:
        given: the picture.
        constraint: the constraint on the results.
        picture: the picture at the model's size, f32[H, W, C] in [-1, 1].
        known: what is kept of it, f32[H, W, C]; None for what the constraint makes of zeros.
    """

    given: Given
    constraint: "Constraint"
    picture: "np.ndarray"
    known: "np.ndarray | None" = None


class Task(NamedTuple):
    """What a task has read and checked before it starts.

    Attributes:
        model: the model, loaded.
        paths: the pictures that were given; none for a task that takes none.
        labels: classes of the results, repeated in turn; None for a model without classes.
        num: number of results of each picture.
        schedule: arguments of `set_timesteps`; at most one.
        method: of `cmjax.editing.edit`.
        seed: seed of all randomness.
        out: the file or folder to write.
        quiet: whether to print nothing but errors.
        guidance: scale of the guidance; 1 for none, None for what the model recommends.
        guidance_interval: the noise levels to guide at; None for all.
    """

    model: "Model"
    paths: list[Path]
    labels: list[int] | None
    num: int
    schedule: dict[str, Any]
    method: str
    seed: int
    out: Path
    quiet: bool
    guidance: float | None
    guidance_interval: list[float] | None

    @property
    def size(self) -> int:
        """Height and width of the model's pictures."""
        return self.model.picture_shape[0]

    def guided(self, num_steps: int) -> Any:
        """Returns the model's network, guided if it is to be, for so many calls."""
        return checks.check_guidance(
            self.model, self.guidance, self.guidance_interval, num_steps
        )

    @property
    def key(self) -> Any:
        """The key that `cmjax sample` makes of the same seed."""
        from cmjax.random import key_of_seed

        return key_of_seed(self.seed)

    @property
    def cond(self) -> dict[str, Any]:
        """The network's keyword arguments: the class of each result, i32[num], if there are any."""
        import numpy as np

        if self.labels is None:
            return {}

        # np.resize repeats the classes in turn until there is one for each result.
        return {"class_labels": np.resize(np.asarray(self.labels, np.int32), self.num)}

    def pictures(self) -> Iterator[Given]:
        """Yields the pictures, reading each when its turn comes; shows progress if there are many.

        Raises:
            ValueError: if one cannot be read.
        """
        from cmjax.images import read_image
        from cmjax.progress import Bar

        channels = self.model.picture_shape[-1]
        total = len(self.paths)
        shown = total > 1 and not self.quiet
        with Bar(total, unit="picture", doing="editing", shown=shown) as bar:
            for number, path in enumerate(self.paths):
                yield Given(path, read_image(path, channels))
                bar.advance_to(number + 1, now=number + 1 == total)


def open_task(
    image: Path | None,
    example: str,
    factor: int = 1,
    *,
    in_latents: bool = True,
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
        guidance_interval: the noise levels to guide at; None for all.

    Raises:
        ValueError: naming the option that is wrong, or the file that cannot be read.
    """
    from cmjax.images.checks import MODES
    from cmjax.model import picture_shape

    # What costs least is checked first: the tensors are read last.
    paths = _pictures_of(image, example)
    stems = [path.stem for path in paths] or [INTERPOLATED]
    edit_results.check_results(out, paths, stems, num)
    schedule = checks.schedule(steps, timesteps, sigmas)
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

    # The class of the package's pictures is known. That of a user's picture is not, and a model
    # conditioned on another class would repaint a cat as something else.
    classes = getattr(checkpoint.config, "num_class_embeds", None)
    if classes is not None and labels is None:
        if model is not None or image is not None:
            raise ValueError(
                f"--labels: the model has classes 0..{classes - 1}; say which to make"
            )
        labels = [str(EXAMPLE_LABEL)]
    indices = checks.check_labels(labels, classes, checkpoint.class_names)

    # A picture that cannot be edited should not end a run halfway.
    note = _check_pictures(paths, size, factor, channels)
    if note and not quiet:
        terminal.note(note)
    return Task(
        checkpoint.load(),
        paths,
        indices,
        num,
        schedule,
        method,
        seed,
        out,
        quiet,
        guidance,
        guidance_interval,
    )


def _pictures_of(image: Path | None, example: str) -> list[Path]:
    """Returns the files to edit: one, all of a folder, the package's example, or none.

    Raises:
        ValueError: if there is no picture in the folder.
    """
    from cmjax.training.sources import PICTURES, find_pictures

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


def edit_under(task: Task, cases: Iterable[Case]) -> None:
    """Samples under constraints; writes what was given, what is kept of it, and the results.

    Args:
        task: the model, the classes, the levels and where to write.
        cases: the pictures, whose constraints are of one kind.
    """
    import jax
    import numpy as np

    from cmjax.editing import edit, editing_timesteps

    # Errors before anything compiles. Without a schedule the levels are the paper's.
    model = task.model
    num_steps = len(editing_timesteps(getattr(model.scheduler, "num_train_timesteps", 2)))
    if task.schedule:
        num_steps = checks.set_timesteps(model.scheduler, task.schedule).num_steps
    apply_fn = task.guided(num_steps)
    shape = (task.num, *model.picture_shape)

    # `edit` raises an error for a scheduler that takes no constraint.
    scheduler: Any = model.scheduler

    # One program for all, with the parameters as an argument: as a constant they would be copied
    # into it.
    @jax.jit
    def run(key, params, autoencoder, constraint, cond):
        results = edit(
            key,
            apply_fn,
            params,
            scheduler,
            constraint,
            shape,
            method=task.method,
            autoencoder=autoencoder,
            **task.schedule,
            cond=cond,
        )
        return constraint(jax.numpy.zeros(shape))[0], results

    # Gray (zero) pixels under the constraint show what it keeps: the rest stays gray.
    for given, constraint, picture, known in cases:
        arguments = (model.params, model.autoencoder, constraint, task.cond)
        kept, results = run(task.key, *arguments)
        if known is None:
            known = np.asarray(kept)
        shown = {"given": picture, "known": known}
        write(task, given.path.stem, shown, results, range(1, task.num + 1))
    report(task, ["given", "known", *range(1, task.num + 1)])


def decoded(task: Task, results: Any) -> Any:
    """Returns the pictures of a model's samples, decoded a few at a time, with progress."""
    # Of many given pictures the bar of `pictures` says how far they are.
    shown = not task.quiet and len(task.paths) <= 1
    return task.model.decode(results, batch_size=DECODED_AT_ONCE, progress=shown)


def write(
    task: Task,
    stem: str,
    shown: "dict[str, np.ndarray]",
    results: Any,
    captions: Sequence[object],
) -> None:
    """Writes the results of one picture; see `edit_results.write_results`."""
    edit_results.write_results(task.out, stem, shown, results, captions)


def report(task: Task, captions: Sequence[object]) -> None:
    """Prints what was written, on which device."""
    terminal.print_notes()
    if task.quiet:
        return
    import jax

    from cmjax.processes import device_names

    # Where JAX puts an array, it computes.
    device = device_names(jax.numpy.zeros(()).devices())
    what = ", ".join(map(str, filter(str, captions)))
    if edit_results.is_folder(task.out):
        num_given = max(1, len(task.paths))
        what = wording.counted(num_given * task.num, "result")
        if task.paths:
            what += f" of {wording.counted(num_given, 'picture')}"
    terminal.echo(f"{task.out}: {what}, on {device}")
