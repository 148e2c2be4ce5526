"""What a training run shows: metrics, sample pictures, and a description ahead of training."""

import csv
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from cmjax.checkpoints.saving import check_exportable
from cmjax.files import read_regular, replacing
from cmjax.images import save_grid, to_uint8
from cmjax.model import Model
from cmjax.random import key_of_seed
from cmjax.sampling import sample
from cmjax.schedulers.registry import scheduler_like
from cmjax.training.config import TrainConfig
from cmjax.training.folder import METRICS
from cmjax.training.losses.base import Batch, FunctionLoss
from cmjax.training.setup import Run, make_run, misread, untrained, unused_classes
from cmjax.training.train_step import TrainState

_COLUMNS = 10  # samples in a row of a picture
_LARGEST_METRICS = 2**30  # bytes of a file of metrics
_LEAST_SIZE = 64  # pixels across a sample; smaller ones are enlarged to about this


class MetricsFile:
    """`metrics.csv` and TensorBoard's files of a run; a context manager, which closes them.

    Rows after the step that a run resumes from are dropped, as those steps are trained again.
    """

    def __init__(self, folder: Path, last_step: int, tensorboard: bool, active: bool):
        """Reads the rows that were written before the run was stopped.

        Args:
            folder: folder of the run.
            last_step: the step that the run resumes from.
            tensorboard: write TensorBoard's event files as well.
            active: whether to write anything; only one process of a run does.

        Raises:
            ValueError: if tensorboardX is wanted and not installed, or if the file there is not of
                such a run.
        """
        self._path = folder / METRICS
        self._active = active
        self._rows: list[dict[str, Any]] = []
        self._writer: Any = None
        if not active:
            return

        # Rows are kept in memory, since the file is replaced whole.
        if self._path.exists():
            rows = _read_metrics(self._path)
            self._rows = [row for row in rows if int(row["step"]) <= last_step]
        if tensorboard:
            self._writer = _summary_writer(folder / "tensorboard", last_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds a row of metrics; the file is replaced whole, so that it is never half written."""
        if not self._active:
            return
        self._rows.append({"step": step, **values})
        # A loss has the same metrics at every step. Of earlier rows, which a user may have edited,
        # other columns are kept behind them.
        columns = list(dict.fromkeys(name for row in reversed(self._rows) for name in row))
        lines = [",".join(columns)]
        for row in self._rows:
            lines.append(",".join(str(row.get(name, "")) for name in columns))
        with replacing(self._path) as file:
            file.write(("\n".join(lines) + "\n").encode())
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def show(self, step: int, path: Path) -> None:
        """Adds a picture that was saved to TensorBoard's files, if there are any."""
        if self._writer:
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image("samples", pixels, step, dataformats="HWC")

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes TensorBoard's files."""
        if self._writer:
            self._writer.close()


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file of metrics; raises ValueError if it is not one of a run."""
    try:
        # Spreadsheets save it with a mark in front.
        text = read_regular(path, _LARGEST_METRICS).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        steps = [int(row["step"]) for row in rows]
        is_whole = all(None not in row and None not in row.values() for row in rows)
    except (ValueError, KeyError, TypeError, csv.Error):
        is_whole = False
        steps = []
        rows = []
    if not is_whole or steps != sorted(set(steps)):
        raise ValueError(f"{path} is damaged or not of this run; move it away")
    return rows


def save_samples(run: Run, state: TrainState, path: Path) -> bool:
    """Saves a picture of samples of the first moving average, drawn as `loss.preview` says.

    The seed is always the same, so that pictures of different steps can be compared. A line above
    says of which step they are, and each has its class as a caption.

    Those of a latent model are decoded.

    Returns:
        Whether it was saved: not if samples are no pictures, as `summarize` says.
    """
    model = run.model_of(state.ema[0])
    preview = run.train_step.loss.preview
    if not _has_pictures(model):
        return False

    # A denoiser is sampled by an ODE solver, over the noise levels that it is trained on.
    if preview.solver is not None:
        solver = scheduler_like(model.scheduler, preview.solver)
        model = model.with_scheduler(solver)

    # One row of samples for each number of steps, with the classes in turn along the row.
    runs: list[dict[str, Any]]
    runs = [{"num_inference_steps": number} for number in preview.num_inference_steps]
    if preview.sigmas is not None:
        runs = [{"sigmas": preview.sigmas}]
    rows = []
    calls = []
    for levels in runs:
        calls.append(str(model.scheduler.set_timesteps(**levels).num_steps))
        rows.append(_row_of_samples(model, levels))
    captions = None
    if model.num_classes:
        labels = _labels_of_row(model.num_classes)
        captions = [model.class_name(int(label)) for label in labels] * len(rows)

    # By a whole factor, so that pixels stay square and sharp.
    scale = max(1, _LEAST_SIZE // model.picture_shape[0])
    title = (
        f"step {int(state.step):,}, EMA {run.config.run.ema_decays[0]:g}, "
        f"network calls by row: {', '.join(calls)}"
    )
    pixels = to_uint8(_in_range(rows))
    save_grid(path, pixels, columns=_COLUMNS, labels=captions, title=title, scale=scale)
    return True


def _labels_of_row(num_classes: int) -> np.ndarray:
    """Returns the classes of a row of samples: all of the model's in turn, i64[_COLUMNS]."""
    return np.arange(_COLUMNS) % num_classes


def _row_of_samples(model: Model, levels: dict[str, Any]) -> jax.Array:
    """Returns `_COLUMNS` samples of a model, decoded if they are latents, `[_COLUMNS, H, W, C]`.

    `levels` is the argument of `set_timesteps`, by its name.
    """
    cond = {}
    if model.num_classes:
        cond["class_labels"] = jnp.asarray(_labels_of_row(model.num_classes))
    if getattr(model.config, "guidance_embeds", False):
        cond["guidance_scale"] = jnp.ones(_COLUMNS)  # no guidance
    samples = sample(
        key_of_seed(0),
        model.apply_fn,
        model.params,
        model.scheduler,
        (_COLUMNS, *model.sample_shape),
        cond=cond,
        **levels,
    )

    # One at a time, since decoding takes more memory than sampling.
    return model.decode(samples, batch_size=1)


def _has_pictures(model: Model) -> bool:
    """Whether samples, decoded if there is an autoencoder, can be shown."""
    return model.picture_shape[-1] in (1, 3)


def _in_range(rows: list[jax.Array]) -> np.ndarray:
    """Returns samples `[N, ...]` clipped to [-1, 1]; those of a network that diverged are gray."""
    # A picture is no reason to end a run, and `to_uint8` refuses what cannot be samples.
    return np.clip(np.nan_to_num(np.concatenate(rows)), -1, 1)


def describe(config: TrainConfig) -> str:
    """Returns a description of a run and of the cost of its steps; compiles, but trains nothing.

    It has the lines of `summarize`, and one for each of size of the state, arithmetic and, if XLA
    knows it, memory.
    """
    run = make_run(config)
    run.inspect_data()
    batch = next(iter(run.batches()))
    state = run.init()
    memory = run.train_step.lower(state, batch).compile().memory_analysis()

    # XLA counts the body of a loop once, which would leave out all parts of a batch but one.
    whole = dataclasses.replace(run.train_step, accumulate=1)
    cost = whole.lower(state, batch).cost_analysis() or {}

    # The figures, then a line for each.
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    gigaflops = cost.get("flops", float("nan")) / 1e9
    lines = summarize(run, batch) | {
        "state": f"{_mebibytes(state_bytes)}, as much on disk for each checkpoint",
        "arithmetic": f"{gigaflops:,.1f} GFLOP a step, by XLA's count",
    }
    # Not every backend reports memory.
    if memory is not None:
        arguments = _mebibytes(memory.argument_size_in_bytes)
        temporary = _mebibytes(memory.temp_size_in_bytes)
        lines["memory"] = f"{arguments} of arguments, {temporary} in use"
    return in_lines(lines)


def summarize(run: Run, batch: Batch) -> dict[str, str]:
    """Returns what a run trains, in words: its data, network, loss, devices, and use elsewhere."""
    shapes = [f"{name} {array.dtype}{list(array.shape)}" for name, array in batch.items()]
    num_params = sum(leaf.size for leaf in jax.tree.leaves(run.model.params))
    network = type(run.model.config).__name__.removesuffix("Config")
    device = jax.devices()[0].device_kind
    lines = {
        "data": f"{len(run.source):,} samples, {', '.join(shapes)} a step",
        "network": f"{network}, {num_params:,} parameters",
        "loss": f"{run.config.loss_name}, {_summary(run.train_step.loss)}",
        "devices": f"{jax.device_count()} x {device} in {jax.process_count()} process(es)",
        "diffusers": _exportable(run.model),
    }
    left_out = getattr(run.source, "left_out", {})
    if left_out:
        endings = ", ".join(sorted(left_out)[:5])
        lines["left out"] = (
            f"{sum(left_out.values()):,} files of the folder, which are not read as pictures "
            f"({endings})"
        )
    unused = unused_classes(run.model, run.source)
    if unused:
        lines["classes"] = unused
    missing = untrained(run.config, run.model, run.train_step.loss)
    if missing:
        lines["guidance"] = missing
    other_kind = misread(run.model, run.train_step.loss)
    if other_kind:
        lines["sampling"] = other_kind
    if run.config.run.sample_every and not _has_pictures(run.model):
        channels = run.model.picture_shape[-1]
        lines["pictures"] = (
            f"none, as samples have {channels} channels; if they are latents, data.autoencoder "
            "names what decodes them"
        )
    return lines


def _exportable(model: Model) -> str:
    """Says whether diffusers will be able to open the model, which is too late to learn later."""
    try:
        check_exportable(model)
    except ValueError as error:
        return f"cannot open the model: {error}"
    return "can open the model, after cmjax convert MODEL DST --to diffusers"


def in_lines(described: Mapping[str, str]) -> str:
    """Returns a description as text, with a line for each name."""
    return "\n".join(f"{name:<12}{text}" for name, text in described.items())


def _summary(loss):
    """Returns the first line of a loss's docstring; a loss of the user's own may have none."""
    source = loss.function if isinstance(loss, FunctionLoss) else type(loss)
    lines = (source.__doc__ or "no description").strip().splitlines()
    return lines[0]


def _summary_writer(folder, first_step):
    """Returns TensorBoard's writer, which hides events from `first_step` on."""
    # tensorboardX is an optional dependency.
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ValueError(
            "run.tensorboard needs the package tensorboardX: pip install tensorboardX"
        ) from None
    return SummaryWriter(str(folder), purge_step=first_step)


def _mebibytes(count):
    """Returns a number of bytes as text."""
    return f"{count / 2**20:,.1f} MiB"
