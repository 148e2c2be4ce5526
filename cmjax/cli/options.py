"""Option values that commands share."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cmjax import Model
    from cmjax.schedulers import Scheduler, SchedulerState


class Numbers(click.ParamType):
    """Numbers separated by commas."""

    def __init__(self, kind: Callable[[str], int | float], example: str):
        self.kind, self.name, self.example = kind, example, example

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[Any]:
        try:
            numbers = [self.kind(part) for part in value.split(",")]
        except ValueError:
            what = "integers" if self.kind is int else "numbers"
            self.fail(
                f"must be {what} separated by commas, such as {self.example}, got {value!r}.",
                param,
                ctx,
            )
        if any(isinstance(number, int) and abs(number) >= 2**31 for number in numbers):
            self.fail(f"{value} is too large.", param, ctx)
        return numbers


def whole_or_not(text: str) -> int | float:
    """Reads an integer where the text is one: training times are counted, angles are not."""
    try:
        return int(text)
    except ValueError:
        return float(text)


class Setting(click.ParamType):
    """An option and its value, `key=value`; the value is JSON, or else a string."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        key, separator, text = value.partition("=")
        if not key or not separator:
            self.fail(f"must be like eta=0.5, got {value!r}.", param, ctx)
        try:
            return key, json.loads(text)
        except ValueError:
            return key, text


SEED = click.IntRange(0, 2**32 - 1)  # keys are made of 32 bits: larger seeds would silently repeat


