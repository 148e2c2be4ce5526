"""`cmjax sample`."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cmjax import interrupts
from cmjax.cli import checks, opening, option_types, options, terminal, wording

if TYPE_CHECKING:
    from cmjax.generation import Generated
    from cmjax.model import Model

PICTURE = ".png"
TILE = 64  # pixels that a sample's side is enlarged to, at least


@click.command()
@options.sampling()
@options.num(64, "Number of samples.")
@options.batch_size()
@click.option(
    "--out",
    "-o",
    type=option_types.Location(),
    default="samples.png",
    show_default=True,
    metavar="FILE",
    help=".png draws a grid; .npz holds arr_0 u8[N,H,W,C] and, with classes, arr_1 i64[N].",
)
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def sample(
    model: str | None,
    scheduler: str | None,
    settings: tuple[tuple[str, object], ...],
    num: int,
    steps: int | None,
    timesteps: list[float] | None,
    sigmas: list[float] | None,
    labels: list[str] | None,
    guidance: float | None,
    guidance_interval: list[float] | None,
    seed: int,
    batch_size: int,
    dtype: str,
    out: Path,
    quiet: bool,
) -> None:
    """Makes samples with a model.

    Sample number i depends only on the model and its sampler, the seed, the noise levels, the dtype
    and its class: neither --num nor --batch-size changes it, but for rounding. Another --batch-size
    may change few pixels by one of 256 shades in float32, and many by some in bfloat16.

    \b
    Examples:
      cmjax sample                    64 digits in samples.png, in one step
      cmjax sample --steps 2          in two steps
      cmjax sample --sigmas 80,0.8    two steps, at noise levels you choose
      cmjax sample --timesteps 22,0   two steps, at indices of the training grid
                                      (0 is the noisiest)
      cmjax sample --scheduler EDMHeunScheduler --steps 9 --set s_churn=10
                                      another sampler, for a diffusion model
      cmjax sample --labels 7 --num 10 --seed 1
                                      ten sevens, of another seed
      cmjax sample --num 50000 --batch-size 500 --out digits.npz
                                      arrays, to compute metrics from
      cmjax sample --model runs/mine  your own model, saved by cmjax.save
    """  # noqa: D301
    # Mistakes in the options are found before JAX is imported, which takes a second or two.
    checks.check_out(out, {PICTURE: "a grid", ".npz": "arrays"})
    schedule = checks.schedule(steps, timesteps, sigmas)

    import jax

    from cmjax.generation import generate
    from cmjax.processes import device_names

    loaded = opening.open_model(model, scheduler, dict(settings), dtype, quiet)
    channels = loaded.picture_shape[-1]
    if out.suffix.lower() == PICTURE and channels not in (1, 3):
        raise ValueError(
            f"--out: a .png has 1 or 3 channels, but the model's samples have {channels}; "
            "use .npz, or give the autoencoder of a model of latents by --vae"
        )

    # The state knows how many network calls the schedule takes, for the report at the end.
    request, state = opening.request_of(
        loaded,
        schedule,
        labels=labels,
        guidance=guidance,
        guidance_interval=guidance_interval,
        seed=seed,
        dtype=dtype,
    )
    terminal.print_notes()
    generated = generate(loaded, request, num, batch_size=batch_size, progress=not quiet)

    # While a file is being written, an interrupt has to be an exception again, so that what is
    # unfinished is removed. Before that, `leave` ends the process at once.
    if signal.getsignal(signal.SIGINT) is interrupts.leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        period = len(request.labels or ()) or 1
        _write(out, generated, loaded, period)
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror or error}") from None
    if not quiet:
        calls = wording.counted(state.num_steps, "network call")
        device = device_names(jax.local_devices()[:1])  # all that `generate` uses
        terminal.echo(
            f"{wording.counted(num, 'sample')} in {out}: {calls} on {device}, "
            f"compile {generated.compile_seconds:.1f} s, run {generated.run_seconds:.1f} s"
        )


def _write(path: Path, generated: "Generated", model: "Model", period: int) -> None:
    """Writes a grid of pictures, or arrays as `cmjax generate` does.

    Args:
        path: the file; its suffix says which.
        generated: the samples, u8[N, H, W, C], and their labels.
        model: names the classes in the captions.
        period: number of samples after which the labels repeat, for columns that line up.
    """
    from cmjax.image_files import ImageSet, write_npz
    from cmjax.images import save_grid, tidy_columns

    images = generated.images
    if path.suffix.lower() == PICTURE:
        # A row holds every class, or a whole number of them, where that is possible.
        columns = tidy_columns(len(images), period)
        captions = None
        if generated.labels is not None:
            captions = [model.class_name(label) for label in generated.labels]

        # Small samples are enlarged by a whole factor, so that pixels stay squares.
        scale = max(1, TILE // images.shape[1])
        save_grid(path, images, columns=columns, labels=captions, scale=scale)
    else:
        write_npz(path, ImageSet.of(images, generated.labels))
