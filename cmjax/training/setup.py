"""What a training run starts from: model, teacher, data and training step."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from cmjax.model import Model
from cmjax.models import registry
from cmjax.models.adapters import compute_in
from cmjax.random import key_of_seed
from cmjax.training import data, losses, sources
from cmjax.training.config import TrainConfig
from cmjax.training.digests import digest_of
from cmjax.training.first_model import (
    first_model,
    null_class_of,
    with_autoencoder,
    with_class_names,
)
from cmjax.training.inspection import inspect
from cmjax.training.latents import STD
from cmjax.training.losses.discrete import TwoLevelLoss
from cmjax.training.moments import Moments
from cmjax.training.teachers import load_teacher
from cmjax.training.train_step import TrainState, TrainStep
from cmjax.training.trainer import data_mesh, make_train_step

# Losses of consistency models of one time, which one call samples.
CONSISTENCY = (
    TwoLevelLoss,
    losses.ContinuousConsistencyDistillation,
    losses.ContinuousConsistencyTraining,
    losses.SimplifiedConsistencyDistillation,
    losses.SimplifiedConsistencyTraining,
)


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
        """Returns, as JSON, what identifies the files that the configuration names.

        That is the data, the teacher's parameters, and the network and scheduler of the model in
        `run.init`. The parameters of that model are left out: a run that continues takes those of
        its checkpoint.
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
        settings = self.config.run

        # All other arrays of a batch go to the network: labels only where it has classes. What
        # samples were made from is for the losses that ask for it.
        names = {"data", STD}
        if num_classes is not None:
            names.add("class_labels")
        if self.train_step.loss.takes_noise:
            names.add("noise")
        batches = data.batches(
            self.source,
            settings.batch_size,
            seed=settings.seed,
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
        ValueError: if a model or the data cannot be used, the loss does not go with the network, or
            a package is missing.
    """
    # Without it the run would end at its first batch, long after it began.
    data.import_grain()

    # In the order of what each depends on: the data must have the shape of the model's samples, and
    # the teacher the scheduler of the model.
    model = first_model(config)
    source = _open_data(config, model)
    model = with_class_names(model, source)
    model = with_autoencoder(config, model, source)
    teacher, teacher_fn = load_teacher(config, model)

    # What is learned, which has to be something that the network can.
    loss = config.make_loss(model.scheduler, teacher_fn)
    _check_loss(config, model, loss)

    # What the labels of some samples become.
    null = None
    if config.run.label_dropout:
        null = {"class_labels": null_class_of(model)}

    # The network in the run's precision; the teacher computes in float32.
    apply_fn = model.apply_fn
    if config.run.dtype != "float32":
        apply_fn = compute_in(apply_fn, config.run.dtype)

    # On one device no mesh is needed. `jax.device_count()` counts those of all processes.
    num_devices = jax.device_count()
    mesh = data_mesh() if num_devices > 1 else None
    _check_batch_size(config.run.batch_size, num_devices, config.run.accumulate)
    train_step = make_train_step(
        loss,
        apply_fn,
        config.make_optimizer(loss),
        ema_decays=config.run.ema_decays,
        accumulate=config.run.accumulate,
        mesh=mesh,
        teacher=teacher,
        label_dropout=config.run.label_dropout,
        null=null,
    )
    return Run(config, model, source, train_step)


def _check_batch_size(batch_size, num_devices, accumulate):
    """Raises ValueError unless every device gets as many samples of every part of a batch."""
    parts = num_devices * accumulate
    if batch_size % parts:
        raise ValueError(
            f"run.batch_size={batch_size} cannot be divided over {num_devices} devices, with "
            f"run.accumulate={accumulate}; choose a multiple of {parts}"
        )


def _open_data(config, model):
    """Returns the source of the data, whose samples must have the shape that the network takes."""
    path = config.data.source
    if not path:
        raise ValueError(
            "data.source is missing: name an .npz, an IDX file or a folder of pictures"
        )

    # cmjax's networks take and return the samples' channels; one of the user's may do otherwise.
    channels = getattr(model.config, "in_channels", None)
    is_ours = registry.network_name(model.config) in registry.BUILT_IN
    if is_ours and channels is not None and channels != model.sample_shape[-1]:
        raise ValueError(
            f"network.in_channels is {channels}, but the network returns "
            f"{model.sample_shape[-1]} (network.out_channels); both must be those of the data"
        )

    # Pictures are scaled to the network's size [H, W, C]; arrays have to have it.
    try:
        source = sources.open_source(path, *model.sample_shape[1:])
    except FileNotFoundError:
        raise ValueError(
            f"data.source {path} does not exist; put the data there, or name others, as by "
            "cmjax train --data PATH"
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


def untrained(config: TrainConfig, model: Model, loss: Any) -> str:
    """Says in one sentence which part of guidance a run leaves untrained, or returns "".

    A run may mean to: one that continues with a model of which that part is trained.
    """
    drops = "set run.label_dropout=0.1"
    guided_by = getattr(loss, "guided_by", "")
    leaves_out = config.run.label_dropout > 0
    if guided_by and not leaves_out:
        return (
            f"loss.{guided_by} guides by samples without a class, of which this run has none: "
            f"{drops}"
        )

    # A network that takes a scale which never differs does not learn what it means.
    if getattr(model.config, "guidance_embeds", False) and not guided_by:
        return (
            "the network takes a scale of guidance, and this loss trains it at one scale only: "
            "set loss.largest_scale, of imf"
        )
    if getattr(model.config, "null_class", False) and not leaves_out:
        return (
            "the null class of the network is never trained, so that its samples cannot be "
            f"guided: {drops}"
        )
    return ""


def misread(model: Model, loss: Any) -> str:
    """Says in one sentence how the scheduler will take the model for another kind, or returns "".

    It may be what a user wants: one call of a solver is one call of the consistency model.
    """
    if not (isinstance(loss, CONSISTENCY) and model.scheduler.solves_ode):
        return ""
    return (
        f"{type(model.scheduler).__name__} samples denoisers, and this loss makes a consistency "
        "model: sample it in one step"
    )


def unused_classes(model: Model, source: sources.Source) -> str:
    """Says in one sentence that data have classes and the network none, or returns ""."""
    if model.num_classes is not None or "class_labels" not in source[0]:
        return ""
    said = "not used: the labels of the data"
    number = "N"
    if isinstance(source, sources.Pictures):
        number = len(source.classes)
        shown = source.classes[:5]
        if number > len(shown):
            shown.append("...")
        said += f" ({', '.join(shown)})"
    if hasattr(model.config, "num_class_embeds"):
        said += f"; to train with them set network.num_class_embeds={number}"
    return said


def _check_loss(config, model, loss):
    """Raises ValueError for a loss that would train without an error, but not this network."""
    # Labels are left out by the network's null class, so guidance by another is by a real class.
    null_class = getattr(loss, "null_class", None)
    if None not in (null_class, model.null_class) and null_class != model.null_class:
        raise ValueError(
            f"loss.null_class {null_class} is not the null class of the network; set "
            f"loss.null_class={model.null_class}"
        )

    # Without a null class no label can be left out, and the guidance would be by a real class.
    guided_by = getattr(loss, "guided_by", "")
    if guided_by and (model.null_class is None or model.num_classes is None):
        raise ValueError(
            f"loss.{guided_by} guides by samples without a class, and the network has no null "
            f"class; set network.null_class=true and run.label_dropout=0.1, or leave out "
            f"loss.{guided_by}"
        )

    # A second head that no loss trains keeps its random parameters. That of a trained model may be
    # left as it is.
    layers = getattr(model.config, "second_head_layers", 0)
    trains = getattr(loss, "second_head", False)
    if layers and not trains and not config.run.init:
        raise ValueError(
            f"network.second_head_layers {layers} makes a second head that this loss does not "
            "train; set loss.second_head=true, of imf, or network.second_head_layers=0"
        )
    if layers == 0 and trains and hasattr(model.config, "second_head_layers"):
        raise ValueError(
            "loss.second_head trains a head that the network does not have; set "
            "network.second_head_layers, or loss.second_head=false"
        )

    # From random parameters the fake denoiser, and with it the network, would have far to go.
    if isinstance(loss, losses.DistributionMatching) and not config.run.init:
        raise ValueError(
            "run.init is missing: the loss 'dmd' trains a network that begins as its teacher; set "
            f"run.init={config.teacher.model or 'a denoiser'}"
        )

    # Velocities near the data are those that the network can return.
    shortest = getattr(model.config, "shortest_time", None)
    trained = getattr(loss, "shortest_time", None)
    if None not in (shortest, trained) and shortest != trained:
        raise ValueError(
            f"loss.shortest_time {trained} is not that of the network, which divides x - x0 by at "
            f"least {shortest}; set loss.shortest_time={shortest}"
        )
