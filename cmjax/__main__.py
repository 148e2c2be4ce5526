"""The command line as `python -m cmjax`."""

from cmjax.cli import main

if __name__ == "__main__":
    main(prog_name="cmjax")
