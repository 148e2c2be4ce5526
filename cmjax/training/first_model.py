"""The model that a training run starts from: new, or trained before."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from cmjax.checkpoints.autoencoders import load_autoencoder
from cmjax.generation.batches import out_of_memory
from cmjax.model import Model
from cmjax.models.adapters import from_nnx
from cmjax.models.extension import EXTENSIONS, extend, is_extension
from cmjax.models.registry import architecture
from cmjax.random import key_of_seed, same_numbers
from cmjax.training.config import TrainConfig
from cmjax.training.moments import Moments
from cmjax.training.named_models import check_interchangeable, load_named

# Least span of the scaled times. The highest frequency of sinusoidal embeddings is 1, so over a
# shorter span the features of all times are nearly the same.
_LEAST_TIME_SPAN = 0.15


def first_model(config: TrainConfig) -> Model:
    """Returns the model that a run starts from, with the scheduler that it is trained for.

    Raises:
        ValueError: if [network] or [scheduler] contradicts the model of `run.init`, or no such
            network can be made.
    """
    network_config = config.network_config()
    scheduler = config.make_scheduler()
    init = config.run.init

    # A trained model keeps its network. [scheduler] may change its noise levels, but not what its
    # outputs mean.
    if init:
        model = load_named("run.init", init)
        model = _extended(model, network_config)
        if network_config not in (None, model.config):
            raise ValueError(
                f"network differs from that of run.init {init}; leave out [network]"
            )
        if config.scheduler:
            check_interchangeable("run.init", init, model.scheduler, scheduler)
            model = dataclasses.replace(model, scheduler=scheduler)
    else:
        # A new network, with random parameters from the seed.
        module_class, _ = architecture(config.network["class"])
        try:
            with same_numbers(), out_of_memory("make [network] smaller"):
                rngs = nnx.Rngs(key_of_seed(config.run.seed))
                module = module_class(network_config, rngs=rngs)
        except ValueError as error:
            raise ValueError(f"network: {error}") from None
        model = Model(*from_nnx(module), scheduler, network_config)
    _check_time_scale(model)
    return model


def _extended(model, network_config):
    """Returns the model with the inputs that a flow map has besides, if [network] adds them."""
    if network_config is None or not is_extension(model.config, network_config):
        return model
    changes = {name: getattr(network_config, name) for name in EXTENSIONS}
    apply_fn, params, config = extend(model.config, model.params, **changes)
    return dataclasses.replace(model, apply_fn=apply_fn, params=params, config=config)


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


def null_class_of(model: Model) -> int:
    """Returns the class that takes the place of others; raises ValueError if there is none."""
    if model.null_class is None:
        raise ValueError(
            "run.label_dropout needs a network with a null class; set network.null_class=true"
        )
    return model.null_class


def with_class_names(model: Model, source: Any) -> Model:
    """Returns the model with the names of the picture folders as the names of its classes."""
    names = tuple(getattr(source, "classes", ()))
    if len(names) != model.num_classes:
        return model  # no folders, or not one for each of the network's classes
    return dataclasses.replace(model, class_names=names)


def with_autoencoder(config: TrainConfig, model: Model, source: Any) -> Model:
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
