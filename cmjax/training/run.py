"""A whole training run: resumable, with metrics and pictures on the way."""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from tqdm import tqdm

import cmjax
from cmjax.files import replacing
from cmjax.guidance import autoguidance as guided
from cmjax.images import save_grid, to_uint8
from cmjax.interrupts import interruptible
from cmjax.model import Model
from cmjax.models import compute_in, from_nnx
from cmjax.models.registry import ARCHITECTURES
from cmjax.schedulers import SCMScheduler, scheduler_like
from cmjax.training import data
from cmjax.training.checkpointing import Checkpoints
from cmjax.training.config import TrainConfig
from cmjax.training.losses import unweighted
from cmjax.training.trainer import TrainState, TrainStep, data_mesh, make_train_step

FREE_TO_CHANGE = (
    "log_every",
    "sample_every",
    "save_every",
    "keep",
    "tensorboard",
)  # when a run goes on


@dataclasses.dataclass(frozen=True)
class Run:
    """What a config describes, ready to go: `start(config)`."""

    config: TrainConfig
    model: Model  # with the weights that the run starts from
    source: Any  # a RandomAccessDataSource
    train_step: TrainStep

    def init(self) -> TrainState:
        """Returns the state of step 0."""
        return self.train_step.init(jax.random.key(self.config.run.seed), self.model.params)

    def batches(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Returns this process's batches from step `start` on."""
        run, classes, section = self.config.run, self.model.num_classes, self.config.data
        if classes is not None and "class_labels" not in self.source[0]:
            raise ValueError(
                f"data.source {section.source} has no labels, but the network has {classes} classes; "
                "leave out network.num_class_embeds"
            )
        wanted = ("data",) if classes is None else ("data", "class_labels")
        found = data.batches(
            self.source,
            run.batch_size,
            seed=run.seed,
            start=start,
            num_classes=classes,
            flip=section.flip,
        )
        return ({name: batch[name] for name in wanted} for batch in found)


def start(config: TrainConfig) -> Run:
    """Loads or makes what the run begins with.

    Raises:
        ValueError: if a model or the data cannot be used.
    """
    run, model = config.run, _first_model(config)
    if not config.data.source:
        raise ValueError(
            "data.source is missing: name an .npz, an IDX file or a folder of pictures"
        )
    source = data.open_source(config.data.source, *model.sample_shape[1:])
    shape, wanted = np.shape(source[0]["data"]), model.sample_shape
    if shape != wanted:
        raise ValueError(
            f"data.source {config.data.source} holds samples of shape {shape}, the network takes {wanted}"
        )

    teacher, teacher_fn = _teacher(config, model)
    apply_fn = compute_in(model.apply_fn, run.dtype) if run.dtype != "float32" else model.apply_fn
    train_step = make_train_step(
        config.recipe,
        apply_fn,
        config.make_optimizer(),
        config.loss_config(scheduler=model.scheduler, teacher_fn=teacher_fn),
        ema_decays=run.ema_decays,
        accumulate=run.accumulate,
        mesh=data_mesh() if jax.device_count() > 1 else None,
        teacher=teacher,
    )
    return Run(config, model, source, train_step)


def train(
    config: TrainConfig, out: Path, *, quiet: bool = False, say: Callable[[str], None] = print
) -> bool:
    """Trains until the last step, or until interrupted, and goes on from the newest checkpoint under `out`.

    Args:
        config: the run.
        out: folder of `checkpoints`, `model`, `metrics.csv`, `config.json` and `samples_STEP.png`.
        quiet: no progress bar.
        say: where messages go.

    Returns:
        Whether the run is finished; False after Ctrl-C or SIGTERM, which save first.

    Raises:
        ValueError: if the folder holds another run, or the loss is not finite any more.
        OSError: if something cannot be written.
    """
    run, settings, first = start(config), config.run, jax.process_index() == 0
    with Checkpoints(out, settings.keep) as checkpoints, interruptible() as interrupted:
        _check_same_run(out, config, new=checkpoints.latest() is None)
        state = checkpoints.restore(run.init())
        done = saved = int(state.step)
        if (
            done == settings.steps
        ):  # the process may have ended between the checkpoint and the model
            _save_models(run, state, out)
        batches = run.batches(done)
        upcoming = next(batches)  # what is wrong with the data shows before the bar does
        bar = tqdm(
            total=settings.steps,
            initial=done,
            unit="step",
            dynamic_ncols=True,
            disable=quiet or not first,
        )
        with bar, _MetricsFile(out, done, settings.tensorboard, first) as metrics_file:
            for step in range(done + 1, settings.steps + 1):
                state, metrics = run.train_step(state, upcoming)
                upcoming = next(batches)
                bar.update()
                due = {
                    every: every and step % every == 0
                    for every in (settings.log_every, settings.save_every)
                }
                stopping = _agree(
                    interrupted, step, settings
                )  # asked once: a signal may come at any line
                last = step == settings.steps or stopping
                if due[settings.log_every] or due[settings.save_every] or last:
                    values = {name: float(value) for name, value in metrics.items()}
                    _check_finite(step, values, checkpoints, settings)
                    bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()})
                    metrics_file.write(step, values)
                if due[settings.save_every] or last:
                    checkpoints.save(state)
                    saved = step
                    _save_models(run, state, out)
                if (
                    first
                    and settings.sample_every
                    and (step % settings.sample_every == 0 or step == settings.steps)
                ):
                    _picture(run, state, out / f"samples_{step:06d}.png")
                if stopping:
                    break
        checkpoints.wait()
    if saved < settings.steps:
        say(
            f"Stopped after step {saved} of {settings.steps}, which is saved; the same command goes on from there."
        )
    return saved == settings.steps


