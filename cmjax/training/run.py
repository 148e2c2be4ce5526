"""The training loop: resumable, and writing metrics, sample pictures and models as it goes."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from cmjax.generation.batches import out_of_memory
from cmjax.interrupts import delivering, interruptible
from cmjax.processes import gather, locked, run_on_all_processes
from cmjax.progress import Bar
from cmjax.training.checkpointing import Checkpoints
from cmjax.training.config import TrainConfig
from cmjax.training.folder import open_folder
from cmjax.training.outputs import Outputs, draw_if_missing, save_models
from cmjax.training.reports import MetricsFile, in_lines, summarize
from cmjax.training.sections import RunSection
from cmjax.training.setup import Run, make_run
from cmjax.training.sources import check_outside
from cmjax.training.train_step import TrainState

STOPPING = "Stopping after this step, which is then saved; a second signal stops at once."


class Trained(NamedTuple):
    """What a call of `train` has come to.

    Attributes:
        step: the last step that was taken and saved.
        is_finished: whether it is the last one of the run.
        signal: number of the signal that arrived meanwhile; 0 if none did.
    """

    step: int
    is_finished: bool
    signal: int = 0


def train_until_stopped(
    config: TrainConfig,
    out: Path,
    *,
    quiet: bool = False,
    report: Callable[[str], None] = print,
) -> Trained:
    """Trains until the last step or a signal, resuming from the newest checkpoint in `out`.

    The data are looked at before the first step. Ctrl-C and SIGTERM save the state after the step
    in progress; of several processes, after the next step that `run.log_every` divides. `train`
    then delivers the signal to the program, as KeyboardInterrupt for Ctrl-C; `train_until_stopped`,
    for programs that decide themselves, returns.

    Args:
        config: configuration of the run.
        out: folder to write `checkpoints`, `model`, `metrics.csv`, `config.json` and
            `samples_STEP.png` to.
        quiet: show no progress.
        report: function that is called with messages for the user.

    Returns:
        The step that is saved, and the signal that stopped the run.

    Raises:
        ValueError: if the data cannot be trained on, if the folder holds another run or a damaged
            checkpoint, is inside the pictures or another process is using it, or if a metric
            becomes NaN or infinite.
        OSError: if a file cannot be written.
    """
    out = Path(out)
    run = make_run(config)
    check_outside(run.source, out)
    settings = config.run
    is_process_0 = jax.process_index() == 0
    shown = is_process_0 and not quiet
    with locked(out), Checkpoints(out, settings.keep) as checkpoints:
        latest = checkpoints.latest()
        # The first process writes files and looks at the data for all; checkpoints are written by
        # all, which Orbax coordinates.
        run_on_all_processes(
            lambda: _prepare(run, out, latest, shown) if is_process_0 else None
        )
        state = checkpoints.restore(run.init())
        done = int(state.step)
        _complete(run, state, out)
        if done == settings.steps:
            if not quiet:
                report(f"Finished before: all {done:,} steps were done already.")
            return Trained(done, is_finished=True)

        metrics_file = MetricsFile(out, done, settings.tensorboard, is_process_0)
        bar = Bar(settings.steps, done=done, unit="step", doing="compiling", shown=shown)
        outputs = Outputs(run, out, checkpoints, metrics_file, bar)
        with metrics_file, bar, out_of_memory("a larger run.accumulate needs less memory"):
            trained = _take_steps(state, outputs)
        checkpoints.wait()

    # Not reported before the checkpoint is on disk.
    if not trained.is_finished:
        report(
            f"Stopped after step {trained.step} of {settings.steps}, which is saved; "
            "run the same command to resume."
        )
    return trained


train = delivering(train_until_stopped)


def _prepare(run: Run, out: Path, latest: int | None, shown: bool) -> None:
    """Checks a run's folder and its data, before anything is compiled."""
    open_folder(out, run.config, run.fingerprint(), latest)

    # Data of which there is a checkpoint have been looked at; those of a start that failed may be
    # what it failed on.
    if latest is None:
        run.inspect_data(shown=shown)


def _complete(run: Run, state: TrainState, out: Path) -> None:
    """Writes what the process may have been ended before: all that follows a checkpoint."""
    step = int(state.step)
    settings = run.config.run
    if step == settings.steps:
        save_models(run, state, out)
    if step and _draws(step, settings):
        draw_if_missing(run, state, out)


def _take_steps(state: TrainState, outputs: Outputs) -> Trained:
    """Takes steps until the last one or a signal, and saves the state in between and at the end."""
    run = outputs.run
    settings = run.config.run
    bar = outputs.bar
    done = int(state.step)

    # Batches from here on. The first one is read at once, so that errors in it show early.
    batches = run.batches(done)
    upcoming = next(batches)
    bar.say(in_lines(summarize(run, upcoming)))
    bar.say("compiling the training step ...")

    step = done
    number = 0
    metrics = None
    with interruptible(lambda: bar.say(STOPPING)) as caught:
        while step < settings.steps and not number:
            step += 1
            previous = metrics

            # On accelerators the call returns at once, and the next batch is fetched while the
            # device computes. On one CPU it returns when the step is done (`system.keep_memory`).
            state, metrics = run.train_step(state, upcoming)
            upcoming = next(batches)

            # Waiting for the step before costs nothing: it is done, or the device has another one
            # to do. So the bar shows what is done, and a signal is not answered many steps later.
            if previous is not None:
                jax.block_until_ready(previous)
                bar.advance_to(step - 1)

            # Asked once per step, as a signal may come between two uses of the answer.
            number = _signal(caught, step, settings.log_every)
            is_first = step == done + 1
            is_last = step == settings.steps
            saves = step % settings.save_every == 0 or is_last or bool(number)
            writes = saves or step % settings.log_every == 0

            # Metrics are fetched only when needed, as that waits for the device. Before every
            # checkpoint they are checked: one with NaN must not replace a good one.
            if writes or is_first:
                outputs.log(step, metrics, is_first=is_first, writes=writes)
            if saves:
                outputs.save(state)
            if _draws(step, settings):
                outputs.draw(step, state)

        # A signal that comes while the last step is saved is delivered all the same.
        number = number or (caught[0] if caught else 0)
    return Trained(step, step == settings.steps, number)


def _draws(step: int, settings: RunSection) -> bool:
    """Returns whether samples are drawn after a step: once early, regularly, and at the end."""
    if not settings.sample_every:
        return False
    is_early = step == min(settings.log_every, settings.sample_every)
    return is_early or step % settings.sample_every == 0 or step == settings.steps


def _signal(caught, step, log_every):
    """Returns the number of a signal to stop, or 0, the same on all processes.

    All must stop after the same step, whichever got the signal.
    """
    mine = caught[0] if caught else 0
    if jax.process_count() == 1:
        return mine

    # Asking the others makes the host wait for the devices, so this is done as rarely as logging.
    if step % log_every:
        return 0
    return int(gather(mine).max())
