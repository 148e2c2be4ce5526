"""A training step and its state. The losses do not need it: they work in any loop."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cmjax.arrays import ApplyFn
from cmjax.training.losses.base import Batch, Frozen, FunctionLoss, Loss, Metrics

AXIS = "data"  # of the mesh, over which a batch is divided


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a run needs to resume: data and randomness follow from `step` and `key`.

    Attributes:
        step: training steps taken, i32[].
        params: what is trained, as `loss.prepare_params` returned it.
        ema: slow moving averages of `params`, one per decay: sample from these.
        target: fast moving average that the loss compares with; None if it compares with `params`.
        opt_state: the optimizer's.
        key: raw key data, which checkpoints can hold.
    """

    step: jax.Array
    params: Any
    ema: tuple[Any, ...]
    target: Any
    opt_state: Any
    key: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """The jitted function `(state, batch) -> (state, metrics)`, which donates the state.

    Attributes:
        loss: what is minimized.
        apply_fn: `(params, x, t, **cond) -> model_output`.
        optimizer: any optax transformation.
        ema_decays: of `state.ema`.
        accumulate: number of parts that a batch is divided into, one after the other.
        mesh: devices that a batch is divided over; None for one device.
        teacher: parameters of the teacher, or None.
    """

    loss: Loss
    apply_fn: ApplyFn
    optimizer: optax.GradientTransformation
    ema_decays: tuple[float, ...]
    accumulate: int
    mesh: Mesh | None
    teacher: Any

    def init(self, key: jax.Array, params: Any) -> TrainState:
        """Returns the state of step 0, on every device of the mesh.

        Args:
            key: of all randomness of the run.
            params: the network's parameters, which are copied.
        """
        params = self.loss.prepare_params(params)
        step = jnp.zeros((), jnp.int32)
        has_target = self.loss.target_decay_at(step) is not None
        is_typed_key = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        state = TrainState(
            step=step,
            params=params,
            ema=(params,) * len(self.ema_decays),
            target=params if has_target else None,
            opt_state=self.optimizer.init(params),
            key=jax.random.key_data(key) if is_typed_key else key,
        )
        # The state is donated, so its parts may not share buffers, nor those of `params`.
        return self.replicate(jax.tree.map(jnp.array, state))

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Takes one step; `state` is donated, and must not be used again.

        Args:
            state: as `init` or this function returned it.
            batch: arrays `[B, ...]`, this process's share of the batch.

        Raises:
            ValueError: if the number of devices times `accumulate` does not divide B.
        """
        return self._jitted(state, self.shard(batch), self._replicated_teacher)

    def lower(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
        """Returns the program before it is compiled, for its cost and memory analysis."""
        return self._jitted.lower(state, self.shard(batch), self._replicated_teacher)

    def replicate(self, tree: Any) -> Any:
        """Puts a copy of all arrays on every device of the mesh."""
        if self.mesh is None:
            return tree
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def shard(self, batch: Batch) -> Batch:
        """Divides arrays over the devices of the mesh, along their first axis."""
        num_devices = 1 if self.mesh is None else len(self.mesh.local_devices)
        for name, array in batch.items():
            if len(array) % (num_devices * self.accumulate):
                raise ValueError(
                    f"batch[{name!r}] has {len(array)} samples, which {num_devices} devices x "
                    f"accumulate={self.accumulate} do not divide; choose a multiple"
                )
        if self.mesh is None:
            return batch
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return {
            name: jax.make_array_from_process_local_data(sharding, np.asarray(array))
            for name, array in batch.items()
        }

    @cached_property
    def _replicated_teacher(self):
        return self.replicate(self.teacher)

    @cached_property
    def _jitted(self):
        shardings = {}
        if self.mesh is not None:
            shardings["out_shardings"] = NamedSharding(self.mesh, PartitionSpec())
        return jax.jit(self._step, donate_argnums=0, **shardings)

    def _step(self, state: TrainState, batch: Batch, teacher: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        grads, metrics = self._gradient(key, state, batch, teacher)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        # The moving averages follow, quickly at first.
        num_done = state.step.astype(jnp.float32)
        ema = []
        for decay, average in zip(self.ema_decays, state.ema, strict=True):
            ramped = jnp.minimum(decay, (1 + num_done) / (10 + num_done))
            ema.append(optax.incremental_update(params, average, 1 - ramped))

        target = state.target
        target_decay = self.loss.target_decay_at(state.step)
        if target_decay is not None:
            target = optax.incremental_update(params, target, 1 - target_decay)

        metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
        state = TrainState(state.step + 1, params, tuple(ema), target, opt_state, state.key)
        return state, metrics

    def _gradient(self, key, state, batch, teacher):
        """Returns gradient and metrics, a mean over `accumulate` parts of the batch."""
        target = state.params if state.target is None else state.target
        frozen = Frozen(target, teacher)

        def gradient(key, batch):
            def objective(params):
                return self.loss(key, self.apply_fn, params, frozen, batch, state.step)

            return jax.grad(objective, has_aux=True)(state.params)

        if self.accumulate == 1:
            return gradient(key, batch)

        def add_part(total, part):
            index, batch = part
            result = gradient(jax.random.fold_in(key, index), batch)
            return jax.tree.map(lambda a, b: a + b / self.accumulate, total, result), None

        # Every device keeps its own samples: a part is every accumulate-th of them.
        parts = jax.tree.map(
            lambda a: a.reshape(-1, self.accumulate, *a.shape[1:]).swapaxes(0, 1), dict(batch)
        )
        first = jax.tree.map(lambda a: a[0], parts)
        shapes = jax.eval_shape(gradient, key, first)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), shapes)
        return jax.lax.scan(add_part, zeros, (jnp.arange(self.accumulate), parts))[0]


def make_train_step(
    loss: Loss | Callable[..., tuple[jax.Array, Metrics]],
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decays: Sequence[float] = (0.999,),
    accumulate: int = 1,
    mesh: Mesh | None = None,
    teacher: Any = None,
) -> TrainStep:
    """Returns the jitted function `(state, batch) -> (state, metrics)`, with `init(key, params)`.

    Gradient clipping is the optimizer's (`optax.chain(optax.clip_by_global_norm(1), ...)`), lower
    precision the network's (`cmjax.models.compute_in(apply_fn, jnp.bfloat16)`): parameters,
    preconditioning and loss stay float32.

    Args:
        loss: such as `losses.ConsistencyTraining(scheduler, total_steps)`, or a function
            `(key, apply_fn, params, frozen, batch, step) -> (loss, metrics)`.
        apply_fn: `(params, x, t, **cond) -> model_output`.
        optimizer: any optax transformation.
        ema_decays: of `state.ema`; each ramps up, `min(decay, (1 + step) / (10 + step))`.
        accumulate: number of parts that a batch is divided into, one after the other, to save
            memory. Each draws noise of its own, so the run differs from one without.
        mesh: devices to divide every batch over, see `data_mesh`; of one host or many. None: one
            device.
        teacher: parameters of the teacher, for distillation.

    Raises:
        ValueError: for a distillation without a teacher, a teacher without a distillation, or
            settings outside their range.
    """
    if isinstance(loss, Loss):
        _check_teacher(loss, teacher)
    elif callable(loss):
        loss = FunctionLoss(loss)
    else:
        raise ValueError(
            f"loss must be a Loss or a function, got {loss!r}; "
            "losses.make(name, scheduler, total_steps=...) makes one by name"
        )
    if not ema_decays or not all(0 <= decay < 1 for decay in ema_decays):
        raise ValueError(
            f"ema_decays must be numbers in [0, 1), at least one, got {tuple(ema_decays)}"
        )
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}")
    return TrainStep(loss, apply_fn, optimizer, tuple(ema_decays), accumulate, mesh, teacher)


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh of one axis over `devices`, all of every process by default."""
    return Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))


def _check_teacher(loss, teacher):
    # A function of the user's, read from a config, may take a teacher or not.
    if isinstance(loss, FunctionLoss):
        return
    name = type(loss).__name__
    if loss.needs_teacher and teacher is None:
        raise ValueError(f"the loss {name} needs a teacher: pass teacher=params")
    if teacher is not None and not loss.needs_teacher:
        raise ValueError(f"the loss {name} takes no teacher; leave it out")
