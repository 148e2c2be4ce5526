"""`cmjax edit`: one command a task."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmjax.cli import options

if TYPE_CHECKING:
    import numpy as np

    from cmjax import Model
    from cmjax.constraints import Constraint

EXAMPLES = Path(__file__).parent.parent / "assets" / "examples"
EXAMPLE_LABEL = 7  # of the pictures there
IMAGE = click.argument("image", metavar="[IMAGE]", required=False, type=click.Path(path_type=Path))


def common(command: Callable) -> Callable:
    """Adds the options that all tasks share."""
    for option in (
        click.option("--quiet", is_flag=True, help="Print nothing but errors."),
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            default="edited.png",
            show_default=True,
            metavar="FILE",
        ),
        click.option("--seed", type=options.SEED, metavar="N", default=0, show_default=True),
        click.option(
            "--label",
            type=click.IntRange(0),
            metavar="N",
            help="Class to make, for a model with classes.",
        ),
        click.option(
            "--model", metavar="MODEL", help="As for cmjax sample.  [default: bundled digits]"
        ),
    ):
        command = option(command)
    return command


def constrained(command: Callable) -> Callable:
    """Adds the options of the tasks that sample under a constraint."""
    for option in (
        click.option(
            "--num",
            type=click.IntRange(1),
            metavar="N",
            default=3,
            show_default=True,
            help="Results.",
        ),
        click.option(
            "--sigmas", type=options.Numbers(float, "80,0.8"), help="The steps as noise levels."
        ),
        click.option(
            "--timesteps", type=options.Numbers(int, "22,0"), help="The steps as training indices."
        ),
        click.option(
            "--steps",
            type=click.IntRange(1),
            metavar="N",
            help="Network calls.  [default: all levels]",
        ),
    ):
        command = option(command)
    return common(command)


@click.group()
def edit() -> None:
    """Edits pictures, without training for it.

    Each task writes what was given, what is kept of it, and results. Without a picture it takes one that
    comes with the package.

    \b
    Examples:
      cmjax edit inpaint                                   the lower half of a seven, three times
      cmjax edit inpaint photo.png --mask hole.png --model MODEL
      cmjax edit superres                                  from 7x7 pixels
      cmjax edit interpolate                               from one sample to another
    """


@edit.command()
@IMAGE
@click.option(
    "--mask",
    type=click.Path(path_type=Path),
    help="Picture of the same size: white is painted anew.",
)
@click.option(
    "--mask-box", type=options.Numbers(int, "0,14,28,28"), help="x0,y0,x1,y1: pixels to paint anew."
)
@constrained
def inpaint(
    image: Path | None,
    mask: Path | None,
    mask_box: list[int] | None,
    model: str | None,
    **rest: Any,
) -> None:
    """Paints a part of IMAGE anew.

    Which part, --mask or --mask-box says.

    \b
    Examples:
      cmjax edit inpaint                                   the lower half of a seven
      cmjax edit inpaint --mask-box 0,0,14,28 --num 8      its left half, eight times
      cmjax edit inpaint photo.png --mask hole.png --model MODEL --steps 8
    """
    import numpy as np

    from cmjax import constraints, images

    if (mask is None) == (mask_box is None) and (mask or image):
        raise ValueError("give one of --mask FILE and --mask-box x0,y0,x1,y1: what to paint anew")
    loaded, original, rest = _open(model, image, "seven.png", rest)
    height, width = original.shape[:2]
    if mask is not None:
        hole = images.read_image(mask, 1)
        if hole.shape[:2] != (height, width):
            raise ValueError(
                f"--mask: {mask} is {hole.shape[1]}x{hole.shape[0]}, but the picture is {width}x{height}"
            )
    else:
        hole = _box(mask_box or [0, height // 2, width, height], height, width)
    if not hole.any():
        raise ValueError("--mask: it is black all over; white is what is painted anew")
    size = loaded.config.sample_size
    picture = images.from_uint8(images.fit(original, size))
    known = 1 - images.fit(hole, size).astype(np.float32) / 255
    _constrained(loaded, constraints.inpaint(picture, known), picture, rest)


@edit.command()
@IMAGE
@constrained
def colorize(image: Path | None, model: str | None, **rest: Any) -> None:
    """Gives the gray picture IMAGE colours.

    It needs a model of colour pictures.

    \b
    Examples:
      cmjax edit colorize old.jpg --model MODEL
    """
    import numpy as np

    from cmjax import constraints, images

    if image is None:
        raise ValueError("give a picture: cmjax edit colorize IMAGE --model MODEL")
    loaded, original, rest = _open(model, image, "", rest)
    if loaded.sample_shape[-1] != 3:
        raise ValueError(
            "--model: its pictures are gray; colorize needs a model of colour pictures"
        )
    picture = images.from_uint8(images.fit(original, loaded.config.sample_size))
    gray = (picture @ np.asarray(constraints.REC601, np.float32))[..., None]
    _constrained(loaded, constraints.colorize(gray), picture, rest, known=gray.repeat(3, -1))


@edit.command()
@IMAGE
@click.option(
    "--factor",
    type=click.IntRange(1),
    metavar="N",
    default=4,
    show_default=True,
    help="Of magnification.",
)
@constrained
def superres(image: Path | None, factor: int, model: str | None, **rest: Any) -> None:
    """Adds detail to the small picture IMAGE.

    It has 1/N of the model's size; a larger one is reduced to that first.

    \b
    Examples:
      cmjax edit superres                                  a seven of 7x7 pixels
      cmjax edit superres thumbnail.png --model MODEL --factor 8
    """
    from cmjax import constraints, images

    loaded, original, rest = _open(model, image, "seven.png", rest, factor)
    size = loaded.config.sample_size
    if size % factor:
        raise ValueError(f"--factor must divide the model's {size}x{size} pixels, got {factor}")
    low = images.from_uint8(images.fit(original, size // factor))
    picture = images.from_uint8(images.fit(original, size))
    constraint = constraints.super_resolve(low, factor)
    _constrained(loaded, constraint, picture, rest, known=low.repeat(factor, 0).repeat(factor, 1))


@edit.command()
@click.option(
    "--from",
    "first",
    type=click.IntRange(0),
    metavar="N",
    default=0,
    show_default=True,
    help="Sample number.",
)
@click.option(
    "--to",
    "second",
    type=click.IntRange(0),
    metavar="N",
    default=1,
    show_default=True,
    help="Another one.",
)
@click.option(
    "--num",
    type=click.IntRange(2),
    metavar="N",
    default=9,
    show_default=True,
    help="Pictures, with both ends.",
)
@common
def interpolate(first: int, second: int, num: int, model: str | None, **rest: Any) -> None:
    """Goes from one sample to another.

    One network call a picture; the samples are those of --seed.

    \b
    Examples:
      cmjax edit interpolate                               nine steps between two sevens
      cmjax edit interpolate --label 3 --from 4 --to 8
    """
    import jax
    import jax.numpy as jnp

    from cmjax import editing
    from cmjax.random import level_noise, sample_keys

    if first == second:
        raise ValueError(f"--from and --to are both {first}; give two samples")
    loaded, _, rest = _open(model, None, "", rest)
    key, shape = jax.random.key(rest["seed"], impl="threefry2x32"), (1, *loaded.sample_shape)
    ends = [level_noise(sample_keys(key, 1, index), 0, shape)[0] for index in (first, second)]
    cond = _cond(loaded, rest["label"], num)
    run = jax.jit(functools.partial(editing.interpolate, loaded.apply_fn))
    made = run(loaded.params, loaded.scheduler, *ends, jnp.linspace(0.0, 1.0, num), cond=cond)
    _write(rest, made, [first, *[""] * (num - 2), second])


@edit.command()
@IMAGE
@click.option(
    "--sigmas",
    type=options.Numbers(float, "5.38,2.24"),
    help="Noise levels; a higher first one frees the model.  [default: 5.38,2.24]",
)
@click.option(
    "--num", type=click.IntRange(1), metavar="N", default=3, show_default=True, help="Results."
)
@common
def stroke(
    image: Path | None, sigmas: list[float] | None, num: int, model: str | None, **rest: Any
) -> None:
    """Makes a picture of the sketch IMAGE (SDEdit).

    \b
    Examples:
      cmjax edit stroke                                    three digits from two strokes
      cmjax edit stroke sketch.png --sigmas 20,3 --model MODEL
    """
    import jax
    import numpy as np

    from cmjax import editing, images

    loaded, original, rest = _open(model, image, "strokes.png", rest)
    sketch = images.from_uint8(images.fit(original, loaded.config.sample_size))
    key = jax.random.key(rest["seed"], impl="threefry2x32")
    levels = np.asarray(sigmas or editing.STROKE_SIGMAS, np.float32)
    options.set_timesteps(loaded.scheduler, {"sigmas": levels})  # errors before the work
    run = jax.jit(
        functools.partial(
            editing.stroke_to_image, apply_fn=loaded.apply_fn, scheduler=loaded.scheduler
        )
    )
    many = np.repeat(sketch[None], num, 0)
    made = run(
        key, params=loaded.params, image=many, sigmas=levels, cond=_cond(loaded, rest["label"], num)
    )
    _write(rest, np.concatenate([sketch[None], made]), ["given", *range(1, num + 1)])


def _open(
    source: str | None, image: Path | None, example: str, rest: dict[str, Any], factor: int = 1
) -> tuple["Model", "np.ndarray | Any", dict[str, Any]]:
    """Loads the model and the picture u8[H, W, C], or the example, for which the bundled model knows the class."""
    from cmjax import images
    from cmjax.checkpoints import open_checkpoint

    options.check_out(rest["out"], {".png": "a picture"})
    checkpoint = open_checkpoint(source)
    size, channels, classes = (
        getattr(checkpoint.config, n) for n in ("sample_size", "out_channels", "num_class_embeds")
    )
    if channels not in images.MODES:
        raise ValueError(f"--model: its samples have {channels} channels, which is no picture")
    if classes is None and rest["label"] is not None:
        raise ValueError("--label: the model has no classes; leave the option out")
    if classes is not None and rest["label"] is None:
        if source is not None or image is not None:
            raise ValueError(f"--label: the model has classes 0..{classes - 1}; say which to make")
        rest = {**rest, "label": EXAMPLE_LABEL}
    if classes is not None and rest["label"] >= classes:
        raise ValueError(f"--label: the model's classes are 0..{classes - 1}, got {rest['label']}")
    original = None
    if image is not None or example:
        image = image or EXAMPLES / example
        original = images.read_image(image, channels)
        height, width = original.shape[:2]
        if (height, width) not in ((size, size), (size // factor, size // factor)) and not rest[
            "quiet"
        ]:
            click.echo(
                f"{image}: {width}x{height} pixels, its middle square scaled to {size}x{size}",
                err=True,
            )
    return checkpoint.load(), original, rest


def _box(corners: list[int], height: int, width: int) -> "np.ndarray":
    import numpy as np

    if len(corners) != 4:
        raise ValueError(f"--mask-box must be four numbers x0,y0,x1,y1, got {len(corners)}")
    x0, y0, x1, y1 = corners
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(
            f"--mask-box must have 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}, the picture's size, "
            f"got {x0},{y0},{x1},{y1}"
        )
    mask = np.zeros((height, width, 1), np.uint8)
    mask[y0:y1, x0:x1] = 255
    return mask


def _constrained(
    model: "Model",
    constraint: "Constraint",
    picture: "np.ndarray",
    rest: dict[str, Any],
    known: Any = None,
) -> None:
    """Samples under a constraint and writes what was given, what is kept of it, and the results."""
    import jax
    import numpy as np

    from cmjax import editing

    schedule = options.schedule(rest["steps"], rest["timesteps"], rest["sigmas"])
    if schedule:
        options.set_timesteps(model.scheduler, schedule)  # errors before the work
    scheduler: Any = model.scheduler  # of the only kind there is a network for
    num = rest["num"]
    shape = (num, *model.sample_shape)

    @jax.jit
    def run(key, params, constraint, cond):
        made = editing.edit(
            key, model.apply_fn, params, scheduler, constraint, shape, **schedule, cond=cond
        )
        return constraint(jax.numpy.zeros(shape))[:1], made

    key = jax.random.key(rest["seed"], impl="threefry2x32")
    kept, made = run(key, model.params, constraint, _cond(model, rest["label"], num))
    kept = kept if known is None else known[None]
    _write(
        rest, np.concatenate([picture[None], kept, made]), ["given", "known", *range(1, num + 1)]
    )


def _cond(model: "Model", label: int | None, num: int) -> dict[str, Any]:
    import numpy as np

    return {} if model.num_classes is None else {"class_labels": np.full(num, label, np.int32)}


def _write(rest: dict[str, Any], tiles: Any, captions: list[Any]) -> None:
    import numpy as np

    from cmjax.images import save_grid, to_uint8

    tiles = np.asarray(tiles)
    if not np.isfinite(tiles).all():
        raise ValueError("the results are not finite; the model is broken")
    scale = max(1, 112 // tiles.shape[1])
    save_grid(
        rest["out"], to_uint8(tiles), columns=min(len(tiles), 12), labels=captions, scale=scale
    )
    if not rest["quiet"]:
        click.echo(f"{rest['out']}: {', '.join(map(str, filter(str, captions)))}")
