"""What a training run starts from: model, teacher, data and training step."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cmjax.checkpoints.autoencoders import load_autoencoder
from cmjax.checkpoints.loading import load
from cmjax.guidance import autoguidance
from cmjax.model import Model
from cmjax.models.adapters import compute_in, from_nnx
from cmjax.models.extension import EXTENSIONS, extend, is_extension
from cmjax.models.registry import network_class
from cmjax.parametrization.conversion import one_time_parametrization
from cmjax.random import key_of_seed, same_numbers
from cmjax.training import data, sources
from cmjax.training.config import TrainConfig
from cmjax.training.digests import digest_of
from cmjax.training.inspection import inspect
from cmjax.training.latents import STD
from cmjax.training.losses.base import FunctionLoss
from cmjax.training.moments import Moments
from cmjax.training.train_step import TrainState, TrainStep
from cmjax.training.trainer import data_mesh, make_train_step

# Least span of the scaled times. The highest frequency of sinusoidal embeddings is 1, so over a
# shorter span the features of all times are nearly the same.
_LEAST_TIME_SPAN = 0.15


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run that is ready to start.

    Attributes:
        config: the configuration that it was made from.
        model: the model to train, with its initial parameters.
        source: the training data.
        train_step: the jitted training step.
    """

    config: TrainConfig
    model: Model
    source: sources.Arrays | sources.Pictures | Moments
    train_step: TrainStep

    def init(self) -> TrainState:
        """Returns the state of step 0."""
        # The one key of the run: step k folds k into it.
        return self.train_step.init(key_of_seed(self.config.run.seed), self.model.params)

    def fingerprint(self) -> dict[str, Any]:
        """Returns, as JSON, what tells the files that the run is named after from others.

        That is the data, the teacher, and the network and levels of the model that it starts from;
        its parameters are those of the checkpoint once the run has begun.
        """
        data = self.source.fingerprint()
        found = {f"data.{key}": value for key, value in data.items()}
        if self.config.run.init:
            kind = repr((self.model.config, self.model.scheduler))
            found["run.init"] = digest_of({}, kind).hex()
        if self.train_step.teacher is not None:
            found["teacher"] = digest_of(self.train_step.teacher).hex()
        return found

    def model_of(self, params: Any) -> Model:
        """Returns the model with trained parameters, such as `state.ema[0]`, on the host."""
        # Without what the loss trains besides the network, which samplers do not know.
        network_params = self.train_step.loss.network_params(params)
        return dataclasses.replace(self.model, params=jax.device_get(network_params))

    def inspect_data(self, *, shown: bool = False) -> None:
        """Looks at the data; see `inspection.inspect`. An error names their source.

        Args:
            shown: whether to show a progress bar.

        Raises:
            ValueError: if the network cannot be trained on them.
        """
        model = self.model
        try:
            inspect(self.source, model.num_classes, model.scheduler, shown=shown)
        except ValueError as error:
            raise ValueError(f"data.source {self.config.data.source}: {error}") from None

    def batches(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Returns an iterator of this process's batches, from that of step `start` on.

        Raises:
            ValueError: as `data.batches` does.
        """
        num_classes = self.model.num_classes
        section = self.config.data

        # All other arrays of a batch go to the network: labels only where it has classes. What
        # samples were made from is for the losses that ask for it.
        names = {"data", STD}
        if num_classes is not None:
            names.add("class_labels")
        if self.train_step.loss.takes_noise:
            names.add("noise")
        batches = data.batches(
            self.source,
            self.config.run.batch_size,
            seed=self.config.run.seed,
            start=start,
            num_classes=num_classes,
            flip=section.flip,
        )
        return (
            {name: array for name, array in batch.items() if name in names}
            for batch in batches
        )


def make_run(config: TrainConfig) -> Run:
    """Loads or makes all that a run starts from.

    Raises:
        ValueError: if a model or the data cannot be used, or a package is missing.
    """
    # Without it the run would end at its first batch, long after it began.
    data.import_grain()

    # In the order of what each depends on: the data must have the shape of the model's samples, and
    # the teacher the scheduler of the model.
    model = _first_model(config)
    source = _open_data(config, model)
    model = _with_class_names(model, source)
    model = _with_autoencoder(config, model, source)
    teacher, teacher_fn = _load_teacher(config, model)

    # What the labels of some samples become.
    null = None
    if config.run.label_dropout:
        null = {"class_labels": _null_class(model)}

    # The network in the run's precision; the teacher computes in float32.
    apply_fn = model.apply_fn
    if config.run.dtype != "float32":
        apply_fn = compute_in(apply_fn, config.run.dtype)

    # On one device no mesh is needed. `jax.device_count()` counts those of all processes.
    mesh = data_mesh() if jax.device_count() > 1 else None
    train_step = make_train_step(
        config.make_loss(model.scheduler, teacher_fn),
        apply_fn,
        config.make_optimizer(),
        ema_decays=config.run.ema_decays,
        accumulate=config.run.accumulate,
        mesh=mesh,
        teacher=teacher,
        label_dropout=config.run.label_dropout,
        null=null,
    )
    return Run(config, model, source, train_step)


def _first_model(config):
    """Returns the model that a run starts from, with the scheduler that it is trained for."""
    network_config = config.network_config()
    scheduler = config.make_scheduler()
    init = config.run.init

    # A trained model keeps its network. [scheduler] may change its noise levels, but not what its
    # outputs mean.
    if init:
        model = _load("run.init", init)
        model = _extended(model, network_config)
        if network_config not in (None, model.config):
            raise ValueError(
                f"network differs from that of run.init {init}; leave out [network]"
            )
        if config.scheduler:
            _check_interchangeable("run.init", init, model.scheduler, scheduler)
            model = dataclasses.replace(model, scheduler=scheduler)
    else:
        # A new network, with random parameters from the seed.
        module_class, _ = network_class(config.network["class"])
        try:
            with same_numbers():
                rngs = nnx.Rngs(key_of_seed(config.run.seed))
                module = module_class(network_config, rngs=rngs)
        except ValueError as error:
            raise ValueError(f"network: {error}") from None
        model = Model(*from_nnx(module), scheduler, network_config)
    _check_time_scale(model)
    return model


def _null_class(model):
    """Returns the class that takes the place of others; raises ValueError if there is none."""
    if model.null_class is None:
        raise ValueError(
            "run.label_dropout needs a network with a null class; set network.null_class=true"
        )
    return model.null_class


def _extended(model, network_config):
    """Returns the model with the inputs that a flow map has besides, if [network] adds them."""
    if network_config is None or not is_extension(model.config, network_config):
        return model
    changes = {name: getattr(network_config, name) for name in EXTENSIONS}
    apply_fn, params, config = extend(model.config, model.params, **changes)
    return dataclasses.replace(model, apply_fn=apply_fn, params=params, config=config)


def _open_data(config, model):
    """Returns the source of the data, whose samples must have the shape that the network takes."""
    path = config.data.source
    if not path:
        raise ValueError(
            "data.source is missing: name an .npz, an IDX file or a folder of pictures"
        )

    # Pictures are scaled to the network's size [H, W, C]; arrays have to have it.
    try:
        source = sources.open_source(path, *model.sample_shape[1:])
    except FileNotFoundError:
        raise ValueError(
            f"data.source {path} does not exist; put the data there, or name others"
        ) from None
    except ValueError as error:
        raise ValueError(f"data.source: {error}") from None
    shape = np.shape(source[0]["data"])
    if shape != model.sample_shape:
        raise ValueError(
            f"data.source {path} holds samples of shape {shape}, "
            f"the network takes {model.sample_shape}"
        )
    if config.data.flip and isinstance(source, Moments):
        raise ValueError(
            "data.flip would mirror latents, which are not those of mirrored pictures; leave it "
            "out, and encode the mirror images too: cmjax encode --flip"
        )
    return source


def _with_autoencoder(config, model, source):
    """Returns the model with the autoencoder of its latents, if it is known."""
    named = config.data.autoencoder
    if named:
        try:
            autoencoder = load_autoencoder(named)
        except ValueError as error:
            raise ValueError(f"data.autoencoder: {error}") from None
    elif isinstance(source, Moments):
        autoencoder = source.autoencoder()
    else:
        autoencoder = model.autoencoder
    if autoencoder is None:
        return model

    # Such samplers would cut the latents off, in the sample pictures and for whoever loads the
    # model.
    for name in ("clip_denoised", "clip_sample", "thresholding"):
        if getattr(model.scheduler, name, False):
            raise ValueError(
                f"scheduler.{name} would clip latents, which leave [-1, 1]; set "
                f"scheduler.{name}=false"
            )
    return dataclasses.replace(model, autoencoder=autoencoder)


def _with_class_names(model, source):
    """Returns the model with the names of the picture folders as the names of its classes."""
    names = tuple(getattr(source, "classes", ()))
    if len(names) != model.num_classes:
        return model  # no folders, or not one for each of the network's classes
    return dataclasses.replace(model, class_names=names)


def _load_teacher(config, model):
    """Returns the teacher as (params, apply_fn), or (None, None) if the run has none."""
    section = config.teacher
    loss = config.make_loss(model.scheduler)

    # A function does not say whether it needs a teacher: it gets one if the configuration names it.
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

    # By default the student starts as a copy of its teacher.
    teacher = model
    if section.model:
        teacher = _load("teacher.model", section.model)
    _check_interchangeable(
        "teacher.model", section.model, teacher.scheduler, model.scheduler
    )
    interval = section.guidance_interval or None
    if section.null_class:
        return teacher.params, _guided_by_null_class(teacher, section.guidance, interval)
    if not section.weak_model:
        return teacher.params, teacher.apply_fn

    # Autoguidance evaluates one network with two sets of parameters, so both must be of its kind.
    weak = _load("teacher.weak_model", section.weak_model)
    _check_interchangeable(
        "teacher.weak_model", section.weak_model, weak.scheduler, model.scheduler
    )
    if weak.config != teacher.config:
        raise ValueError(
            f"teacher.weak_model {section.weak_model} is another network than teacher.model"
        )
    guided = autoguidance(
        teacher.apply_fn,
        section.guidance,
        interval=interval,
        parametrization=one_time_parametrization("teacher", teacher.scheduler),
    )
    return (teacher.params, weak.params), guided


def _guided_by_null_class(teacher, scale, interval):
    """Returns the network of a teacher with classifier-free guidance."""
    if teacher.null_class is None:
        raise ValueError(
            "teacher.null_class: the teacher has none; train it with network.null_class=true and "
            "run.label_dropout"
        )
    return teacher.guided(scale, interval)


def _load(name, source):
    """Returns the model that a key of the configuration names; an error begins with the key."""
    try:
        return load(source, dtype=jnp.float32)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _check_interchangeable(name, source, found, wanted):
    """Raises ValueError unless two schedulers are for networks of the same meaning.

    A flow map starts as a network of one time with the same parametrization, such as that of flow
    matching, or a denoiser for a consistency trajectory model.
    """
    # Otherwise the network would be evaluated with the wrong scalings or times. Noise levels may
    # differ: they only say where it is evaluated, and where a consistency function is the identity.
    own = found.parametrization.without_boundary()
    if own == wanted.parametrization.without_boundary():
        return
    has = _kind_of(found)
    needs = _kind_of(wanted)
    raise ValueError(f"{name} {source} is a network for {has}, but this run is for {needs}")


def _kind_of(scheduler):
    """Returns a scheduler in the words of an error message: its class and its scale or path."""
    name = type(scheduler).__name__
    if hasattr(scheduler, "sigma_data"):
        return f"{name}(sigma_data={scheduler.sigma_data})"
    return f"{name}, {scheduler.parametrization}"


def _check_time_scale(model):
    """Raises ValueError if the network multiplies its times by too small a factor.

    A factor that suits EDM's times, which go up to 1,000, makes TrigFlow's angles, which end at
    pi/2, indistinguishable.
    """
    # The span of the network's times from low to high noise.
    time_scale = getattr(model.config, "time_scale", 1.0)
    ends = model.scheduler.parametrization.time(jnp.array([0.01, 100.0]))
    span = float(jnp.abs(ends[1] - ends[0]))
    if time_scale * span < _LEAST_TIME_SPAN:
        raise ValueError(
            f"network.time_scale {time_scale} hides the times of a "
            f"{type(model.scheduler).__name__}, which span {span:.3g}; set it to 1 or more"
        )
