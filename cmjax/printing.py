"""Texts from files and servers, as messages show them."""

# Letters of a line that a command prints.
LONGEST_LINE = 4000


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


def one_line(text: str, longest: int = 300) -> str:
    """Returns the text as one printable line, its end left out if it is very long."""
    # Of a text of megabytes, no more is looked at than can be shown.
    line = printable(" ".join(text[: longest + 1].split()))
    if len(text) <= longest and len(line) <= longest:
        return line
    return f"{line[:longest]} ..."
