"""A class-conditional consistency model of 28x28 digits: a denoiser, then its distillation.

    python examples/train_digits.py mnist.npz --out runs/digits

The stages are `cmjax train digits` and `cmjax train digits_distilled`; on two CPU cores they take
about 80 and 20 minutes. Ctrl-C saves the run, and the same command resumes it. In the
end `--out` holds the folders `denoiser` and `consistency`, each with sample pictures, metrics,
checkpoints and a `model` for `cmjax sample --model`. The bundled model was trained further: see its
PROVENANCE.md and adversarial_digits.py.
"""

from pathlib import Path

import click

from cmjax.training import run
from cmjax.training.config import read_config


@click.command()
@click.argument("source", metavar="DATA", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default="runs/digits", show_default=True
)
@click.option("--denoiser-steps", type=click.IntRange(1), default=5000, show_default=True)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=1700,
    show_default=True,
    help="Of the distillation.",
)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def main(source, out, denoiser_steps, steps, batch_size, seed):
    """Trains on DATA, an .npz with x_train and y_train or an IDX file with labels next to it."""
    # (preset, folder, settings) of each stage. The second starts from the model of the
    # first, which is its teacher as well.
    stages = (
        ("digits", out / "denoiser", {"run.steps": denoiser_steps}),
        (
            "digits_distilled",
            out / "consistency",
            {"run.steps": steps, "run.init": str(out / "denoiser" / "model")},
        ),
    )
    for preset, folder, settings in stages:
        settings |= {
            "data.source": str(source),
            "run.batch_size": batch_size,
            "run.seed": seed,
        }

        # A short trial run must not be over before its warm-up is.
        settings["optimizer.warmup_steps"] = min(100, settings["run.steps"] // 2)

        # Ctrl-C saves the run and then ends this program: the next stage does not start.
        run.train(read_config(preset, settings.items()), folder, report=click.echo)
    click.echo(f"cmjax sample --model {folder / 'model'}")


if __name__ == "__main__":
    main()
