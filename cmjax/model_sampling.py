"""What `Model.sample` passes to `cmjax.sample`: the guided network, and the classes to sample."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.arrays import ApplyFn, is_symbolic
from cmjax.guidance import Scale, classifier_free, embedded_scale
from cmjax.guidance.strength import Strength
from cmjax.labels import Labels, class_indices
from cmjax.networks import parse_cond
from cmjax.parametrization.conversion import one_time_parametrization
from cmjax.random import sample_index
from cmjax.sampling import SampleOptions
from cmjax.schedulers import Scheduler


class ModelSampleOptions(SampleOptions, total=False):
    """The options of `Model.sample` for type checkers, without `return_trajectory`."""

    labels: Labels
    guidance: Scale | None
    guidance_interval: Sequence[float] | None
    latents: bool


# Names of networks' conditioning, of `Model.guided`'s arguments and a misspelling, each with the
# argument of `Model.sample` that is meant.
_ARGUMENTS = {
    "class_labels": "labels",
    "label": "labels",
    "guidance_scale": "guidance",
    "scale": "guidance",
    "interval": "guidance_interval",
}


def check_names(options: Mapping[str, Any]) -> None:
    """Raises TypeError for arguments of `Model.sample` that have another name there."""
    for name in options:
        if name == "scheduler":
            raise TypeError(
                "Model.sample has no argument 'scheduler'; call model.with_scheduler(scheduler), "
                "and sample the model that it returns"
            )
        if name in _ARGUMENTS:
            raise TypeError(
                f"Model.sample has no argument {name!r}; give {_ARGUMENTS[name]}=, or one value "
                "per sample in cond"
            )


def of_guidance(error: ValueError) -> str:
    """Returns a message about the scale or interval of `Model.guided` by their names here."""
    message = str(error)
    if message.startswith("scale"):
        return message.replace("scale", "guidance", 1)
    if message.startswith("interval"):
        return f"guidance_{message}"
    return message


def guided_network(
    apply_fn: ApplyFn,
    config: Any,
    scheduler: Scheduler,
    *,
    null_class: int | None,
    scale: Scale | None,
    interval: Sequence[float] | None,
) -> ApplyFn:
    """Returns a model's network, guided; `Model.guided` explains scale and interval.

    Args:
        apply_fn: the network.
        config: the config of the network.
        scheduler: the scheduler that `apply_fn` is for.
        null_class: the class that stands for none of the classes; None if there is none.
        scale: of the guidance, or None.
        interval: the noise levels to guide at, or None for what the network recommends.

    Raises:
        ValueError: if the model has no null class, or for a wrong scale or interval.
    """
    takes_scale = getattr(config, "guidance_embeds", False)
    if scale is None and interval is not None:
        raise ValueError("guidance_interval needs guidance, the scale to guide with")

    # A network that takes a scale as an input.
    if takes_scale and scale is None:
        return _with_recommended_scale(apply_fn, config)
    if takes_scale:
        return embedded_scale(apply_fn, scale, interval)

    # Any other network is called twice, with and without the class. Without guidance once, which
    # does not need a null class.
    if scale is None:
        return apply_fn
    if interval is None and not callable(scale) and Strength(scale).is_one:
        return apply_fn
    if null_class is None:
        raise ValueError(
            "guidance needs a network with a null class, which this one has not; train one "
            "with null_class=True and label_dropout, or see cmjax.guidance for other ways"
        )

    # Only what depends on the noise level needs to know it; a network of two times has two.
    parametrization = None
    if interval is not None or callable(scale):
        parametrization = one_time_parametrization("scheduler", scheduler)
    return classifier_free(
        apply_fn,
        scale,
        null={"class_labels": null_class},
        interval=interval,
        parametrization=parametrization,
    )


def _with_recommended_scale(apply_fn, config):
    """A network that takes a scale, with the one that it recommends."""
    # A config with a scale says which one its network takes if it is given none.
    if getattr(config, "guidance_scale", None) is not None:
        return apply_fn
    return embedded_scale(apply_fn, 1.0)


def class_conditioning(
    cond: Mapping[str, Any] | None,
    labels: Labels,
    num: int,
    first_index: int | jax.Array,
    *,
    num_classes: int | None,
    null_class: int | None,
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """Returns the conditioning of a batch, with the classes of its samples.

    Args:
        cond: the caller's conditioning, pytrees of arrays `[num, ...]`, or None.
        labels: the classes to sample in turn; None for all, or for those that `cond` has.
        num: number of samples.
        first_index: global index of the first sample.
        num_classes: number of the model's classes, or None.
        null_class: the class that stands for none of them, which `cond` may have; or None.
        class_names: one per class, or None.

    Returns:
        The conditioning, with `class_labels` i32[num] for a model with classes.

    Raises:
        ValueError: for conditioning that is not of this batch, classes that the model does not
            have, or classes that are given twice.
    """
    start = sample_index(first_index, num)

    # What the caller gives may ask for the null class, too.
    allowed = num_classes if null_class is None else null_class + 1
    conditioning = parse_cond(cond, num, allowed)
    if "class_labels" in conditioning:
        if labels is not None:
            raise ValueError("labels and cond['class_labels'] exclude each other; give one")
        return conditioning

    classes = class_indices(labels, num_classes, class_names)
    if classes is None:
        return conditioning

    # Sample i has class classes[i mod len], i32[num], where i is its global index: so it does not
    # depend on how many samples are made at a time.
    if isinstance(start, np.integer) and not is_symbolic(num):
        turn = (int(start) + np.arange(num)) % len(classes)
        conditioning["class_labels"] = np.asarray(classes, np.int32)[turn]
        return conditioning

    # The same where one of them is traced.
    indices = start + jnp.arange(num, dtype=jnp.uint32)
    turn = indices % jnp.uint32(len(classes))
    conditioning["class_labels"] = jnp.asarray(classes, jnp.int32)[turn]
    return conditioning
