"""What the tasks of `cmjax edit` have in common: opening, sampling under a constraint, writing."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cmjax.cli import options, terminal

if TYPE_CHECKING:
    import numpy as np

    from cmjax.constraints import Constraint
    from cmjax.model import Model

EXAMPLES = Path(__file__).parent.parent / "assets" / "examples"
EXAMPLE_LABEL = 7  # class of the pictures there
TILE = 112  # pixels that a picture's side is enlarged to, at least
COLUMNS = 12  # pictures in a row, at most


class Task(NamedTuple):
    """What a task has read and checked before it starts.

    Attributes:
        model: the model, loaded.
        original: the picture that was given, u8[H, W, C]; None for a task that takes none.
        labels: classes of the results, repeated in turn; None for a model without classes.
        num: number of results.
        schedule: arguments of `set_timesteps`; at most one.
        method: of `cmjax.editing.edit`.
        seed: seed of all randomness.
        out: the file to write.
        quiet: whether to print nothing but errors.
    """

    model: "Model"
    original: "np.ndarray | None"
    labels: list[int] | None
    num: int
    schedule: dict[str, Any]
    method: str
    seed: int
    out: Path
    quiet: bool

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

    def picture(self) -> "np.ndarray":
        """Returns the picture of a task that has one."""
        assert self.original is not None
        return self.original


def open_task(
    image: Path | None,
    example: str,
    factor: int = 1,
    *,
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
) -> Task:
    """Loads the model, and the picture or the package's example for the task.

    Args:
        image: file of the picture, or None.
        example: name of the package's picture for the task; "" if it has none.
        factor: pictures of 1/factor of the model's size are taken without a note on their scaling.
        model: as for `cmjax.load`; None is the bundled one, which has the class of the examples.
        labels: classes of the results, by number or name.
        num: number of results.
        seed: seed of all randomness.
        out: the file to write.
        quiet: whether to print nothing but errors.
        method: of editing under a constraint.
        steps: number of steps; at most one of this and the next two is given.
        timesteps: indices of training levels.
        sigmas: noise levels.

    Raises:
        ValueError: naming the option that is wrong, or the file that cannot be read.
    """
    from cmjax.images import MODES, read_image
    from cmjax.models.registry import sample_shape

    # What costs least is checked first: the tensors are read last.
    options.check_out(out, {".png": "a picture"})
    schedule = options.schedule(steps, timesteps, sigmas)
    checkpoint = options.open_checkpoint(model)
    channels = sample_shape(checkpoint.config)[-1]
    if channels not in MODES:
        raise ValueError(
            f"--model: its samples have {channels} channels, which is no picture"
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
    indices = options.check_labels(labels, classes, checkpoint.class_names)

    # The picture, u8[H, W, C] with the channels of the model's samples.
    original = None
    if image is not None or example:
        path = image or EXAMPLES / example
        original = read_image(path, channels)
        if not quiet:
            _report_scaling(path, original, checkpoint.config.sample_size, factor)
    return Task(
        checkpoint.load(), original, indices, num, schedule, method, seed, out, quiet
    )


def _report_scaling(path: Path, picture: "np.ndarray", size: int, factor: int) -> None:
    """Notes that a picture has to be scaled to the model's size, if it has to be."""
    height, width = picture.shape[:2]

    # super-resolution takes its picture at the smaller size, so that one is no surprise either.
    if (height, width) not in ((size, size), (size // factor, size // factor)):
        options.note(
            f"{path}: {width}x{height} pixels, its middle square scaled to {size}x{size}"
        )


def read_hole(
    mask: Path | None, box: list[int] | None, height: int, width: int
) -> "np.ndarray":
    """Returns what is to be repainted, u8[H, W, 1]: a mask, a box, or else the lower half.

    Args:
        mask: file of a picture, white (255) where it is to be repainted, or None.
        box: `[x0, y0, x1, y1]`, or None.
        height: of the picture that the mask is for.
        width: of that picture.

    Raises:
        ValueError: if the mask has another size or is black, or the box is not in the picture.
    """
    from cmjax.images import read_image

    if mask is None:
        return _box(box or [0, height // 2, width, height], height, width)
    hole = read_image(mask, 1)
    if hole.shape[:2] != (height, width):
        raise ValueError(
            f"--mask: {mask} is {hole.shape[1]}x{hole.shape[0]}, "
            f"but the picture is {width}x{height}"
        )
    if not hole.any():
        raise ValueError("--mask: it is black all over; white is what is repainted")
    return hole


def _box(corners: list[int], height: int, width: int) -> "np.ndarray":
    """Returns a mask u8[H, W, 1] that is 255 in a box and 0 around it."""
    import numpy as np

    if len(corners) != 4:
        raise ValueError(f"--mask-box must be four numbers x0,y0,x1,y1, got {len(corners)}")
    x0, y0, x1, y1 = corners
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(
            f"--mask-box must have 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}, "
            f"the picture's size, got {x0},{y0},{x1},{y1}"
        )

    # Rows are y and columns x; the second corner is just outside.
    mask = np.zeros((height, width, 1), np.uint8)
    mask[y0:y1, x0:x1] = 255
    return mask


def edit_under(
    task: Task,
    constraint: "Constraint",
    picture: "np.ndarray",
    known: "np.ndarray | None" = None,
) -> None:
    """Samples under a constraint; writes what was given, what is kept of it, and the results.

    Args:
        task: the model, the classes, the levels and where to write.
        constraint: the constraint on the samples.
        picture: the picture given, f32[H, W, C] in [-1, 1].
        known: what is kept of it, f32[H, W, C]; None for what the constraint makes of zeros.
    """
    import jax
    import numpy as np

    from cmjax.editing import edit

    model = task.model
    if task.schedule:
        options.set_timesteps(
            model.scheduler, task.schedule
        )  # errors before anything compiles
    shape = (task.num, *model.sample_shape)
    scheduler: Any = (
        model.scheduler
    )  # `edit` raises an error for one that takes no constraint

    # One program for both, with the parameters as an argument: as a constant they would be copied
    # into it.
    @jax.jit
    def run(key, params, constraint, cond):
        results = edit(
            key,
            model.apply_fn,
            params,
            scheduler,
            constraint,
            shape,
            method=task.method,
            **task.schedule,
            cond=cond,
        )
        return constraint(jax.numpy.zeros(shape))[:1], results

    # Gray (zero) pixels under the constraint show what it keeps: the rest stays gray.
    kept, results = run(task.key, model.params, constraint, task.cond)
    if known is not None:
        kept = known[None]
    tiles = np.concatenate([picture[None], kept, results])
    write_tiles(task, tiles, ["given", "known", *range(1, task.num + 1)])


def write_tiles(task: Task, tiles: Any, captions: list[Any]) -> None:
    """Writes pictures `[N, H, W, C]` in [-1, 1] in rows, and prints what they are.

    Raises:
        ValueError: if some are not finite.
    """
    import numpy as np

    from cmjax.images import save_grid, to_uint8

    # Converted to uint8, NaN would pass for a colour.
    tiles = np.asarray(tiles)
    if not np.isfinite(tiles).all():
        raise ValueError("the results are not finite; the model is broken")

    # Small pictures are enlarged by a whole factor, so that pixels stay squares.
    scale = max(1, TILE // tiles.shape[1])
    columns = min(len(tiles), COLUMNS)
    save_grid(task.out, to_uint8(tiles), columns=columns, labels=captions, scale=scale)
    options.print_notes()
    if not task.quiet:
        terminal.echo(f"{task.out}: {', '.join(map(str, filter(str, captions)))}")
