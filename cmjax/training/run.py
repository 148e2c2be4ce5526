"""The training loop: resumable, and writing metrics, sample pictures and models as it goes."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from cmjax.checkpoints.loading import save
from cmjax.files import replacing
from cmjax.interrupts import interruptible
from cmjax.training.checkpointing import Checkpoints
from cmjax.training.config import TrainConfig
from cmjax.training.reports import MetricsFile, save_samples
from cmjax.training.setup import make_run

# Keys of [run] that may change when a run is resumed: they have no effect on what is trained.
FREE_TO_CHANGE = ("log_every", "sample_every", "save_every", "keep", "tensorboard")


def train(
    config: TrainConfig,
    out: Path,
    *,
    quiet: bool = False,
    report: Callable[[str], None] = print,
) -> bool:
    """Trains until the last step or an interruption, resuming from the newest checkpoint in `out`.

    Args:
        config: configuration of the run.
        out: folder to write `checkpoints`, `model`, `metrics.csv`, `config.json` and
            `samples_STEP.png` to.
        quiet: show no progress bar.
        report: function that is called with messages for the user.

    Returns:
        Whether the run is finished; False after Ctrl-C or SIGTERM, which save first.

    Raises:
        ValueError: if the folder holds another run, or if a metric becomes NaN or infinite.
        OSError: if a file cannot be written.
    """
    run = make_run(config)
    settings = config.run
    # Only the first process writes files; checkpoints are written by all, which Orbax coordinates.
    is_first = jax.process_index() == 0
    with Checkpoints(out, settings.keep) as checkpoints, interruptible() as interrupted:
        # The state of the newest checkpoint, or of step 0.
        _check_same_run(out, config, is_new=checkpoints.latest() is None)
        state = checkpoints.restore(run.init())
        last_saved = int(state.step)
        if last_saved == settings.steps:
            # The process may have ended between the last checkpoint and the model.
            _save_models(run, state, out)

        # The first batch is read here, so that errors in the data show before the bar does.
        batches = run.batches(last_saved)
        upcoming = next(batches)

        bar = tqdm(
            total=settings.steps,
            initial=last_saved,
            unit="step",
            dynamic_ncols=True,
            disable=quiet or not is_first,
        )
        metrics_file = MetricsFile(out, last_saved, settings.tensorboard, is_first)
        with bar, metrics_file:
            for step in range(last_saved + 1, settings.steps + 1):
                # The call returns at once; the next batch is read while the device computes.
                state, metrics = run.train_step(state, upcoming)
                upcoming = next(batches)
                bar.update()

                # Asked once per step, as a signal may come between two uses of the answer.
                is_stopping = _is_interrupted(interrupted, step, settings.log_every)
                is_last = step == settings.steps
                saves = step % settings.save_every == 0 or is_last or is_stopping

                # Metrics are fetched only when needed, as that waits for the device. Before every
                # checkpoint they are checked: one with NaN must not replace a good one.
                if saves or step % settings.log_every == 0:
                    values = {name: float(value) for name, value in metrics.items()}
                    _check_finite(step, values, checkpoints, settings.dtype)
                    bar.set_postfix(
                        {name: f"{value:.4g}" for name, value in values.items()}
                    )
                    metrics_file.write(step, values)

                if saves:
                    checkpoints.save(state)
                    last_saved = step
                    _save_models(run, state, out)
                samples = settings.sample_every and (
                    step % settings.sample_every == 0 or is_last
                )
                if is_first and samples:
                    save_samples(run, state, out / f"samples_{step:06d}.png")

                if is_stopping:
                    break
        checkpoints.wait()

    # Not reported before the checkpoint is on disk.
    is_finished = last_saved == settings.steps
    if not is_finished:
        report(
            f"Stopped after step {last_saved} of {settings.steps}, which is saved; "
            "run the same command to resume."
        )
    return is_finished


def _check_same_run(out, config, is_new):
    """Writes the config of a new run; raises ValueError if the folder holds another run."""
    path = out / "config.json"
    wanted = config.to_json()
    if is_new or not path.exists():
        if jax.process_index() == 0:
            with replacing(path) as file:
                file.write(json.dumps(wanted, indent=1).encode())
        return

    # The first key that differs is named, with both values.
    found = json.loads(path.read_text())
    for section, values in wanted.items():
        found_values = found.get(section, {})
        for key in sorted(values.keys() | found_values.keys()):
            if section == "run" and key in FREE_TO_CHANGE:
                continue
            if values.get(key) != found_values.get(key):
                raise ValueError(
                    f"{out} holds a run with {section}.{key}={found_values.get(key)!r}, "
                    f"not {values.get(key)!r}; resume with that, or choose another folder"
                )


def _check_finite(step, values, checkpoints, dtype):
    """Raises ValueError, with the way out, if a metric is NaN or infinite."""
    broken = [name for name, value in values.items() if not np.isfinite(value)]
    if not broken:
        return

    # What the user can resume from, and what may help.
    checkpoints.wait()
    latest = checkpoints.latest()
    if latest is None:
        state = "there is no checkpoint"
    else:
        state = f"the last checkpoint is of step {latest}"
    hint = ""
    if dtype != "float32":
        hint = f", or compute in float32, not {dtype}"
    raise ValueError(
        f"{broken[0]} is {values[broken[0]]} at step {step}; {state}. In another folder, "
        f"lower optimizer.learning_rate or clip with optimizer.clip_norm{hint}"
    )


def _is_interrupted(interrupted, step, log_every):
    """Whether to stop. All processes must stop after the same step, whichever got the signal."""
    if jax.process_count() == 1:
        return bool(interrupted)
    # Asking the others makes the host wait for the devices, so this is done as rarely as logging.
    if step % log_every:
        return False
    return bool(multihost_utils.process_allgather(np.array(bool(interrupted))).any())


def _save_models(run, state, out):
    """Saves every moving average as a model for `cmjax.load`; the first is `model`."""
    # Parameters are on every device, so one process has them all.
    if jax.process_index() != 0:
        return
    for i, (decay, ema) in enumerate(
        zip(run.config.run.ema_decays, state.ema, strict=True)
    ):
        name = "model" if i == 0 else f"model_{decay}"
        save(out / name, run.model_of(ema))
