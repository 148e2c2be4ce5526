"""What a training run shows and writes after its steps: metrics, checkpoints, models, pictures."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from cmjax.checkpoints.saving import save
from cmjax.progress import Bar
from cmjax.training.checkpointing import Checkpoints
from cmjax.training.folder import model_folders
from cmjax.training.reports import MetricsFile, save_samples
from cmjax.training.setup import Run
from cmjax.training.train_step import TrainState


@dataclasses.dataclass
class Outputs:
    """The bar and the files of a run.

    Attributes:
        run: the run.
        out: its folder.
        checkpoints: where its states are saved.
        metrics_file: its metrics.
        bar: shows how far it is.
        has_drawn: whether a picture of samples was saved, for which the sampler was compiled.
    """

    run: Run
    out: Path
    checkpoints: Checkpoints
    metrics_file: MetricsFile
    bar: Bar
    has_drawn: bool = False

    def log(
        self,
        step: int,
        metrics: Mapping[str, jax.Array],
        *,
        is_first: bool,
        writes: bool,
    ) -> None:
        """Checks and shows the metrics of a step, and writes them if `writes`.

        Args:
            step: number of the step.
            metrics: f32[] each. To fetch them is to wait for the device.
            is_first: whether it is the first step since the run began or resumed, which also was
                compiled: the rate is that of the steps after it.
            writes: whether they become a row of the file.

        Raises:
            ValueError: if one is NaN or infinite.
        """
        values = {name: float(value) for name, value in metrics.items()}
        self._check_finite(step, values)
        note = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
        if is_first:
            self.bar.begin("training", step, note)
        is_last = step == self.run.config.run.steps
        self.bar.advance_to(step, note, now=is_last)
        if writes:
            self.metrics_file.write(step, values)

    def _check_finite(self, step: int, values: Mapping[str, float]) -> None:
        """Raises ValueError, with the way out, if a metric is NaN or infinite."""
        broken = [name for name, value in values.items() if not np.isfinite(value)]
        if not broken:
            return

        # What the user can resume from, and what may help.
        self.checkpoints.wait()
        latest = self.checkpoints.latest()
        if latest is None:
            state = "there is no checkpoint"
        else:
            state = f"the last checkpoint is of step {latest}"
        hint = ""
        if not self.run.config.optimizer.clip_norm:
            hint = " or clip with optimizer.clip_norm"
        dtype = self.run.config.run.dtype
        if dtype != "float32":
            hint += f", or compute in float32, not {dtype}"
        raise ValueError(
            f"{broken[0]} is {values[broken[0]]} at step {step}; {state}. In another folder, "
            f"lower optimizer.learning_rate{hint}"
        )

    def save(self, state: TrainState) -> None:
        """Saves a checkpoint, and the models that `cmjax.load` reads."""
        self.checkpoints.save(state)
        save_models(self.run, state, self.out)

    def draw(self, step: int, state: TrainState) -> None:
        """Saves a picture of samples, if they are pictures."""
        if jax.process_index() != 0:
            return
        picture = _picture(self.out, step)
        if not save_samples(self.run, state, picture):
            return
        self.metrics_file.show(step, picture)

        # The first one, for a look whether all is well, was compiled for.
        if not self.has_drawn:
            self.bar.say(f"samples of step {step:,} in {picture}")
            self.bar.restart()
        self.has_drawn = True


def draw_if_missing(run: Run, state: TrainState, out: Path) -> None:
    """Saves the picture of samples of a state if there is none, as `Outputs.draw` does."""
    picture = _picture(out, int(state.step))
    if jax.process_index() == 0 and not picture.exists():
        save_samples(run, state, picture)


def _picture(out: Path, step: int) -> Path:
    """Returns the file of the samples of a step."""
    return out / f"samples_{step:06d}.png"


def save_models(run: Run, state: TrainState, out: Path) -> None:
    """Saves every moving average as a model for `cmjax.load`; the first is `model`."""
    # Parameters are on every device, so one process has them all.
    if jax.process_index() != 0:
        return
    for folder, ema in zip(model_folders(out, run.config), state.ema, strict=True):
        save(folder, run.model_of(ema))
