"""What a distillation learns from: a denoiser, guided or not."""

from typing import Any

from cmjax.arrays import ApplyFn
from cmjax.guidance import autoguidance
from cmjax.model import Model
from cmjax.parametrization.conversion import one_time_parametrization
from cmjax.training.config import TrainConfig
from cmjax.training.losses.base import FunctionLoss
from cmjax.training.named_models import check_interchangeable, load_named


def load_teacher(config: TrainConfig, model: Model) -> tuple[Any, ApplyFn | None]:
    """Returns the teacher as (params, apply_fn), or (None, None) if the run has none.

    Args:
        config: of the run.
        model: what the run starts from; the teacher too, unless another is named.

    Raises:
        ValueError: if the loss needs a teacher that is not named, or has none, or the network of
            the teacher means something else or makes other samples.
    """
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
            f"teacher.model is missing: {config.loss_name!r} distils a denoiser; "
            "name its folder, or set run.init to it, and the network begins as it"
        )

    # By default the student starts as a copy of its teacher.
    teacher = model
    if section.model:
        teacher = load_named("teacher.model", section.model)
    _check_samples(section.model, teacher, model)
    check_interchangeable(
        "teacher.model", section.model, teacher.scheduler, model.scheduler
    )
    interval = section.guidance_interval or None
    if section.null_class:
        return teacher.params, _guided_by_null_class(teacher, section.guidance, interval)
    if not section.weak_model:
        return teacher.params, teacher.apply_fn

    # Autoguidance evaluates one network with two sets of parameters, so both must be of its kind.
    weak = load_named("teacher.weak_model", section.weak_model)
    check_interchangeable(
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


def _check_samples(name, teacher, model):
    """Raises ValueError for a teacher of samples or classes that the student does not have."""
    if teacher.sample_shape != model.sample_shape:
        raise ValueError(
            f"teacher.model {name} makes samples of shape {teacher.sample_shape}, the network "
            f"{model.sample_shape}; name a teacher of the same shape"
        )

    # A label beyond its last class would be that class, without an error.
    classes = (teacher.num_classes, model.num_classes)
    if None not in classes and classes[0] < classes[1]:
        raise ValueError(
            f"teacher.model {name} has {classes[0]} classes, the network {classes[1]}; name a "
            "teacher of all of them"
        )


def _guided_by_null_class(teacher, scale, interval):
    """Returns the network of a teacher with classifier-free guidance."""
    if teacher.null_class is None:
        raise ValueError(
            "teacher.null_class: the teacher has none; train it with network.null_class=true and "
            "run.label_dropout"
        )
    return teacher.guided(scale, interval)
