"""What the commands print: texts of files and servers must not control the user's terminal."""

import sys

import click

from cmjax.printing import printable


def echo(text: object, err: bool = False) -> None:
    """Prints a text, all of whose characters are harmless, on stdout or stderr."""
    shown = printable(str(text), keep="\n")

    # A terminal or a log of another encoding must not fail for a character that it lacks.
    stream = sys.stderr if err else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    click.echo(shown.encode(encoding, "backslashreplace").decode(encoding), err=err)


def note(text: str) -> None:
    """Keeps a message until `print_notes`: a command that fails prints its error and no more."""
    ctx = click.get_current_context(silent=True)
    if ctx is None:
        echo(text, err=True)
    else:
        ctx.meta.setdefault("cmjax.notes", []).append(text)


def print_notes() -> None:
    """Prints the notes, on stderr with the other messages that are not results."""
    ctx = click.get_current_context(silent=True)
    if ctx is not None:
        for text in ctx.meta.pop("cmjax.notes", []):
            echo(text, err=True)
