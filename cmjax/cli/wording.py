"""The words of the command line, for all commands: of errors, numbers and results."""

import re
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cmjax.generation import Outcome

# Functions of the library that errors name -> what a user of the command line calls instead.
COMMANDS = {
    "generate_folder": "cmjax generate",
    "encode_folder": "cmjax encode",
    "jax.distributed.initialize": "--coordinator",
}

# Arguments that errors of the library give as a way out -> the options that stand for them.
OPTIONS = {
    "num_inference_steps": "--steps",
    "sigmas=[...]": "--sigmas",
    "null_class=True and label_dropout": "network.null_class=true and run.label_dropout",
}

# What click says of a value -> what a reader who does not know click understands.
PLAIN = {
    " is not a valid integer range": " is not a whole number",
    " is not a valid integer": " is not a whole number",
    " is not a valid float range": " is not a number",
    " is not a valid float": " is not a number",
}


def in_plain_words(message: str) -> str:
    """Returns an error of click's in plain words, as a sentence that ends."""
    for words, plain in PLAIN.items():
        message = message.replace(words, plain)
    if message[-1:] not in ".?":
        message += "."
    return message


def in_options(message: str, ctx: click.Context) -> str:
    """Replaces the arguments in an error by options: `batch_size` becomes `--batch-size`.

    Args:
        message: the library's error.
        ctx: context of the group whose subcommand failed, which gives the options to name.

    Returns:
        The message to print.
    """
    names = COMMANDS | OPTIONS
    command = getattr(ctx.command, "commands", {}).get(ctx.invoked_subcommand)
    for param in getattr(command, "params", ()):
        # Names of one word, such as `seed`, are words of a sentence as well: they stay.
        if isinstance(param, click.Option) and "_" in (param.name or ""):
            names[str(param.name)] = param.opts[0]

    # Whole names only: not the end of `model.batch_size`, nor the argument in `batch_size=8`.
    for name, words in names.items():
        message = re.sub(rf"(?<![\w.]){re.escape(name)}(?![\w=])", words, message)

    # The library's own words may begin with the option that is named already.
    return re.sub(r"^(--[\w-]+): \1 ", r"\1 ", message)


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun, such as '1 step' or '2,000 steps'."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def rate(outcome: "Outcome") -> str:
    """Returns how fast a run made its records, ahead of which goes what it made.

    A run that found all of them in its folder has no rate, and "" is returned.
    """
    if not outcome.num_made:
        return ""
    import jax

    from cmjax.processes import device_names

    number = outcome.num_made / outcome.seconds
    devices = device_names(jax.local_devices())
    return f", {number:,.1f} a second by this process on {devices}"
