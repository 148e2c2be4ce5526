"""A training step and its state, for people who want one; the losses work in any other."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

from cmjax.models.adapters import ApplyFn
from cmjax.training.losses import Batch, Loss, LossConfig, Metrics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a run needs to go on; the data position and all randomness follow from `step` and `key`."""

    step: jax.Array  # i32[]
    params: Any
    ema: Any  # slow moving average of params, what is sampled from
    target: Any  # fast moving average that the loss compares with; None: params themselves
    opt_state: Any
    key: jax.Array  # raw key data, so that it can be written to disk

    @classmethod
    def create(
        cls, key: jax.Array, params: Any, optimizer: optax.GradientTransformation, *, with_target: bool = False
    ) -> Self:
        """Starts a run at step 0 from `params`; `with_target` if the training step has a `target_decay`."""
        ema = jax.tree.map(jnp.copy, params)
        target = jax.tree.map(jnp.copy, params) if with_target else None
        return cls(jnp.zeros((), jnp.int32), params, ema, target, optimizer.init(params), jax.random.key_data(key))


def make_train_step(
    loss: Loss,
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation,
    config: LossConfig,
    *,
    ema_decay: float = 0.999,
    target_decay: Callable[[jax.Array], jax.Array] | None = None,
    teacher: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the jitted, donating function `(state, batch) -> (state, metrics)`.

    Args:
        loss: one of `cmjax.training.losses`, or yours with the same signature.
        apply_fn: `(params, x, t, **cond) -> model_output`.
        optimizer: any optax transformation.
        config: handed to the loss.
        ema_decay: of `state.ema`; it ramps up, `min(ema_decay, (1 + step) / (10 + step))`.
        target_decay: decay of `state.target` as a function of the step, for losses that compare with a
            moving average; None compares with the parameters themselves, without their gradient.
        teacher: parameters of the teacher, for distillation.
    """

    def train_step(state: TrainState, batch: Batch, teacher: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

        target = state.params if target_decay is None else state.target
        fixed = target if teacher is None else (target, teacher)

        def objective(params):
            return loss(key, apply_fn, params, fixed, batch, state.step, config)

        grads, metrics = jax.grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        done = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1 + done) / (10 + done))
        ema = optax.incremental_update(params, state.ema, 1 - decay)
        if target_decay is not None:
            target = optax.incremental_update(params, state.target, 1 - target_decay(state.step))
        else:
            target = None
        metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, ema, target, opt_state, state.key), metrics

    jitted = jax.jit(train_step, donate_argnums=0)
    return lambda state, batch: jitted(state, batch, teacher)


def save(folder: str | Path, state: TrainState) -> None:
    """Writes the state atomically under `folder`, keeping the newest two."""
    with _manager(folder) as manager:
        manager.save(int(state.step), args=ocp.args.StandardSave(_fields(state)))


def restore(folder: str | Path, like: TrainState) -> TrainState:
    """Returns the newest state under `folder`, or `like` if there is none; `like` gives the structure."""
    with _manager(folder) as manager:
        if manager.latest_step() is None:
            return like
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _fields(like))
        fields = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(target))
        return dataclasses.replace(like, **fields)


def _manager(folder):
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    return ocp.CheckpointManager(Path(folder).absolute() / "checkpoints", options=options)


def _fields(state: TrainState) -> dict[str, Any]:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if value is not None}
