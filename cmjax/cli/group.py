"""How every command fails: in one line."""

import os
import signal
import sys
from typing import Any

import click

from cmjax.cli.wording import in_options


class OneLineErrors(click.Group):
    """A group whose every failure is one line on stderr and exit code 2; 130 when interrupted."""

    def __call__(
        self, *args: Any, **kwargs: Any
    ) -> Any:  # as a program; `main` serves those who embed it
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, leave)
        return self.main(*args, **kwargs)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False  # click would spread usage errors over several lines
        try:
            sys.exit(super().main(*args, **kwargs))
        except click.UsageError as error:
            hint = (
                ""
                if isinstance(error, click.BadParameter) or error.ctx is None
                else error.ctx.command_path
            )
            self._fail(error.format_message() + (hint and f" See {hint} --help."))
        except click.ClickException as error:
            self._fail(error.format_message())

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(_INTERRUPTED, err=True)
            ctx.exit(130)
        except BrokenPipeError:
            raise
        except OSError as error:
            parts = [str(part) for part in (error.filename, error.strerror) if part]
            raise click.ClickException(": ".join(parts) or str(error)) from None
        except (ValueError, MemoryError) as error:
            message = str(error) or "out of memory; ask for fewer samples at a time"
            raise click.ClickException(in_options(message, ctx)) from None

    @staticmethod
    def _fail(message: str) -> None:
        click.echo(f"Error: {' '.join(message.split())}", err=True)
        sys.exit(2)


_INTERRUPTED = "Interrupted; nothing unfinished was written."


def leave(*_: Any) -> None:
    """Ends the process: an exception gets lost, or aborts, where libraries call back into Python."""
    os.write(
        2, ("\n" * sys.stderr.isatty() + _INTERRUPTED + "\n").encode()
    )  # below the ^C and the bar
    os._exit(130)
