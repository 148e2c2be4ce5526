"""The command line, as the program `cmjax` and as `python -m cmjax`."""


def main() -> None:
    """Runs the command line."""
    # Ctrl-C is answered from here on: the imports that follow take seconds, and a KeyboardInterrupt
    # within them is a traceback, is lost, or ends in a core dump.
    from cmjax import interrupts

    interrupts.leave_at_interrupt()

    from cmjax.cli import main as command

    command(prog_name="cmjax")


if __name__ == "__main__":
    main()
