"""What the tasks of `cmjax edit` have in common: their inputs, sampling, and the report."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cmjax.cli import checks, terminal, wording
from cmjax.cli.edit_results import is_folder, write_results

if TYPE_CHECKING:
    import numpy as np

    from cmjax.constraints import Constraint
    from cmjax.model import Model

DECODED_AT_ONCE = 8  # samples of a latent model


class Given(NamedTuple):
    """A picture that is edited.

    Attributes:
        path: its file.
        pixels: u8[H, W, C], C being the channels of the model's pictures.
    """

    path: Path
    pixels: "np.ndarray"

    def resized(self, size: int) -> "np.ndarray":
        """Returns its middle square at another size, f32[size, size, C] in [-1, 1]."""
        from cmjax.images import center_crop_resize, from_uint8

        return from_uint8(center_crop_resize(self.pixels, size))


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
        guidance_interval: the noise levels to guide at; None for what the model recommends.
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
        captions = range(1, task.num + 1)
        write_results(task.out, given.path.stem, shown, results, captions)
    report(task, ["given", "known", *range(1, task.num + 1)])


def decoded(task: Task, results: Any) -> Any:
    """Returns the pictures of a model's samples, decoded a few at a time, with progress."""
    # Of many given pictures the bar of `pictures` says how far they are.
    shown = not task.quiet and len(task.paths) <= 1
    return task.model.decode(results, batch_size=DECODED_AT_ONCE, progress=shown)


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
    if is_folder(task.out):
        num_given = max(1, len(task.paths))
        what = wording.counted(num_given * task.num, "result")
        if task.paths:
            what += f" of {wording.counted(num_given, 'picture')}"
    terminal.echo(f"{task.out}: {what}, on {device}")