def describe(config: TrainConfig) -> str:
    """Returns what a run would be: shapes, parameters, and the memory and arithmetic of a step; trains nothing."""
    run = start(config)
    batch = next(iter(run.batches()))
    state = run.init()
    compiled = run.train_step.lower(state, batch).compile()
    whole = dataclasses.replace(run.train_step, accumulate=1)  # a loop's body is counted once
    cost = whole.lower(state, batch).cost_analysis() or {}
    memory = compiled.memory_analysis()
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))  # noqa: E731
    count = sum(leaf.size for leaf in jax.tree.leaves(run.model.params))
    lines = {
        "data": f"{len(run.source):,} samples, {_shapes(batch)} a step",
        "network": f"{type(run.model.config).__name__.removesuffix('Config')}, {count:,} parameters",
        "loss": f"{config.loss.get('name')}, {(config.recipe.loss.__doc__ or '').splitlines()[0]}",
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind} in {jax.process_count()} process(es)",
        "state": f"{_bytes(size(state))}, as much on disk for each checkpoint",
        "arithmetic": f"{cost.get('flops', float('nan')) / 1e9:,.1f} GFLOP a step, by XLA's count",
    }
    if memory is not None:
        lines["memory"] = (
            f"{_bytes(memory.argument_size_in_bytes)} of arguments, {_bytes(memory.temp_size_in_bytes)} in use"
        )
    return "\n".join(f"{name:<12}{text}" for name, text in lines.items())


def _teacher(config, model):
    """Returns parameters of the teacher and its network, (None, None) where there is none."""
    section = config.teacher
    if not config.recipe.distils:
        if section.model or section.weak_model:
            raise ValueError(
                f"teacher: the loss {config.loss.get('name')!r} has none; leave the section out"
            )
        return None, None
    if not section.model and not config.run.init:
        raise ValueError(
            f"teacher.model is missing: {config.loss.get('name')!r} distils a denoiser, name its folder"
        )
    teacher = cmjax.load(section.model, dtype=jnp.float32) if section.model else model
    _check_same_terms("teacher.model", section.model, teacher.scheduler, model.scheduler)
    if not section.weak_model:
        return teacher.params, teacher.apply_fn
    weak = cmjax.load(section.weak_model, dtype=jnp.float32)
    _check_same_terms("teacher.weak_model", section.weak_model, weak.scheduler, model.scheduler)
    if weak.config != teacher.config:
        raise ValueError(
            f"teacher.weak_model {section.weak_model} is another network than teacher.model"
        )
    return (teacher.params, weak.params), guided(teacher.apply_fn, section.guidance)


def _first_model(config):
    """The model that a run starts from, with the scheduler that it is trained for."""
    run, network, scheduler = config.run, config.network_config(), config.loss_config().scheduler
    if run.init:
        model = cmjax.load(run.init, dtype=jnp.float32)
        if network not in (None, model.config):
            raise ValueError(
                f"network differs from that of run.init {run.init}; leave out [network]"
            )
        if config.scheduler:
            _check_same_terms("run.init", run.init, model.scheduler, scheduler)
            model = dataclasses.replace(model, scheduler=scheduler)
    else:
        cls = ARCHITECTURES[config.network["class"]][0]
        model = Model(*from_nnx(cls(network, rngs=nnx.Rngs(run.seed))), scheduler, network)
    if isinstance(model.scheduler, SCMScheduler) and model.config.time_scale < 0.1:
        raise ValueError(
            f"network.time_scale {model.config.time_scale} hides the angles of an SCMScheduler, which end at pi/2; "
            "set it to 1 or more"
        )
    return model


def _check_same_terms(name, source, found, wanted):
    """A network means what its scheduler makes of it: another kind, or another sigma_data, makes something else."""
    if type(found) is not type(wanted) or found.sigma_data != wanted.sigma_data:
        terms = [
            f"{type(s).__name__}(sigma_data={getattr(s, 'sigma_data', None)})"
            for s in (found, wanted)
        ]
        raise ValueError(
            f"{name} {source} is a network for {terms[0]}, but this run is for {terms[1]}"
        )


