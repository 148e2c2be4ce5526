"""What the commands print: texts of files and servers must not control the user's terminal."""

import sys

import click


def echo(text: object, err: bool = False) -> None:
    """Prints a text, all of whose characters are harmless, on stdout or stderr."""
    shown = printable(str(text), keep="\n")

    # A terminal or a log of another encoding must not fail for a character that it lacks.
    stream = sys.stderr if err else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    click.echo(shown.encode(encoding, "backslashreplace").decode(encoding), err=err)


def printable(text: str, keep: str = "") -> str:
    """Returns the text with everything escaped that is no visible character.

    Names of tensors and classes, strings in configs, file names and answers of servers may hold
    sequences that move the cursor, hide lines or set the title, or reverse the order of letters.

    Args:
        text: any text.
        keep: characters that stay as they are, whatever they do.
    """
    # `isprintable` is False for control and format characters, such as the marks of direction, for
    # line separators, and for surrogates, which cannot be encoded.
    parts = []
    for character in text:
        if character.isprintable() or character in keep:
            parts.append(character)
        else:
            parts.append(character.encode("unicode_escape").decode())
    return "".join(parts)


def one_line(text: str, longest: int = 4000) -> str:
    """Returns the text as one printable line, its end left out if it is very long."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= longest else f"{line[:longest]} ..."


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
