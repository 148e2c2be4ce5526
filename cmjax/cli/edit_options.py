"""Options that several tasks of `cmjax edit` have, as decorators of these tasks.

They are not those of `options.sampling`: the number of steps and the classes have other defaults
here, and there is no choice of scheduler, dtype or autoencoder.
"""

import click

from cmjax.cli import option_types, options

IMAGE = click.argument(
    "image", metavar="[IMAGE]", required=False, type=option_types.Location()
)
MODEL = click.option(
    "--model",
    "-m",
    metavar="MODEL",
    shell_complete=option_types.complete_path,
    help="A model, as for cmjax sample.  [default: bundled digits]",
)
LABELS = click.option(
    "--labels",
    "-l",
    type=option_types.Labels(),
    help="Classes of the results, by number, name or range, repeated in turn, for a model with "
    "classes.",
)
SEED = click.option(
    "--seed",
    type=option_types.SEED,
    metavar="N",
    default=0,
    show_default=True,
    help="Seed of the noise; another one makes other results.",
)
OUT = click.option(
    "--out",
    "-o",
    type=option_types.Location(),
    default="edited.png",
    show_default=True,
    metavar="FILE|DIR",
    help="A .png, which shows what was given and the results side by side; or a folder, for the "
    "results alone, at the model's size.",
)
QUIET = click.option("--quiet", is_flag=True, help="Print nothing but errors.")
STEPS = click.option(
    "--steps",
    "-s",
    type=click.IntRange(1),
    metavar="N",
    help="Number of steps.  [default: one per training level but the lowest; 10 with --method "
    "posterior]",
)
TIMESTEPS = click.option(
    "--timesteps",
    type=option_types.Numbers(int, "22,0"),
    help="Indices of training levels to step through, descending, in place of --steps.",
)
SIGMAS = click.option(
    "--sigmas",
    type=option_types.Numbers(float, "80,0.8"),
    help="Noise levels to step through, descending, in place of --steps.",
)
NUM = click.option(
    "--num",
    "-n",
    type=click.IntRange(1),
    metavar="N",
    default=3,
    show_default=True,
    help="Number of results of each picture.",
)

METHOD = click.option(
    "--method",
    type=click.Choice(["projection", "posterior"]),
    default="projection",
    show_default=True,
    help="projection: put back what is known after every call (quick). posterior: sample what is "
    "likely given the known part, for consistency models (slower).",
)

# All tasks take the first group; those that sample under a constraint take the second.
common_options = options.group_of(MODEL, options.trust, LABELS, SEED, OUT, QUIET)
constrained = options.group_of(
    METHOD, STEPS, TIMESTEPS, SIGMAS, options.guiding, NUM, common_options
)
