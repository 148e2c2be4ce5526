"""How every command fails: in one line."""

import signal
import sys
from typing import Any

import click

from cmjax.cli.wording import in_options
from cmjax.interrupts import INTERRUPTED, leave


class OneLineErrors(click.Group):
    """A group whose every failure is one line on stderr and exit code 2; 130 when interrupted."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs as a program; `main` is for those who embed it and handle Ctrl-C themselves."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, leave)
        return self.main(*args, **kwargs)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        # In its standalone mode, click handles errors itself, and spreads them over several lines.
        kwargs["standalone_mode"] = False
        try:
            sys.exit(super().main(*args, **kwargs))
        except click.UsageError as error:
            # A bad value's message says what is wanted; other mistakes need the list of options.
            hint = ""
            if error.ctx is not None and not isinstance(error, click.BadParameter):
                hint = f" See {error.ctx.command_path} --help."
            self._fail(error.format_message() + hint)
        except click.ClickException as error:
            self._fail(error.format_message())

    def invoke(self, ctx: click.Context) -> Any:
        # Here, and not in `main`, the context still knows which subcommand failed.
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(INTERRUPTED, err=True)
            ctx.exit(130)
        except BrokenPipeError:
            # It is an OSError, but a reader such as `head` that has enough is no failure.
            raise
        except OSError as error:
            # Without the number, as in "samples.png: No space left on device".
            parts = [str(part) for part in (error.filename, error.strerror) if part]
            raise click.ClickException(": ".join(parts) or str(error)) from None
        except (ValueError, MemoryError) as error:
            # Python's own MemoryError has no message.
            message = str(error) or "out of memory; ask for fewer samples at a time"
            raise click.ClickException(in_options(message, ctx)) from None

    @staticmethod
    def _fail(message: str) -> None:
        """Prints the error and ends the process with exit code 2."""
        # Messages of other libraries may have several lines.
        click.echo(f"Error: {' '.join(message.split())}", err=True)
        sys.exit(2)
