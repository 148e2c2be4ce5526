"""What a training run begins with: model, teacher, data and training step."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cmjax.checkpoints.loading import load
from cmjax.guidance import autoguidance
from cmjax.model import Model
from cmjax.models.adapters import compute_in, from_nnx
from cmjax.models.registry import network_class
from cmjax.training import data, sources
from cmjax.training.config import TrainConfig
from cmjax.training.losses.base import FunctionLoss
from cmjax.training.trainer import TrainState, TrainStep, data_mesh, make_train_step

# Below it a network cannot tell its times apart: sinusoidal embeddings begin at frequency 1.
_LEAST_TIME_SPAN = 0.15


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run that is ready to start.

    Attributes:
        config: what it was made from.
        model: with the weights that the run starts from.
        source: the data, a `cmjax.training.sources.Source`.
        train_step: one step of training.
    """

    config: TrainConfig
    model: Model
    source: sources.Source
    train_step: TrainStep

    def init(self) -> TrainState:
        """Returns the state of step 0."""
        return self.train_step.init(jax.random.key(self.config.run.seed), self.model.params)

    def model_of(self, params: Any) -> Model:
        """Returns the model with trained parameters, such as `state.ema[0]`, on the host."""
        network_params = self.train_step.loss.network_params(params)
        return dataclasses.replace(self.model, params=jax.device_get(network_params))

    def batches(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Returns this process's batches from step `start` on.

        Raises:
            ValueError: if the network has classes and the data has no labels.
        """
        num_classes = self.model.num_classes
        section = self.config.data
        if num_classes is not None and "class_labels" not in self.source[0]:
            raise ValueError(
                f"data.source {section.source} has no labels, but the network has {num_classes} "
                "classes; leave out network.num_class_embeds"
            )
        names = ("data",) if num_classes is None else ("data", "class_labels")
        batches = data.batches(
            self.source,
            self.config.run.batch_size,
            seed=self.config.run.seed,
            start=start,
            num_classes=num_classes,
            flip=section.flip,
        )
        return ({name: batch[name] for name in names} for batch in batches)


def make_run(config: TrainConfig) -> Run:
    """Loads or makes what a run begins with.

    Raises:
        ValueError: if a model or the data cannot be used.
    """
    model = _first_model(config)
    source = _open_data(config, model)
    model = _with_class_names(model, source)
    teacher, teacher_fn = _load_teacher(config, model)

    apply_fn = model.apply_fn
    if config.run.dtype != "float32":
        apply_fn = compute_in(apply_fn, config.run.dtype)
    train_step = make_train_step(
        config.make_loss(model.scheduler, teacher_fn),
        apply_fn,
        config.make_optimizer(),
        ema_decays=config.run.ema_decays,
        accumulate=config.run.accumulate,
        mesh=data_mesh() if jax.device_count() > 1 else None,
        teacher=teacher,
    )
    return Run(config, model, source, train_step)


def _first_model(config):
    """The model that a run starts from, with the scheduler that it is trained for."""
    network_config = config.network_config()
    scheduler = config.make_scheduler()
    init = config.run.init
    if init:
        model = load(init, dtype=jnp.float32)
        if network_config not in (None, model.config):
            raise ValueError(f"network differs from that of run.init {init}; leave out [network]")
        if config.scheduler:
            _check_interchangeable("run.init", init, model.scheduler, scheduler)
            model = dataclasses.replace(model, scheduler=scheduler)
    else:
        module_class, _ = network_class(config.network["class"])
        module = module_class(network_config, rngs=nnx.Rngs(config.run.seed))
        model = Model(*from_nnx(module), scheduler, network_config)
    _check_time_scale(model)
    return model


def _open_data(config, model):
    path = config.data.source
    if not path:
        raise ValueError(
            "data.source is missing: name an .npz, an IDX file or a folder of pictures"
        )
    source = sources.open_source(path, *model.sample_shape[1:])
    shape = np.shape(source[0]["data"])
    if shape != model.sample_shape:
        raise ValueError(
            f"data.source {path} holds samples of shape {shape}, "
            f"the network takes {model.sample_shape}"
        )
    return source


def _with_class_names(model, source):
    """Names the model's classes as the folders of its pictures are named."""
    names = tuple(getattr(source, "classes", ()))
    if len(names) != model.num_classes:
        return model  # no folders, or fewer than the network has classes
    return dataclasses.replace(model, class_names=names)


def _load_teacher(config, model):
    """Returns (parameters of the teacher, its network), (None, None) where there is none."""
    section = config.teacher
    loss = config.make_loss(model.scheduler)
    # A function says nothing of a teacher: it gets the one that the config names.
    is_function = isinstance(loss, FunctionLoss)
    if not loss.needs_teacher and not (is_function and section.model):
        if section.model or section.weak_model:
            raise ValueError(
                f"teacher: the loss {config.loss_name!r} has none; leave the section out"
            )
        return None, None
    if not section.model and not config.run.init:
        raise ValueError(
            f"teacher.model is missing: {config.loss_name!r} distils a denoiser, name its folder"
        )

    teacher = load(section.model, dtype=jnp.float32) if section.model else model
    _check_interchangeable("teacher.model", section.model, teacher.scheduler, model.scheduler)
    if not section.weak_model:
        return teacher.params, teacher.apply_fn

    weak = load(section.weak_model, dtype=jnp.float32)
    _check_interchangeable(
        "teacher.weak_model", section.weak_model, weak.scheduler, model.scheduler
    )
    if weak.config != teacher.config:
        raise ValueError(
            f"teacher.weak_model {section.weak_model} is another network than teacher.model"
        )
    return (teacher.params, weak.params), autoguidance(teacher.apply_fn, section.guidance)


def _check_interchangeable(name, source, found, wanted):
    """Two schedulers are interchangeable only if their kind and sigma_data agree."""
    if type(found) is type(wanted) and found.sigma_data == wanted.sigma_data:
        return
    has, needs = (
        f"{type(scheduler).__name__}(sigma_data={getattr(scheduler, 'sigma_data', None)})"
        for scheduler in (found, wanted)
    )
    raise ValueError(f"{name} {source} is a network for {has}, but this run is for {needs}")


def _check_time_scale(model):
    """The times that a network is told must differ by more than its time scale hides.

    The scale that suits EDM's times, which go up to 1,000, makes TrigFlow's angles, which end at
    pi/2, all alike.
    """
    time_scale = getattr(model.config, "time_scale", 1.0)
    ends = model.scheduler.parametrization.time(jnp.array([0.01, 100.0]))
    span = float(jnp.abs(ends[1] - ends[0]))
    if time_scale * span < _LEAST_TIME_SPAN:
        raise ValueError(
            f"network.time_scale {time_scale} hides the times of a "
            f"{type(model.scheduler).__name__}, which span {span:.3g}; set it to 1 or more"
        )
