"""Options that commands share, and what they mean."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cmjax.checkpoints import Checkpoint
    from cmjax.model import Model
    from cmjax.schedulers import Scheduler, SchedulerState

SEED = click.IntRange(0, 2**32 - 1)  # keys are made of 32 bits: larger seeds would silently repeat


class Numbers(click.ParamType):
    """Numbers separated by commas."""

    def __init__(self, kind: Callable[[str], int | float], example: str):
        self.kind = kind
        self.name = example
        self.example = example

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


def int_or_float(text: str) -> int | float:
    """Reads an integer where the text is one: training times are counted, angles are not."""
    try:
        return int(text)
    except ValueError:
        return float(text)


class Labels(click.ParamType):
    """Classes separated by commas: their numbers or their names."""

    name = "3,1,4"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[str]:
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(parts):
            self.fail(
                f"must be classes separated by commas, such as 3,1,4, got {value!r}.", param, ctx
            )
        return parts


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


def group_of(*options: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns a decorator that adds options to a command; help lists them in this order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


# `open_checkpoint` asks for it: a command that opens models need not pass it on.
trust = click.option(
    "--trust",
    is_flag=True,
    expose_value=False,
    callback=lambda ctx, param, value: ctx.meta.update({"cmjax.trust": value}),
    help="Import network and scheduler classes that the model's files name: runs their code.",
)

sampling = group_of(
    click.option(
        "--model",
        metavar="MODEL",
        help="A cmjax or diffusers folder, an OpenAI .pt file, or a hub id owner/name.  "
        "[default: bundled digits]",
    ),
    trust,
    click.option(
        "--scheduler",
        metavar="NAME",
        help="Another sampler than the model's own, such as EDMHeunScheduler, or your own class, "
        "package.module:Name.",
    ),
    click.option(
        "--set",
        "settings",
        type=Setting(),
        multiple=True,
        help="An option of the scheduler; may be repeated.",
    ),
    click.option(
        "--steps",
        type=click.IntRange(1),
        metavar="N",
        help="Steps: a network call each, or two with samplers of second order.  [default: 1]",
    ),
    click.option(
        "--timesteps",
        type=Numbers(int_or_float, "22,0"),
        help="The steps as training times or indices, descending.",
    ),
    click.option(
        "--sigmas", type=Numbers(float, "80,0.8"), help="The steps as noise levels, descending."
    ),
    click.option(
        "--labels",
        type=Labels(),
        help="Classes to ask for, by number or name, repeated in turn.  [default: all]",
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
        "--dtype",
        type=click.Choice(["float32", "bfloat16"]),
        default="float32",
        show_default=True,
        help="Of parameters and samples.",
    ),
)

distributed = group_of(
    click.option(
        "--coordinator",
        metavar="HOST:PORT",
        help="Join the processes that give the same address, which process 0 listens on. Found out "
        "under Slurm and on TPUs: 'auto' insists on it, 'none' runs this process alone.",
    ),
    click.option(
        "--num-processes", type=click.IntRange(1), metavar="N", help="How many processes there are."
    ),
    click.option(
        "--process-id", type=click.IntRange(0), metavar="I", help="This process's number, from 0."
    ),
)


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
        # Permission bits say too little: ask the file system.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"--out: cannot write in {path.parent}: {error.strerror}; choose another folder"
        ) from None


def open_checkpoint(source: str | None, config: str | None = None) -> "Checkpoint":
    """Opens a model without reading its tensors; `--trust` of this command counts."""
    from cmjax.checkpoints import loading

    ctx = click.get_current_context(silent=True)
    trusted = ctx is not None and ctx.meta.get("cmjax.trust", False)
    try:
        return loading.open_checkpoint(source, config=config, trust=trusted)
    except ValueError as error:
        raise ValueError(str(error).replace("trust=True", "--trust")) from None


def open_model(
    model: str | None, scheduler: str | None, settings: Mapping[str, Any], dtype: str, quiet: bool
) -> "Model":
    """Loads a model, with another sampler if one is asked for."""
    try:
        checkpoint = open_checkpoint(model)
        loaded = checkpoint.load(dtype=dtype)
    # Values in damaged files that only fail when used.
    except (TypeError, ArithmeticError, RecursionError) as error:
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
    """Returns --steps, --timesteps or --sigmas as an argument of `set_timesteps`; {} for none."""
    levels = {"num_inference_steps": steps, "timesteps": timesteps, "sigmas": sigmas}
    given = {name: value for name, value in levels.items() if value is not None}
    if len(given) > 1:
        raise ValueError(
            f"{' and '.join(map(_option, given))} exclude each other; give one of them"
        )
    return given


def set_timesteps(scheduler: "Scheduler", schedule: Mapping[str, Any]) -> "SchedulerState":
    """Returns the scheduler's state for the argument in `schedule`; an error names its option."""
    try:
        return scheduler.set_timesteps(**schedule)
    except ValueError as error:
        raise ValueError(f"{_option(*schedule)}: {error}") from None


