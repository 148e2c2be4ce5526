"""From the library's words to those of the command line, for all commands."""

import re

import click

COMMANDS = {
    "generate_folder": "cmjax generate",
    "jax.distributed.initialize": "--coordinator",
}


def in_options(message: str, ctx: click.Context) -> str:
    """Returns an error of the library with options for arguments: `--batch-size` for `batch_size`.

    Args:
        message: of the error.
        ctx: of the group whose subcommand failed; its options are the ones named.
    """
    names = dict(COMMANDS)
    command = getattr(ctx.command, "commands", {}).get(ctx.invoked_subcommand)
    for param in getattr(command, "params", ()):
        # Names of one word, such as `seed`, are words of a sentence as well: they stay.
        if isinstance(param, click.Option) and "_" in (param.name or ""):
            names[str(param.name)] = param.opts[0]
    for name, words in names.items():
        message = re.sub(rf"(?<![\w.]){re.escape(name)}(?![\w=])", words, message)
    return message
