"""The command line: parses, calls the library, prints. One module a command.

Only click is imported with it. The commands import what is heavy when they run, so that help,
completion and usage errors come at once.
"""

from cmjax.cli.main import main

__all__ = ["main"]
