"""Opens the model that the options of a command ask for, and says what to sample of it."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from cmjax.cli import checks, terminal

if TYPE_CHECKING:
    from cmjax.checkpoints import Checkpoint
    from cmjax.generation import Request
    from cmjax.model import Model
    from cmjax.schedulers import Scheduler, SchedulerState


def open_checkpoint(source: str | None, config: str | None = None) -> "Checkpoint":
    """Opens a model without reading its tensors, with the `--trust` and `--vae` of the command.

    Args:
        source: as for `cmjax.load`; None is the bundled model.
        config: name of a preset, for a released model.

    Raises:
        ValueError: if there is no such model, or it is not one that cmjax reads.
    """
    from cmjax.checkpoints import loading

    # There is no context if a program calls this function outside of a command.
    ctx = click.get_current_context(silent=True)
    meta = {} if ctx is None else ctx.meta
    trusted = meta.get("cmjax.trust", False)
    vae = meta.get("cmjax.vae")
    try:
        return loading.open_checkpoint(
            source, config=config, trust=trusted, autoencoder=vae
        )

    except ValueError as error:
        # The library's ways out are arguments, which are options here.
        message = str(error).replace("trust=True", "--trust")
        message = message.replace("autoencoder must", "--vae must")
        message = re.sub("^autoencoder:", "--vae:", message)
        if message == str(error):
            raise
        raise ValueError(message) from None


def open_model(
    model: str | None,
    scheduler: str | None,
    settings: Mapping[str, Any],
    dtype: str,
    quiet: bool,
) -> "Model":
    """Loads a model, with another scheduler if one is asked for.

    Args:
        model: as for `cmjax.load`; None is the bundled one.
        scheduler: name of another scheduler; None keeps the model's own.
        settings: options of the scheduler, by name.
        dtype: dtype of the parameters.
        quiet: whether not to print the checkpoint's note.

    Raises:
        ValueError: if the model, the scheduler or its options are not valid.
    """
    from cmjax.checkpoints.loading import read_unreplaced

    def read():
        checkpoint = open_checkpoint(model)
        return checkpoint, checkpoint.load(dtype=dtype)

    try:
        checkpoint, loaded = read_unreplaced(model, read)
    except (TypeError, ArithmeticError, RecursionError) as error:
        # Some values of a damaged file fail only when they are used, by errors of these types.
        raise ValueError(
            f"model {model}: its files make no sense ({type(error).__name__}: {error})"
        ) from None

    if checkpoint.note and not quiet:
        terminal.note(f"Note: {checkpoint.note}")

    # Settings alone change the model's own scheduler.
    if scheduler is not None or settings:
        loaded = loaded.with_scheduler(_scheduler(loaded.scheduler, scheduler, settings))
    if checkpoint.is_denoiser and not loaded.scheduler.solves_ode and not quiet:
        terminal.note(
            "Note: the model was trained as a denoiser, whose single calls are blurred means; "
            "--scheduler EDMHeunScheduler --steps 18 samples it"
        )
    return loaded


def request_of(
    model: "Model",
    schedule: dict[str, Any],
    *,
    labels: list[str] | None,
    guidance: float | None,
    guidance_interval: list[float] | None,
    seed: int,
    dtype: str,
) -> tuple["Request", "SchedulerState"]:
    """Returns which samples to make, and the levels of their run.

    What only the model can tell of the options is checked here, before anything compiles.

    Args:
        model: the model that is sampled.
        schedule: from `checks.schedule`, of at most one item.
        labels: classes by number, name or range; None for all.
        guidance: scale of the guidance; 1 for none, None for what the model recommends.
        guidance_interval: the noise levels to guide at; None for what the model recommends.
        seed: seed of all randomness.
        dtype: dtype of the samples.

    Raises:
        ValueError: naming the option that does not go with the model.
    """
    from cmjax.generation import Request
    from cmjax.sampling_inputs import default_steps_warning

    # One step by default, which is what consistency functions are for.
    if not schedule:
        schedule = {"num_inference_steps": 1}
        if warning := default_steps_warning(model.scheduler, "--steps"):
            terminal.note(f"Note: {warning}")
    state = checks.set_timesteps(model.scheduler, schedule)
    classes = checks.check_labels(labels, model.num_classes, model.class_names)
    checks.check_guidance(model, guidance, guidance_interval, state.num_steps)
    request = Request(
        **schedule,
        labels=classes,
        seed=seed,
        dtype=dtype,
        guidance=guidance,
        guidance_interval=guidance_interval,
    )
    return request, state


def _scheduler(
    trained_for: "Scheduler", name: str | None, settings: Mapping[str, Any]
) -> "Scheduler":
    """Returns the scheduler of that name, with the model's noise levels unless they are set."""
    from cmjax.registry import scheduler_class, scheduler_name
    from cmjax.schedulers import scheduler_like

    # Checked apart, so that each error names its option: a wrong name here, a wrong value below.
    if name is None:
        name = scheduler_name(trained_for)
    try:
        scheduler_class(name)
    except ValueError as error:
        raise ValueError(f"--scheduler: {error}") from None

    # Noise levels, such as sigma_max, are those that the network was trained for.
    try:
        return scheduler_like(trained_for, name, **settings)
    except ValueError as error:
        raise ValueError(f"--set: {error}") from None
