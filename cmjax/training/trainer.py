"""Makes the training step of a loss. Losses do not depend on it: they work in any loop."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from cmjax.arrays import ApplyFn
from cmjax.configs import shown
from cmjax.networks import num_classes
from cmjax.training.checks import check_label_dropout, check_step_arguments
from cmjax.training.losses.base import FunctionLoss, Loss, Metrics
from cmjax.training.train_step import TrainStep

AXIS = "data"  # name of the axis of `data_mesh`


def make_train_step(
    loss: Loss | Callable[..., tuple[jax.Array, Metrics]],
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    *,
    ema_decays: Sequence[float] = (0.999,),
    accumulate: int = 1,
    mesh: Mesh | None = None,
    teacher: Any = None,
    dropout: bool = False,
    label_dropout: float = 0.0,
    null: Mapping[str, Any] | None = None,
) -> TrainStep:
    """Returns the jitted function `(state, batch) -> (state, metrics)`, with `init(key, params)`.

    Clip gradients in the optimizer, `optax.chain(optax.clip_by_global_norm(1), ...)`, and lower the
    precision in the network, `cmjax.models.compute_in(apply_fn, jnp.bfloat16)`: parameters,
    preconditioning and loss stay float32.

    Example:
        >>> import cmjax, jax, optax
        >>> import jax.numpy as jnp
        >>> from cmjax.training import losses, trainer
        >>> def apply_fn(params, x, t):
        ...     return params * x
        >>> loss = losses.Denoising(cmjax.CMStochasticIterativeScheduler())
        >>> train_step = trainer.make_train_step(loss, apply_fn, optax.adam(1e-3))
        >>> state = train_step.init(jax.random.key(0), jnp.ones(2))
        >>> state, metrics = train_step(state, {"data": jnp.zeros((8, 2))})
        >>> int(state.step), sorted(metrics)
        (1, ['grad_norm', 'loss'])

    Args:
        loss: such as `losses.ConsistencyTraining(scheduler, total_steps)`, or a function
            `(key, apply_fn, params, frozen, batch, step) -> (loss, metrics)`.
        apply_fn: the network, `(params, x, t, **cond) -> model_output`.
        optimizer: any optax transformation. Those that follow the value of the loss, such as
            `optax.contrib.reduce_on_plateau`, get it.
        ema_decays: decays of the moving averages `state.ema`; each decay ramps up,
            `min(decay, (1 + step) / (10 + step))`.
        accumulate: number of parts of a batch, whose gradients are computed in turn, to
            save memory. Each part draws its own noise, so results differ from those of 1.
        mesh: devices of one host or many to divide every batch over, along all axes of the mesh,
            automatic or explicit ones; see `data_mesh`. None for one device.
        teacher: parameters of the teacher, for distillation.
        dropout: whether to drop out units of the network, as `from_nnx` and `from_linen` make it:
            it is then called with `dropout_key`, a key per step that student and target share.
        label_dropout: fraction of the samples, drawn at each step, whose conditioning becomes
            `null`, so that the network can be guided; see `cmjax.guidance.classifier_free`.
        null: what their conditioning becomes, such as `{"class_labels": 10}`.

    Raises:
        ValueError: for a distillation without a teacher, a teacher for another loss, or values out
            of their range.
    """
    # A plain function becomes a loss without a moving average, which may use a teacher.
    if isinstance(loss, Loss):
        _check_teacher(loss, teacher)
    elif callable(loss) and not isinstance(loss, type):
        loss = FunctionLoss(loss)
    else:
        raise ValueError(
            f"loss must be an instance of a Loss or a function, got {shown(loss)}; "
            "losses.make(name, scheduler, total_steps=...) makes one by name"
        )

    # The only one of optax that is not yet a transformation. What it makes of itself would keep the
    # value of the loss from the optimizer within.
    if isinstance(optimizer, optax.MultiSteps):
        update: Any = optimizer.update
        optimizer = optax.GradientTransformationExtraArgs(optimizer.init, update)

    # What can be seen before anything is traced.
    check_step_arguments(apply_fn, optimizer, ema_decays, accumulate, mesh)
    check_label_dropout(label_dropout, null, num_classes(apply_fn))
    return TrainStep(
        loss=loss,
        apply_fn=apply_fn,
        optimizer=optimizer,
        ema_decays=tuple(ema_decays),
        accumulate=accumulate,
        mesh=mesh,
        teacher=teacher,
        dropout=dropout,
        label_dropout=label_dropout,
        null=null if label_dropout else None,
    )


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh with one axis over `devices`; by default all devices of all processes."""
    if devices is None:
        devices = jax.devices()
    return Mesh(np.array(devices), (AXIS,))


def _check_teacher(loss, teacher):
    """Raises ValueError for a missing teacher, or one that the loss would not use."""
    # Of a function it is not known whether it uses a teacher.
    if isinstance(loss, FunctionLoss):
        return
    name = type(loss).__name__
    if loss.needs_teacher and teacher is None:
        raise ValueError(f"the loss {name} needs a teacher: pass teacher=params")
    if teacher is not None and not loss.needs_teacher:
        raise ValueError(f"the loss {name} takes no teacher; leave it out")