def check_out(path: Path, kinds: Mapping[str, str]) -> None:
    """Finds out before sampling, not after it, whether `path` can be written."""
    if path.suffix.lower() not in kinds:
        wanted = " or ".join(f"{suffix} ({what})" for suffix, what in kinds.items())
        raise ValueError(f"--out must end in {wanted}, got {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"--out: {path} is a folder; give the name of a file")
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise ValueError(f"--out: there is no folder {path.parent}; make it first")
    try:
        tempfile.TemporaryFile(
            dir=folder
        ).close()  # permission bits say too little: ask the file system
    except OSError as error:
        raise ValueError(
            f"--out: cannot write in {path.parent}: {error.strerror}; choose another folder"
        ) from None


def sampling(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say which samples are made; `open_model` takes the first three."""
    for option in (
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16"]),
            default="float32",
            show_default=True,
            help="Of parameters and samples.",
        ),
        click.option(
            "--seed",
            type=SEED,
            metavar="N",
            default=0,
            show_default=True,
            help="Another seed, other samples.",
        ),
        click.option(
            "--labels",
            type=Numbers(int, "3,1,4"),
            help="Classes to ask for, repeated in turn.  [default: all]",
        ),
        click.option(
            "--sigmas", type=Numbers(float, "80,0.8"), help="The steps as noise levels, descending."
        ),
        click.option(
            "--timesteps",
            type=Numbers(whole_or_not, "22,0"),
            help="The steps as training times or indices, descending.",
        ),
        click.option(
            "--steps",
            type=click.IntRange(1),
            metavar="N",
            help="Steps: a network call each, or two with samplers of second order.  [default: 1]",
        ),
        click.option(
            "--set",
            "settings",
            type=Setting(),
            multiple=True,
            help="An option of the scheduler; may be repeated.",
        ),
        click.option(
            "--scheduler",
            metavar="NAME",
            help="Another sampler than the model's own, such as EDMHeunScheduler.",
        ),
        click.option(
            "--model",
            metavar="MODEL",
            help="A cmjax or diffusers folder, an OpenAI .pt file, or a hub id owner/name.  [default: bundled digits]",
        ),
    ):
        command = option(command)
    return command


def open_model(
    model: str | None, scheduler: str | None, settings: Mapping[str, Any], dtype: str, quiet: bool
) -> "Model":
    """Loads a model, with another sampler if one is asked for."""
    from cmjax.checkpoints import open_checkpoint

    try:
        checkpoint = open_checkpoint(model)
        loaded = checkpoint.load(dtype=dtype)
    except (
        TypeError,
        ArithmeticError,
        RecursionError,
    ) as error:  # values in its files that only fail when used
        raise ValueError(
            f"model {model}: its files make no sense ({type(error).__name__}: {error})"
        ) from None
    if checkpoint.note and not quiet:
        click.echo(f"Note: {checkpoint.note}", err=True)
    if scheduler or settings:
        loaded = loaded.with_scheduler(_scheduler(loaded.scheduler, scheduler, settings))
    return loaded


def schedule(
    steps: int | None, timesteps: list[float] | None, sigmas: list[float] | None
) -> dict[str, Any]:
    """Returns what was given of --steps, --timesteps and --sigmas as argument of `set_timesteps`: one, or none."""
    levels = {"num_inference_steps": steps, "timesteps": timesteps, "sigmas": sigmas}
    given = {name: value for name, value in levels.items() if value is not None}
    if len(given) > 1:
        raise ValueError(
            f"{' and '.join(map(_option, given))} exclude each other; give one of them"
        )
    return given


def set_timesteps(scheduler: "Scheduler", schedule: Mapping[str, Any]) -> "SchedulerState":
    """Returns the scheduler's state for the one argument in `schedule`; an error names its option."""
    try:
        return scheduler.set_timesteps(**schedule)
    except ValueError as error:
        raise ValueError(f"{_option(*schedule)}: {error}") from None


def _option(name: str) -> str:
    return "--steps" if name == "num_inference_steps" else f"--{name}"


def check_labels(labels: list[int] | None, num_classes: int | None) -> list[int] | None:
    """Returns the classes to ask for, all if none are given; None for a model without classes."""
    if num_classes is None:
        if labels is not None:
            raise ValueError("--labels: the model has no classes; leave the option out")
        return None
    for label in labels or ():
        if not 0 <= label < num_classes:
            raise ValueError(f"--labels: the model's classes are 0..{num_classes - 1}, got {label}")
    return labels or list(range(num_classes))


def counted(number: int, noun: str) -> str:
    """Returns such as '1 step' or '2,000 steps'."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _scheduler(
    trained_for: "Scheduler", name: str | None, settings: Mapping[str, Any]
) -> "Scheduler":
    """Returns the scheduler of that name, with the noise levels that the model was trained for unless they are set."""
    from cmjax.configs import did_you_mean
    from cmjax.schedulers import SCHEDULERS, scheduler_like

    name = name or type(trained_for).__name__
    if name not in SCHEDULERS:
        raise ValueError(f"--scheduler: there is no {name!r}{did_you_mean(name, list(SCHEDULERS))}")
    try:
        return scheduler_like(trained_for, name, **settings)
    except ValueError as error:
        raise ValueError(f"--set: {error}") from None


def distributed(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that join several processes into one run; `initialize` takes their values."""
    for option in (
        click.option(
            "--process-id",
            type=click.IntRange(0),
            metavar="I",
            help="This process's number, from 0.",
        ),
        click.option(
            "--num-processes",
            type=click.IntRange(1),
            metavar="N",
            help="How many processes there are.",
        ),
        click.option(
            "--coordinator",
            metavar="HOST:PORT",
            help="Join the processes that give the same address, which process 0 listens on. Found out under Slurm and "
            "on TPUs: 'auto' insists on it, 'none' runs this process alone.",
        ),
    ):
        command = option(command)
    return command


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes, if there are any, by JAX's own runtime; before any other use of JAX."""
    import jax

    given = coordinator is not None, num_processes is not None, process_id is not None
    if coordinator == "none" or not (any(given) or _among_others()):
        return
    if any(given) and (coordinator is None or (coordinator != "auto" and not all(given))):
        raise ValueError("--coordinator HOST:PORT, --num-processes and --process-id go together")
    if num_processes is not None and process_id is not None and process_id >= num_processes:
        raise ValueError(
            f"--process-id must be below --num-processes {num_processes}, got {process_id}"
        )
    address = None if coordinator == "auto" else coordinator
    try:
        # JAX gives a Slurm task one device; a task alone on its node is to have them all, which [] means.
        alone = _in_slurm("SLURM_STEP_NUM_TASKS") == _in_slurm("SLURM_STEP_NUM_NODES") > 0
        devices = [] if alone and "JAX_LOCAL_DEVICE_IDS" not in os.environ else None
        jax.distributed.initialize(address, num_processes, process_id, local_device_ids=devices)
    except (OSError, RuntimeError, ValueError) as error:
        hint = (
            ""
            if address
            else "; if this is no TPU pod or Slurm job, give HOST:PORT, or none for a run alone"
        )
        what = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"--coordinator {coordinator or 'auto'}: {what}{hint}") from None


def _among_others() -> bool:
    """Whether Slurm started this process with others, or it is to run on TPUs, which may be of several hosts."""
    if _in_slurm("SLURM_STEP_NUM_TASKS") > 1:
        return True
    found = "TPU_ML_PLATFORM" in os.environ  # which JAX sets where it finds some
    wanted = "tpu" in (os.environ.get("JAX_PLATFORMS") or "tpu")
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    return found and wanted and ("TPU_SKIP_MDS_QUERY" not in os.environ or "," in (hosts or ""))


def _in_slurm(name: str) -> int:
    return int(os.environ.get(name, 0))
