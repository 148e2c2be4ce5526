"""A training step and its state, for people who want one; the losses work in any other."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cmjax.arrays import ApplyFn
from cmjax.training.losses import (
    Batch,
    Loss,
    LossConfig,
    Metrics,
    Recipe,
    recipe,
    with_level_weight,
)

AXIS = "data"  # of the mesh, over which a batch is divided


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a run needs to go on; the data position and all randomness follow from `step` and `key`."""

    step: jax.Array  # i32[]
    params: Any
    ema: tuple[Any, ...]  # slow moving averages of params, one per rate: what is sampled from
    target: Any  # fast moving average that the loss compares with; None: params themselves
    opt_state: Any
    key: jax.Array  # raw key data, so that it can be written to disk


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """The jitted, donating function `(state, batch) -> (state, metrics)`, and `init`, which makes its first state."""

    recipe: Recipe
    apply_fn: ApplyFn
    optimizer: optax.GradientTransformation
    config: LossConfig
    ema_decays: tuple[float, ...]
    accumulate: int
    mesh: Mesh | None
    teacher: Any

    def init(self, key: jax.Array, params: Any) -> TrainState:
        """Returns the state of step 0 with a copy of `params`, on every device of the mesh.

        With `config.adaptive_weight` the weighting of levels is trained too: see `losses.with_level_weight`.
        """
        params = with_level_weight(params) if self.config.adaptive_weight else params
        raw = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
        ema = (params,) * len(self.ema_decays)
        target = params if self.recipe.target_decay else None
        state = TrainState(
            jnp.zeros((), jnp.int32), params, ema, target, self.optimizer.init(params), raw
        )
        return self.replicate(
            jax.tree.map(jnp.array, state)
        )  # copies: what is donated may not share a buffer

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Takes one step; `state` is donated, and must not be used again.

        Args:
            state: as `init` or this function returned it.
            batch: arrays `[B, ...]`, this process's share of the batch; B on all processes together must divide
                by `accumulate` and by the number of devices.

        Raises:
            ValueError: if it does not.
        """
        return self._jitted(state, self.shard(batch), self._teacher)

    def lower(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
        """Returns the program before it is compiled, for its cost and memory analysis."""
        return self._jitted.lower(state, self.shard(batch), self._teacher)

    def replicate(self, tree: Any) -> Any:
        """Puts arrays on every device of the mesh, whole."""
        return (
            tree
            if self.mesh is None
            else jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))
        )

    def shard(self, batch: Batch) -> Batch:
        """Divides arrays over the devices of the mesh along their first axis."""
        share = 1 if self.mesh is None else len(self.mesh.local_devices)
        for name, array in batch.items():
            if len(array) % (share * self.accumulate):
                raise ValueError(
                    f"batch[{name!r}] has {len(array)} samples, which {share} devices x accumulate={self.accumulate} "
                    "do not divide; choose a multiple"
                )
        if self.mesh is None:
            return batch
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return {
            k: jax.make_array_from_process_local_data(sharding, np.asarray(v))
            for k, v in batch.items()
        }

    @cached_property
    def _teacher(self):
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

        done, target = state.step.astype(jnp.float32), state.target
        rates = [jnp.minimum(decay, (1 + done) / (10 + done)) for decay in self.ema_decays]
        ema = tuple(
            optax.incremental_update(params, e, 1 - r)
            for e, r in zip(state.ema, rates, strict=True)
        )
        if self.recipe.target_decay is not None:
            decay = self.recipe.target_decay(state.step, self.config)
            target = optax.incremental_update(params, target, 1 - decay)
        metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, ema, target, opt_state, state.key), metrics

    def _gradient(self, key, state, batch, teacher):
        """The mean over `accumulate` parts of the batch, one after the other."""
        target = state.params if self.recipe.target_decay is None else state.target
        fixed = (target, teacher) if self.recipe.distils else target

        def gradient(key, batch):
            def objective(params):
                return self.recipe.loss(
                    key, self.apply_fn, params, fixed, batch, state.step, self.config
                )

            return jax.grad(objective, has_aux=True)(state.params)

        if self.accumulate == 1:
            return gradient(key, batch)

        def add(total, part):
            index, batch = part
            one = gradient(jax.random.fold_in(key, index), batch)
            return jax.tree.map(lambda a, b: a + b / self.accumulate, total, one), None

        # Every device keeps its own samples: parts take every accumulate-th.
        parts = jax.tree.map(
            lambda a: a.reshape(-1, self.accumulate, *a.shape[1:]).swapaxes(0, 1), dict(batch)
        )
        first = jax.tree.map(lambda a: a[0], parts)
        zeros = jax.tree.map(
            lambda a: jnp.zeros(a.shape, jnp.float32), jax.eval_shape(gradient, key, first)
        )
        return jax.lax.scan(add, zeros, (jnp.arange(self.accumulate), parts))[0]


def make_train_step(
    loss: str | Recipe | Loss,
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation,
    config: LossConfig,
    *,
    ema_decays: Sequence[float] = (0.999,),
    accumulate: int = 1,
    mesh: Mesh | None = None,
    teacher: Any = None,
) -> TrainStep:
    """Returns the jitted, donating function `(state, batch) -> (state, metrics)`, with its `init(key, params)`.

    Gradient clipping belongs to the optimizer (`optax.chain(optax.clip_by_global_norm(1), ...)`), lower precision to
    the network (`cmjax.models.compute_in(apply_fn, jnp.bfloat16)`): parameters, preconditioning and loss stay float32.

    Args:
        loss: the name of one of `losses.RECIPES`, a recipe of your own, or a loss alone, of the same signature.
        apply_fn: `(params, x, t, **cond) -> model_output`.
        optimizer: any optax transformation.
        config: handed to the loss.
        ema_decays: of `state.ema`; each ramps up, `min(decay, (1 + step) / (10 + step))`.
        accumulate: parts that a batch is worked through in, one after the other, to save memory. The parts draw
            noise of their own, so the run differs from that without.
        mesh: devices to divide every batch over, see `data_mesh`; of one host or many. None: one device.
        teacher: parameters of the teacher, for distillation.

    Raises:
        ValueError: for an unknown loss, a distillation without a teacher, or settings outside their range.
    """
    if callable(loss):
        loss = Recipe(loss, {}, distils=teacher is not None, weighs_levels=True)  # its author knows
    chosen = recipe(loss) if isinstance(loss, str) else loss
    name = loss if isinstance(loss, str) else chosen.loss.__name__
    if chosen.distils != (teacher is not None):
        need = (
            "needs a teacher: pass teacher=params"
            if chosen.distils
            else "takes no teacher; leave it out"
        )
        raise ValueError(f"the loss {name!r} {need}")
    if config.adaptive_weight and not chosen.weighs_levels:
        raise ValueError(
            f"adaptive_weight is for the sCM losses, and {name!r} is not one; set it to false"
        )
    if not all(0 <= decay < 1 for decay in ema_decays) or not ema_decays:
        raise ValueError(
            f"ema_decays must be numbers in [0, 1), at least one, got {tuple(ema_decays)}"
        )
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}")
    return TrainStep(
        chosen, apply_fn, optimizer, config, tuple(ema_decays), accumulate, mesh, teacher
    )


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh of one axis over `devices`, all of every process by default."""
    return Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))
