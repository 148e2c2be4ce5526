"""Options of the commands that run as several processes, and how these find each other."""

import os

import click

from cmjax.cli.options import group_of

process_options = group_of(
    click.option(
        "--coordinator",
        metavar="HOST:PORT",
        help="Address on which process 0 listens, the same for all processes. Under Slurm and on "
        "TPUs it is detected: 'auto' fails if it cannot be, 'none' runs this process alone.",
    ),
    click.option(
        "--num-processes",
        type=click.IntRange(1),
        metavar="N",
        help="Number of processes of the run.",
    ),
    click.option(
        "--process-id",
        type=click.IntRange(0),
        metavar="I",
        help="Number of this process, from 0.",
    ),
)


def initialize(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the other processes of the run, if there are any.

    It has to come before any other use of JAX, which fixes its devices at the first.

    Args:
        coordinator: `HOST:PORT`; "auto" to detect it and the numbers below; "none" for a run of
            this process alone; None to detect whether there are other processes.
        num_processes: number of processes of the run.
        process_id: number of this process, from 0.

    Raises:
        ValueError: if the options contradict each other, or the processes cannot be joined.
    """
    # Imported late: `cmjax --help` must not wait for JAX.
    import jax

    # A single process, which JAX needs no coordinator for.
    joining = [value is not None for value in (coordinator, num_processes, process_id)]
    if coordinator == "none" or not (any(joining) or _among_others()):
        return

    # With "auto", JAX completes the numbers that are missing; with an address it needs them all.
    if any(joining) and coordinator != "auto" and not all(joining):
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

    try:
        jax.distributed.initialize(
            address, num_processes, process_id, local_device_ids=devices
        )
    except (OSError, RuntimeError, ValueError) as error:
        # The runtime's errors can fill a page; their first line says what happened.
        what = (str(error) or type(error).__name__).splitlines()[0]
        hint = ""
        if not address:
            hint = "; outside of TPU pods and Slurm jobs give HOST:PORT, or none for a run alone"
        raise ValueError(f"--coordinator {coordinator or 'auto'}: {what}{hint}") from None


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
    return int(os.environ.get(name, 0))
