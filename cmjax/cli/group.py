"""How every command fails: in one line."""

import contextlib
import errno
import logging
import os
import sys
import warnings
from typing import Any

import click

from cmjax.cli import terminal
from cmjax.cli.wording import in_options, in_plain_words
from cmjax.interrupts import INTERRUPTED, leave_at_interrupt
from cmjax.printing import LONGEST_LINE, one_line
from cmjax.spelling import close_spelling
from cmjax.system import write_message

# Environment variable: if it is set, unexpected errors are shown whole.
TRACEBACK = "CMJAX_TRACEBACK"

# What the system's words for these errors leave open.
FOLDERS = {
    NotADirectoryError: "a file is there, where a folder is wanted; give another name",
    FileExistsError: "a file is there, where a folder is wanted; give another name",
    IsADirectoryError: "a folder is there, where a file is wanted; give another name",
}


class OneLineErrors(click.Group):
    """A group whose every failure is one line on stderr and exit code 2; 130 when interrupted."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs as a program; `main` is for those who embed it and handle Ctrl-C themselves."""
        leave_at_interrupt()
        # Orbax writes all parts of a checkpoint at once. When one of them fails, Python would warn
        # of those that never began, next to the one line that matters; and while the process ends,
        # it would log the errors of the others.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        try:
            return self.main(*args, **kwargs)
        except SystemExit as end:
            if end.code == 2:
                logging.disable()
                sys.unraisablehook = lambda _: None
            raise

    def main(self, *args: Any, **kwargs: Any) -> Any:
        # In its standalone mode, click handles errors itself, and spreads them over several lines.
        kwargs["standalone_mode"] = False
        try:
            sys.exit(super().main(*args, **kwargs))
        except click.UsageError as error:
            _keep_close_spellings(error)

            # A bad value's message says what is wanted; other mistakes need the list of options.
            hint = ""
            is_bad_value = isinstance(error, click.BadParameter)
            is_missing = isinstance(error, click.MissingParameter)
            if error.ctx is not None and (is_missing or not is_bad_value):
                hint = f" See {error.ctx.command_path} --help."
            self._fail(in_plain_words(error.format_message()) + hint)
        except click.ClickException as error:
            self._fail(error.format_message())
        except OSError as error:
            # What is printed before a command begins, such as --help.
            self._fail(f"cannot print: {error.strerror or error}")

    def invoke(self, ctx: click.Context) -> Any:
        # Here, and not in `main`, the context still knows which subcommand failed.
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            terminal.echo(INTERRUPTED, err=True)
            ctx.exit(130)
        except BrokenPipeError:
            # It is an OSError, but a reader such as `head` that has enough is no failure.
            raise
        except OSError as error:
            # Without the number, as in "samples.png: No space left on device".
            reason = FOLDERS.get(type(error), error.strerror)
            parts = [str(part) for part in (error.filename, reason) if part]
            message = ": ".join(parts) or str(error)
            if error.filename is None and error.errno in (errno.ENOSPC, errno.EIO):
                message = f"cannot print: {reason}"  # files have names
            raise click.ClickException(message) from None
        except (ValueError, MemoryError) as error:
            # Python's own MemoryError has no message.
            message = str(error) or "out of memory; ask for fewer samples at a time"
            raise click.ClickException(in_options(message, ctx)) from None
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception as error:
            # Nothing that a user gives should come here, but a class of the user's own may raise
            # anything, and so does JAX where it finds no device.
            if os.environ.get(TRACEBACK):
                raise
            raise click.ClickException(_unexpected(error)) from None

    @staticmethod
    def _fail(message: str) -> None:
        """Prints the error and ends the process with exit code 2."""
        # Messages of other libraries may have several lines.
        terminal.echo(one_line(f"Error: {message}", LONGEST_LINE), err=True)
        sys.exit(2)


def give_up(message: str) -> None:
    """Ends the process at once as a failure does, where compiled code keeps it from ending."""
    if sys.stdout is not None:
        sys.stdout.flush()
    write_message(one_line(f"Error: {message}", LONGEST_LINE))
    os._exit(2)


def _unexpected(error: Exception) -> str:
    """Returns what to print of an error that no argument was found to be the cause of."""
    problem = _device_problem()
    if problem:
        return problem
    return f"{type(error).__name__}: {error!s:.1000} ({TRACEBACK}=1 shows where)"


def _device_problem() -> str:
    """Returns why JAX finds no device to compute on, or ""."""
    # JAX's own error comes where a device is first used, and may be of any kind.
    with contextlib.suppress(ImportError):
        import jax

        try:
            jax.devices()
        except Exception as error:
            wanted = os.environ.get("JAX_PLATFORMS", "")
            reason = str(error).split("\n")[0] or "none of these starts"
            return (
                f"JAX finds no device to compute on with JAX_PLATFORMS={wanted!r}: "
                f"{reason:.500}; unset it, or install what the device needs"
            )
    return ""


def _keep_close_spellings(error: click.UsageError) -> None:
    """Removes suggestions that are other options or commands, such as --out for --num."""
    name = getattr(error, "option_name", None) or getattr(error, "command_name", None)
    possibilities = getattr(error, "possibilities", None)
    if name and possibilities:
        close = close_spelling(name, possibilities)
        error.possibilities = [close] if close else []  # pyright: ignore
