"""`cmjax edit`: one command per task.

Each prepares what its constraint needs; `edit_opening` opens the model and the pictures, and
`edit_task` samples.
"""

import functools
from pathlib import Path
from typing import Any

import click

from cmjax.cli import checks, edit_task, option_types, options
from cmjax.cli.edit_masks import read_hole
from cmjax.cli.edit_opening import INTERPOLATED, open_task
from cmjax.cli.edit_options import IMAGE, NUM, common_options, constrained
from cmjax.cli.edit_results import write_results
from cmjax.cli.edit_task import Case, edit_under

ALIASES = {"label": "labels"}  # earlier names of options


@click.group(
    invoke_without_command=True,
    context_settings={"token_normalize_func": lambda name: ALIASES.get(name, name)},
)
@click.pass_context
def edit(ctx: click.Context) -> None:
    """Edits pictures with a model that was not trained for it.

    Most tasks write one picture that shows, side by side, the picture given, what is kept of it,
    and the results. With --out DIR they write the results alone, and take a folder of pictures as
    well. Without a picture, inpaint, superres and stroke take an example from the package.

    \b
    Examples:
      cmjax edit inpaint                  a seven's lower half, three times
      cmjax edit inpaint photo.png --mask hole.png --model MODEL
      cmjax edit superres                 from 7x7 pixels
      cmjax edit superres thumbnails --out large --num 1 --model MODEL
                                          a folder of pictures, one each
      cmjax edit interpolate              from one sample to another
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@edit.command()
@IMAGE
@click.option(
    "--mask",
    type=option_types.Location(),
    help="Picture of the same size, white where IMAGE is to be repainted.",
)
@click.option(
    "--mask-box",
    type=option_types.Numbers(int, "0,14,28,28"),
    help="Rectangle x0,y0,x1,y1 of pixels of IMAGE to repaint, without row y1 and column x1.",
)
@constrained
def inpaint(
    image: Path | None, mask: Path | None, mask_box: list[int] | None, **common: Any
) -> None:
    """Repaints the part of IMAGE that --mask or --mask-box gives.

    \b
    Examples:
      cmjax edit inpaint                  the lower half of a seven
      cmjax edit inpaint --mask-box 0,0,14,28 --num 8
                                          its left half, eight times
      cmjax edit inpaint --method posterior --num 5
                                          as varied as what is known allows
      cmjax edit inpaint photo.png --mask hole.png --model MODEL --steps 8
    """
    import numpy as np

    from cmjax import constraints

    # The package's own picture has a part that is repainted by default; a user's has none.
    both = mask is not None and mask_box is not None
    neither = mask is None and mask_box is None
    if both or (neither and image is not None):
        raise ValueError(
            "give one of --mask FILE and --mask-box x0,y0,x1,y1: what to repaint"
        )

    # The mask is as large as the picture given, so both are cropped and resized in the same way.
    task = open_task(image, "seven.png", mask=mask, **common)
    size = task.size

    def cases():
        for given in task.pictures():
            hole = read_hole(mask, mask_box, given, size)
            picture = given.resized(size)

            # 1 where a pixel is kept; in between at the edges of a resized mask, where both are
            # blended.
            known = 1 - hole.astype(np.float32) / 255
            yield Case(given, constraints.inpaint(picture, known), picture)

    edit_under(task, cases())


@edit.command()
@IMAGE
@constrained
def colorize(image: Path | None, **common: Any) -> None:
    """Colours the gray picture IMAGE.

    This needs a model of colour pictures.

    \b
    Examples:
      cmjax edit colorize old.jpg --model MODEL
    """
    import numpy as np

    from cmjax import constraints

    # The bundled model is gray, so there is neither a model nor a picture to begin with.
    if image is None:
        raise ValueError("give a picture: cmjax edit colorize IMAGE --model MODEL")
    task = open_task(image, "", in_latents=False, **common)
    if task.model.picture_shape[-1] != 3:
        raise ValueError(
            "--model: its pictures are gray; colorize needs a model of colour pictures"
        )

    # The constraint is on the luminance [H, W, 1]; a gray picture has it in all three channels.
    size = task.size

    def cases():
        for given in task.pictures():
            picture = given.resized(size)
            gray = (picture @ np.asarray(constraints.REC601, np.float32))[..., None]
            yield Case(given, constraints.colorize(gray), picture, gray.repeat(3, -1))

    edit_under(task, cases())


@edit.command()
@IMAGE
@click.option(
    "--factor",
    type=click.IntRange(1),
    metavar="N",
    default=4,
    show_default=True,
    help="Factor by which height and width grow.",
)
@constrained
def superres(image: Path | None, factor: int, **common: Any) -> None:
    """Enlarges the small picture IMAGE, adding detail.

    The results have the size of the model's samples. IMAGE is reduced to 1/N of that first, N being
    the --factor, unless it has that size already.

    \b
    Examples:
      cmjax edit superres                 a seven of 7x7 pixels
      cmjax edit superres thumbnail.png --model MODEL --factor 8
    """
    from cmjax import constraints

    task = open_task(image, "seven.png", factor, in_latents=False, **common)
    size = task.size
    if size % factor:
        raise ValueError(
            f"--factor must divide the model's {size}x{size} pixels, got {factor}"
        )

    # The low resolution is all that the constraint sees; the picture itself is only shown. What is
    # kept is shown as large as the results, every pixel as a square.
    def cases():
        for given in task.pictures():
            low = given.resized(size // factor)
            known = low.repeat(factor, 0).repeat(factor, 1)
            yield Case(
                given, constraints.super_resolve(low, factor), given.resized(size), known
            )

    edit_under(task, cases())


@edit.command()
@click.option(
    "--from",
    "first",
    type=click.IntRange(0),
    metavar="N",
    default=0,
    show_default=True,
    help="Number of the sample at one end.",
)
@click.option(
    "--to",
    "second",
    type=click.IntRange(0),
    metavar="N",
    default=1,
    show_default=True,
    help="Number of the sample at the other end.",
)
@click.option(
    "--num",
    "-n",
    type=click.IntRange(2),
    metavar="N",
    default=9,
    show_default=True,
    help="Number of pictures, including both ends.",
)
@common_options
def interpolate(first: int, second: int, num: int, **common: Any) -> None:
    """Interpolates between two samples.

    Each picture takes one network call. The samples are numbered as those that cmjax sample makes
    from the same --seed.

    \b
    Examples:
      cmjax edit interpolate              nine steps between two sevens
      cmjax edit interpolate --labels 3 --from 4 --to 8
    """
    import jax
    import jax.numpy as jnp

    from cmjax import editing
    from cmjax.random import level_noise, sample_keys

    if first == second:
        raise ValueError(f"--from and --to are both {first}; give two samples")

    # Between two classes there is no path: the class would have to change at some picture.
    task = open_task(None, "", num=num, **common)
    if task.labels is not None and len(task.labels) > 1:
        raise ValueError(f"--labels: interpolate takes one class, got {task.labels}")

    # The noise that the two samples start from, [1, ...] each, as `cmjax sample` draws it.
    model = task.model
    shape = (1, *model.sample_shape)
    ends = [level_noise(sample_keys(task.key, 1, i), 0, shape)[0] for i in (first, second)]

    # The noise at these fractions of the way, one picture from each.
    fractions = jnp.linspace(0.0, 1.0, num)
    run = jax.jit(functools.partial(editing.interpolate, model.apply_fn))
    results = run(model.params, model.scheduler, *ends, fractions, cond=task.cond)
    results = edit_task.decoded(task, results)

    # Only the ends are samples with a number.
    captions = [first, *[""] * (num - 2), second]
    write_results(task.out, INTERPOLATED, {}, results, captions)
    edit_task.report(task, captions)


@edit.command()
@IMAGE
@click.option(
    "--sigmas",
    type=option_types.Numbers(float, "5.38,2.24"),
    help="Noise levels to step through, descending; a higher first one keeps less of the sketch.  "
    "[default: 5.38,2.24]",
)
@options.guiding
@NUM
@common_options
def stroke(image: Path | None, sigmas: list[float] | None, **common: Any) -> None:
    """Turns the sketch IMAGE into pictures (SDEdit).

    \b
    Examples:
      cmjax edit stroke                   three digits from two strokes
      cmjax edit stroke sketch.png --sigmas 20,3 --model MODEL
    """
    import jax
    import numpy as np

    from cmjax.editing import STROKE_SIGMAS, stroke_to_image

    task = open_task(image, "strokes.png", **common)
    model = task.model
    levels = np.asarray(sigmas or STROKE_SIGMAS, np.float32)

    # Errors before anything compiles.
    state = checks.set_timesteps(model.scheduler, {"sigmas": levels})
    apply_fn = task.guided(state.num_steps)

    run = jax.jit(
        functools.partial(stroke_to_image, apply_fn=apply_fn, scheduler=model.scheduler)
    )

    # The sketch, or its latents, with noise of the first level is where sampling starts.
    for given in task.pictures():
        sketch = given.resized(task.size)
        start = sketch[None]
        if model.autoencoder is not None:
            start = np.asarray(model.autoencoder.encode(start))
        copies = np.repeat(start, task.num, 0)
        results = run(
            task.key, params=model.params, image=copies, sigmas=levels, cond=task.cond
        )
        results = edit_task.decoded(task, results)
        captions = range(1, task.num + 1)
        write_results(task.out, given.path.stem, {"given": sketch}, results, captions)
    edit_task.report(task, ["given", *range(1, task.num + 1)])