def check_labels(
    labels: Sequence[int | str] | None,
    num_classes: int | None,
    class_names: Sequence[str] | None = None,
) -> list[int] | None:
    """Returns the numbers of the classes to ask for; all if none are given.

    A text is a name where a class has it, and else a number: folders of classes may be named 0, 1,
    10, 2, in that order.

    Returns:
        The numbers, or None for a model without classes.
    """
    from cmjax.labels import class_indices

    names = class_names or ()
    given = None
    if labels is not None:
        given = [label if label in names else _int_or_str(label) for label in labels]
    try:
        return class_indices(given, num_classes, class_names)
    except ValueError as error:
        raise ValueError(f"--{error}") from None


def counted(number: int, noun: str) -> str:
    """Returns such as '1 step' or '2,000 steps'."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes, if there are any; before any other use of JAX."""
    import jax

    joining = [value is not None for value in (coordinator, num_processes, process_id)]
    if coordinator == "none" or not (any(joining) or _among_others()):
        return
    if any(joining) and coordinator != "auto" and not all(joining):
        raise ValueError("--coordinator HOST:PORT, --num-processes and --process-id go together")
    if num_processes is not None and process_id is not None and process_id >= num_processes:
        raise ValueError(
            f"--process-id must be below --num-processes {num_processes}, got {process_id}"
        )
    address = None if coordinator == "auto" else coordinator
    # JAX gives a Slurm task one device; a task alone on its node gets them all, which [] means.
    alone = _env_int("SLURM_STEP_NUM_TASKS") == _env_int("SLURM_STEP_NUM_NODES") > 0
    devices = None
    if alone and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        devices = []
    try:
        jax.distributed.initialize(address, num_processes, process_id, local_device_ids=devices)
    except (OSError, RuntimeError, ValueError) as error:
        what = (str(error) or type(error).__name__).splitlines()[0]
        hint = ""
        if not address:
            hint = "; outside of TPU pods and Slurm jobs give HOST:PORT, or none for a run alone"
        raise ValueError(f"--coordinator {coordinator or 'auto'}: {what}{hint}") from None


def _int_or_str(label: int | str) -> int | str:
    try:
        return int(label)
    except ValueError:
        return label


def _option(name: str) -> str:
    return "--steps" if name == "num_inference_steps" else f"--{name}"


def _scheduler(
    trained_for: "Scheduler", name: str | None, settings: Mapping[str, Any]
) -> "Scheduler":
    """Returns the scheduler of that name, with the model's noise levels unless they are set."""
    from cmjax.registry import scheduler_class, scheduler_name
    from cmjax.schedulers import on_levels_of

    name = name or scheduler_name(trained_for)
    try:
        scheduler_class(name)
    except ValueError as error:
        raise ValueError(f"--scheduler: {error}") from None
    try:
        return on_levels_of(trained_for, name, **settings)
    except ValueError as error:
        raise ValueError(f"--set: {error}") from None


def _among_others() -> bool:
    """Whether Slurm started this process with others, or it is on TPUs, maybe of several hosts."""
    if _env_int("SLURM_STEP_NUM_TASKS") > 1:
        return True
    found = "TPU_ML_PLATFORM" in os.environ  # which JAX sets where it finds some
    wanted = "tpu" in (os.environ.get("JAX_PLATFORMS") or "tpu")
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    return found and wanted and ("TPU_SKIP_MDS_QUERY" not in os.environ or "," in (hosts or ""))


def _env_int(name: str) -> int:
    return int(os.environ.get(name, 0))
