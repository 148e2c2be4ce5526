"""Options of the commands that run as several processes, and how these find each other."""

import os

import click

from cmjax.cli import joining
from cmjax.cli.options import group_of


class Coordinator(click.ParamType):
    """The address of process 0, `HOST:PORT`; or "auto" or "none"."""

    name = "address"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        if value not in ("auto", "none"):
            try:
                joining.parse_address(value)
            except ValueError as error:
                self.fail(f"{error}.", param, ctx)
        return value


process_options = group_of(
    click.option(
        "--coordinator",
        metavar="HOST:PORT",
        type=Coordinator(),
        help="Address on which process 0 listens, the same for all processes. Under Slurm and on "
        "TPUs it is detected: 'auto' fails if it cannot be, 'none' runs this process alone.",
    ),
    click.option(
        "--num-processes",
        type=click.IntRange(1, 2**20),
        metavar="N",
        help="Number of processes of the run.",
    ),
    click.option(
        "--process-id",
        type=click.IntRange(0),
        metavar="I",
        help="Number of this process, from 0.",
    ),
    click.option(
        "--coordinator-timeout",
        type=click.IntRange(1, 10**6),
        metavar="SECONDS",
        default=300,
        show_default=True,
        help="How long to wait until all processes have joined.",
    ),
)


def initialize(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    coordinator_timeout: int = 300,
) -> None:
    """Joins the other processes of the run, if there are any.

    It has to come before any other use of JAX, which fixes its devices at the first.

    Args:
        coordinator: `HOST:PORT`; "auto" to detect it and the numbers below; "none" for a run of
            this process alone; None to detect whether there are other processes.
        num_processes: number of processes of the run.
        process_id: number of this process, from 0.
        coordinator_timeout: seconds until the run is given up, which ends the process.

    Raises:
        ValueError: if the options contradict each other, or the processes cannot be joined.
    """
    # A single process, which JAX needs no coordinator for.
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if coordinator == "none" or not (any(given) or _among_others()):
        return

    # With "auto", JAX completes the numbers that are missing; with an address it needs them all.
    if any(given) and coordinator != "auto" and not all(given):
        raise ValueError(
            "--coordinator HOST:PORT, --num-processes and --process-id go together"
        )
    if num_processes is not None and process_id is not None and process_id >= num_processes:
        raise ValueError(
            f"--process-id must be below --num-processes {num_processes}, got {process_id}"
        )
    address = None if coordinator == "auto" else coordinator

    # JAX gives each task of Slurm one device, which suits one task per device. A task that is
    # alone on its node would leave the others idle: [] gives it all of them.
    alone = _env_int("SLURM_STEP_NUM_TASKS") == _env_int("SLURM_STEP_NUM_NODES") > 0
    devices = None
    if alone and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        devices = []
    joining.join(address, num_processes, process_id, devices, coordinator_timeout)


def _among_others() -> bool:
    """Whether Slurm started this process with others, or it may be one of several TPU hosts."""
    if _env_int("SLURM_STEP_NUM_TASKS") > 1:
        return True

    # JAX sets the first variable where it finds TPUs; the user may prefer another platform.
    found = "TPU_ML_PLATFORM" in os.environ
    wanted = "tpu" in (os.environ.get("JAX_PLATFORMS") or "tpu")

    # Without the metadata server, only a list of hosts can name others.
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get(
        "TPU_WORKER_HOSTNAMES"
    )
    several = "TPU_SKIP_MDS_QUERY" not in os.environ or "," in (hosts or "")
    return found and wanted and several


def _env_int(name: str) -> int:
    """Returns an environment variable as an integer, 0 if it is not set."""
    text = os.environ.get(name, "0")
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"the environment variable {name} must be an integer, got {text!r:.200}"
        ) from None
