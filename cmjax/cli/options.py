"""Options that several commands have, as decorators of these commands."""

from collections.abc import Callable
from typing import Any

import click

from cmjax.cli.option_types import (
    SEED,
    Labels,
    Numbers,
    Setting,
    complete_path,
    complete_scheduler,
    int_or_float,
)

# What adds options to a command.
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def group_of(*options: Decorator) -> Decorator:
    """Returns a decorator that adds options to a command; help lists them in this order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        # Decorators apply from the innermost, so the last option comes first.
        for option in reversed(options):
            command = option(command)
        return command

    return add


as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, for programs to read."
)

# The value travels in click's context, where `opening.open_checkpoint` finds it: every command that
# opens models has the option, and none has to pass it on.
trust = click.option(
    "--trust",
    is_flag=True,
    expose_value=False,
    callback=lambda ctx, param, value: ctx.meta.update({"cmjax.trust": value}),
    help="Import the network and scheduler classes that the model's files name, which runs their "
    "code.",
)

# In the context too: for models that come without their autoencoder.
vae = click.option(
    "--vae",
    metavar="SRC",
    expose_value=False,
    callback=lambda ctx, param, value: ctx.meta.update({"cmjax.vae": value}),
    shell_complete=complete_path,
    help="Autoencoder of a model of latents: a folder, a file of weights next to its config, or a "
    "hub id.  [default: the one that comes with the model]",
)

# For commands that sample, by `sampling` below, and for `cmjax edit`.
guiding = group_of(
    click.option(
        "--guidance",
        type=float,
        metavar="W",
        help="Scale of guidance, for a network with a null class or one that takes a scale; 1 is "
        "none.  [default: what the model recommends, or none]",
    ),
    click.option(
        "--guidance-interval",
        type=Numbers(float, "0.2,1.6"),
        help="The noise levels, lowest and highest, to guide at; for a network that takes a "
        "scale, the times, 0 (data) to 1 (noise).  [default: what the model recommends, or all]",
    ),
)


# Which model is sampled, and by which scheduler.
choosing = group_of(
    click.option(
        "--model",
        "-m",
        metavar="MODEL",
        shell_complete=complete_path,
        help="A cmjax or diffusers folder, the file or folder of a released model, or a hub id "
        "owner/name.  [default: bundled digits]",
    ),
    trust,
    vae,
    click.option(
        "--scheduler",
        metavar="NAME",
        shell_complete=complete_scheduler,
        help="Sampler in place of the model's own: a name that cmjax schedulers lists, or "
        "package.module:Name for a class of yours.",
    ),
    click.option(
        "--set",
        "settings",
        type=Setting(),
        multiple=True,
        help="Option of the scheduler, such as s_churn=10; may be repeated. "
        "cmjax schedulers NAME lists them.",
    ),
)

# The noise, and the precision that it is computed in.
drawing = group_of(
    click.option(
        "--seed",
        type=SEED,
        metavar="N",
        default=0,
        show_default=True,
        help="Seed of the noise; another one makes other samples.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16"]),
        default="float32",
        show_default=True,
        help="Dtype of parameters and samples.",
    ),
)


def sampling(steps: int = 1) -> Decorator:
    """Returns the options that decide what a sample is, apart from how many there are.

    Args:
        steps: the number of steps that help names as the default; the command takes it itself.
    """
    return group_of(
        choosing,
        click.option(
            "--steps",
            "-s",
            type=click.IntRange(1),
            metavar="N",
            help="Number of steps; each is one network call, or two with a sampler such as "
            f"EDMHeunScheduler.  [default: {steps}]",
        ),
        click.option(
            "--timesteps",
            type=Numbers(int_or_float, "22,0"),
            help="Training times or indices to step through, descending, in place of --steps.",
        ),
        click.option(
            "--sigmas",
            type=Numbers(float, "80,0.8"),
            help="Noise levels to step through, descending, in place of --steps.",
        ),
        click.option(
            "--labels",
            "-l",
            type=Labels(),
            help="Classes to sample, by number or name, or a range such as 0-9, repeated in turn.  "
            "[default: all]",
        ),
        guiding,
        drawing,
    )


def num(default: int, help: str, least: int = 1) -> Decorator:
    """Returns the option `--num`, the number of samples.

    Args:
        default: if it is not given.
        help: what these samples are.
        least: the smallest number that makes sense.
    """
    # A sample's key is made of 32 bits of its number.
    return click.option(
        "--num",
        "-n",
        type=click.IntRange(least, 2**32),
        metavar="N",
        default=default,
        show_default=True,
        help=help,
    )


def size() -> Decorator:
    """Returns the option `--size`, of pictures that are compared."""
    return click.option(
        "--size",
        type=click.IntRange(1, 4096),
        metavar="N",
        help="Scale the middle square of each picture to NxN pixels, as cmjax train does.",
    )


def batch_size(help: str = "Number of samples that are made at a time.") -> Decorator:
    """Returns the option `--batch-size`, which `help` describes."""
    return click.option(
        "--batch-size",
        type=click.IntRange(1),
        metavar="N",
        default=64,
        show_default=True,
        help=help,
    )
