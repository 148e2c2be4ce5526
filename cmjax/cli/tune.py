"""`cmjax tune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmjax.cli import checks, opening, option_types, options, terminal, wording

if TYPE_CHECKING:
    from cmjax.cli.evaluate_inputs import Compared
    from cmjax.model import Model

BATCH = 64  # pictures whose features are computed at a time
STEPS = 2  # of the samples, by default; the first level is kept, so that one is too few


@click.command()
@click.argument("real", metavar="REAL", type=option_types.Location())
@options.sampling(STEPS)
@click.option(
    "--features",
    metavar="NAME",
    required=True,
    help="What makes features of pictures, as for cmjax evaluate: package.module:function, or "
    "pixels.",
)
@options.size()
@options.num(1000, "Number of samples that levels are judged by.", least=2)
@click.option(
    "--trials",
    type=click.IntRange(1),
    metavar="N",
    default=20,
    show_default=True,
    help="Number of levels to try.",
)
@options.batch_size()
@click.option(
    "--out",
    "-o",
    type=option_types.Location(),
    metavar="FILE",
    help="Where to keep the trials, as JSON. The same command continues from them.",
)
def tune(
    real: Path,
    model: str | None,
    scheduler: str | None,
    settings: tuple[tuple[str, object], ...],
    steps: int | None,
    timesteps: list[float] | None,
    sigmas: list[float] | None,
    labels: list[str] | None,
    seed: int,
    dtype: str,
    guidance: float | None,
    guidance_interval: list[float] | None,
    features: str,
    size: int | None,
    num: int,
    trials: int,
    batch_size: int,
    out: Path | None,
) -> None:
    """Searches for the noise levels whose samples are most like those of REAL.

    REAL is as for cmjax evaluate: pictures, features or statistics. The levels of --steps,
    --timesteps or --sigmas are where the search begins; the first of them is kept. It goes by the
    Fréchet distance of samples of one seed: judge the levels that it finds by cmjax evaluate with
    another.

    \b
    Examples:
      cmjax tune mnist.npz --features pixels --steps 2
      cmjax tune photos --model runs/mine --steps 3 --features mypkg.clip:embed
    """  # noqa: D301
    schedule = checks.schedule(steps, timesteps, sigmas) or {"num_inference_steps": STEPS}
    if out is not None:
        checks.check_out_file(out)

    from cmjax.cli.evaluate_inputs import read
    from cmjax.cli.tune_levels import lowest_level, starting_levels
    from cmjax.cli.tune_trials import Trials, as_option
    from cmjax.evaluation import search_sigmas
    from cmjax.generation.settings import model_digest
    from cmjax.training.digests import digest_of

    # What only the model and the data can tell of the options is checked before anything compiles.
    loaded = opening.open_model(model, scheduler, dict(settings), dtype, quiet=False)
    classes = checks.check_labels(labels, loaded.num_classes, loaded.class_names)
    state = checks.set_timesteps(loaded.scheduler, schedule)
    checks.check_guidance(loaded, guidance, guidance_interval, state.num_steps)
    start = starting_levels(loaded.scheduler, schedule, state)
    compared = read(real, size, None)
    reference = _reference(compared, features)

    # What the scores depend on: trials of another search are of no use here.
    sampling = {
        "labels": classes,
        "seed": seed,
        "dtype": dtype,
        "guidance": guidance,
        "guidance_interval": guidance_interval,
        "num": num,
    }
    search = {
        "model": model,
        "model_digest": model_digest(loaded),
        "scheduler": loaded.scheduler.to_config(),
        "real": str(real),
        "real_digest": digest_of(compared._replace(path=None)).hex(),
        "features": features,
        "size": size,
        "batch_size": batch_size,
        **sampling,
        "sigmas": start,
    }
    kept = Trials(out, search, trials)
    terminal.print_notes()

    # The distance of the samples at some levels.
    def objective(levels):
        pictures = _pictures(loaded, levels, batch_size, **sampling)
        distance = _distance(pictures, real, reference, features, size)
        kept.add(levels, distance)
        return distance

    found = search_sigmas(
        objective,
        start,
        num_trials=trials,
        lowest=lowest_level(loaded.scheduler, start),
        trials=kept.known(),
    )
    if len(found.trials) < trials:
        made = wording.counted(len(found.trials), "trial")
        terminal.echo(f"ended after {made}: no level gains more")
    terminal.echo(
        f"distance {found.score:.6g}, and {found.trials[0].score:.6g} where the search began; "
        f"the levels: --sigmas {as_option(found.sigmas)}"
    )


def _reference(real: "Compared", features: str) -> Any:
    """Returns what samples are compared with: features f[N, D], or the Gaussian of them."""
    from cmjax.cli.evaluate import features_of
    from cmjax.evaluation import Gaussian, as_gaussian

    # The Gaussian of many samples is fitted once. Few of them are compared faster as they are.
    found = features_of(real, features, BATCH)
    if isinstance(found, Gaussian) or len(found) > found.shape[1]:
        return as_gaussian(found, str(real.path))
    return found


def _distance(
    pictures: Any, real: Path, reference: Any, features: str, size: int | None
) -> float:
    """Returns the Fréchet distance of samples from what they are compared with.

    Args:
        pictures: the samples, u8[N, H, W, C].
        real: the pictures that they are compared with, for errors.
        reference: what `_reference` made of these.
        features: what makes features of pictures.
        size: of the pictures that features are made of; None leaves them.
    """
    from cmjax.cli.evaluate import check_num_features, features_of
    from cmjax.cli.evaluate_inputs import Compared, resized
    from cmjax.evaluation import frechet_distance

    samples = resized(Compared(Path("the samples"), pictures=pictures), size)
    generated = features_of(samples, features, BATCH)
    check_num_features(real, reference, "the samples", generated)
    return frechet_distance(generated, reference)


def _pictures(
    model: "Model", levels: Any, batch_size: int, *, num: int, seed: int, **options: Any
) -> Any:
    """Returns samples at some noise levels, u8[num, H, W, C].

    Args:
        model: to sample from.
        levels: the noise levels of the calls.
        batch_size: number of samples that are made at a time.
        num: number of samples.
        seed: of the noise.
        **options: of `Model.sample`.
    """
    import numpy as np

    from cmjax.images import to_uint8
    from cmjax.random import key_of_seed

    # All batches are full, so that one program makes them all; what is too much is cut off.
    parts = []
    size = min(num, batch_size)
    for first in range(0, num, size):
        x = model.sample(
            key_of_seed(seed),
            size,
            sigmas=np.float32(levels),
            first_index=first,
            **options,
        )
        parts.append(to_uint8(x))
    return np.concatenate(parts)[:num]