def _check_same_run(out, config, new):
    """Writes the config of a new run; refuses to go on with another one's checkpoints."""
    path, now = out / "config.json", config.to_json()
    if not new and path.exists():
        before = json.loads(path.read_text())
        for section in now:
            for key in sorted(now[section].keys() | before.get(section, {}).keys()):
                old, new = before.get(section, {}).get(key), now[section].get(key)
                if old != new and not (section == "run" and key in FREE_TO_CHANGE):
                    raise ValueError(
                        f"{out} holds a run with {section}.{key}={old!r}, not {new!r}; go on with that, "
                        "or choose another folder"
                    )
    elif jax.process_index() == 0:
        with replacing(path) as file:
            file.write(json.dumps(now, indent=1).encode())


def _check_finite(step, values, checkpoints, settings):
    broken = [name for name, value in values.items() if not np.isfinite(value)]
    if broken:
        checkpoints.wait()
        last = checkpoints.latest()
        precise = (
            "" if settings.dtype == "float32" else f", or compute in float32, not {settings.dtype}"
        )
        raise ValueError(
            f"{broken[0]} is {values[broken[0]]} at step {step}; "
            f"{'there is no checkpoint' if last is None else f'the last checkpoint is of step {last}'}. In another "
            f"folder, lower optimizer.learning_rate or clip with optimizer.clip_norm{precise}"
        )


def _agree(interrupted, step, settings):
    """Whether to stop: a signal may reach some processes only, and they must all leave the loop at one step."""
    if jax.process_count() == 1:
        return bool(interrupted)
    if step % settings.log_every:  # asking makes the host wait for the devices, as the metrics do
        return False
    return bool(multihost_utils.process_allgather(np.array(bool(interrupted))).any())


def _save_models(run, state, out):
    """Every moving average as a model that `cmjax.load` takes; the first as `model`."""
    if jax.process_index() != 0:
        return
    for i, (decay, ema) in enumerate(zip(run.config.run.ema_decays, state.ema, strict=True)):
        model = dataclasses.replace(run.model, params=jax.device_get(unweighted(ema)))
        cmjax.save(out / ("model" if i == 0 else f"model_{decay}"), model)


def _picture(run, state, path):
    """Samples of the same noise: in 1, 2 and 4 network calls, or of a denoiser by a solver of its ODE."""
    model = dataclasses.replace(run.model, params=jax.device_get(unweighted(state.ema[0])))
    name, s = run.config.loss.get("name", "denoising"), model.scheduler
    solvers = {
        "denoising": ("EDMHeunScheduler", 18),
        "progressive": ("EDMEulerScheduler", run.train_step.config.s1),
    }
    calls: tuple[int, ...] = (1, 2, 4)
    if model.sample_shape[-1] not in (1, 3) or (name in solvers and isinstance(s, SCMScheduler)):
        return  # no solver here takes a denoiser in TrigFlow's terms
    if name in solvers:
        solver, steps = solvers[name]
        model, calls = model.with_scheduler(scheduler_like(s, solver)), (steps,)
    cond = {"class_labels": jnp.arange(10) % model.num_classes} if model.num_classes else {}
    shape = (10, *model.sample_shape)
    rows = [
        cmjax.sample(
            jax.random.key(0),
            model.apply_fn,
            model.params,
            model.scheduler,
            shape,
            num_inference_steps=n,
            cond=cond,
        )
        for n in calls
    ]
    save_grid(path, to_uint8(np.concatenate(rows)), columns=10, scale=max(1, 64 // shape[1]))


class _MetricsFile:
    """`metrics.csv`, and TensorBoard's files: rows beyond the step that a run goes on from are dropped first."""

    def __init__(self, out, done, tensorboard, active):
        self.path, self.rows, self.active = out / "metrics.csv", [], active
        self.writer: Any = None
        if active and self.path.exists():
            with self.path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= done]
        if active and tensorboard:
            try:
                from tensorboardX import SummaryWriter
            except ImportError:
                raise ValueError(
                    "run.tensorboard needs the package tensorboardX: pip install tensorboardX"
                ) from None
            self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=done + 1)

    def write(self, step, values):
        if not self.active:
            return
        self.rows.append({"step": step, **values})
        with replacing(self.path) as file:
            lines = [",".join(self.rows[0])] + [
                ",".join(str(v) for v in row.values()) for row in self.rows
            ]
            file.write(("\n".join(lines) + "\n").encode())
        for name, value in values.items() if self.writer else ():
            self.writer.add_scalar(name, value, step)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.writer:
            self.writer.close()


def _shapes(batch):
    return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in batch.items())


def _bytes(count):
    return f"{count / 2**20:,.1f} MiB"
