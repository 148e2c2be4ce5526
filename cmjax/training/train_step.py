"""One training step: its state, and the jitted function from state and batch to the next state."""

import contextlib
import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cmjax.arrays import ApplyFn, at_least_float32
from cmjax.conditioning import without_some
from cmjax.labels import check_class_labels
from cmjax.meshes import pvaried_alike, with_sharding
from cmjax.networks import check_integers, num_classes
from cmjax.random import as_key, as_one_key, same_numbers
from cmjax.serialization import serializable
from cmjax.tracing import is_tracing
from cmjax.training.averages import averaged, mean_over_parts, moved_towards
from cmjax.training.checks import check_result, check_trained_params
from cmjax.training.compiling import options_for_gradients
from cmjax.training.latents import draw_latents
from cmjax.training.losses.base import Batch, Frozen, Loss, Metrics
from cmjax.training.losses.batches import split_batch
from cmjax.training.losses.dropout import WithDropout

# Folded into a step's key, for keys of their own. The losses split that key, which folds in 0, 1,
# 2 and so on, and so never these.
_DROPOUT = 2**32 - 1
_LABEL_DROPOUT = 2**32 - 2
_LATENTS = 2**32 - 3


# What optimizers raise that need more than a training step gives them.
_FAILURES = (TypeError, ValueError, AttributeError, IndexError)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that resuming a run needs: data and randomness follow from `step` and `key`.

    Attributes:
        step: number of training steps taken, i32[].
        params: the trained parameters, in the form that `loss.prepare_params` returns.
        ema: slow moving averages of `params`, one per decay, in float32 if these are of half
            precision: sample with these.
        target: fast moving average of `params`, likewise, for the target of the loss; None if the
            target is `params` or there is none.
        opt_state: state of the optimizer.
        key: PRNG key as raw data, u32[...], which checkpoints can hold.
    """

    step: jax.Array
    params: Any
    ema: tuple[Any, ...]
    target: Any
    opt_state: Any
    key: jax.Array


serializable(TrainState)


def check_not_donated(state: TrainState) -> None:
    """Raises ValueError for a state whose memory a training step has taken for the next one."""
    step = state.step
    if isinstance(step, jax.Array) and not is_tracing() and step.is_deleted():
        raise ValueError(
            "state was given to an earlier step, which reuses its memory; use the state that the "
            "step returned"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """The jitted function `(state, batch) -> (state, metrics)`, which donates the state.

    `cmjax.training.trainer.make_train_step` makes it, and checks its fields.

    Attributes:
        loss: the loss to minimize.
        apply_fn: the network, `(params, x, t, **cond) -> model_output`.
        optimizer: any optax transformation.
        ema_decays: decays of the moving averages `state.ema`.
        accumulate: number of parts of a batch, whose gradients are computed in turn.
        mesh: devices that a batch is divided over; None for one device.
        teacher: parameters of the teacher, or None.
        dropout: whether the network is called with a `dropout_key`.
        label_dropout: fraction of the samples whose conditioning becomes `null`.
        null: what their conditioning becomes; None where it never does.
    """

    loss: Loss
    apply_fn: ApplyFn
    optimizer: optax.GradientTransformation
    ema_decays: tuple[float, ...]
    accumulate: int
    mesh: Mesh | None
    teacher: Any
    dropout: bool = False
    label_dropout: float = 0.0
    null: Mapping[str, Any] | None = None

    def init(self, key: jax.Array, params: Any) -> TrainState:
        """Returns the state of step 0, on every device of the mesh.

        Args:
            key: PRNG key of all randomness of the run, typed or raw.
            params: the network's parameters, which are copied.

        Raises:
            ValueError: for what is not one key, or a key of another generator than threefry.
        """
        # The loss says what is trained, and whether its target is a moving average.
        check_trained_params(params)
        params = jax.tree.map(jnp.asarray, self.loss.prepare_params(params))
        step = jnp.zeros((), jnp.int32)
        has_target = self.loss.target_decay_at(step) is not None

        # Checkpoints cannot hold typed keys, so the state has the raw data.
        average = averaged(params)
        state = TrainState(
            step=step,
            params=params,
            ema=(average,) * len(self.ema_decays),
            target=average if has_target else None,
            opt_state=self._init_optimizer(params),
            key=jax.random.key_data(as_one_key(key)),
        )

        # Every field gets a copy: the state is donated, so its fields may share no buffer with each
        # other or with the caller's `params`. Within `jax.shard_map` keys may differ from device to
        # device, and then all of the state does after a step.
        return self.replicate(pvaried_alike(jax.tree.map(_own, state)))

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Takes one training step; `state` is donated and must not be used afterwards.

        Args:
            state: a state that `init` or this function returned.
            batch: arrays `[B, ...]`, this process's share of the batch. With "data_std" the data
                are means, of which latents are drawn; see `cmjax.training.latents`.

        Returns:
            The next state, and the metrics of the loss with `grad_norm`, f32[] each.

        Raises:
            ValueError: for a state that was given to an earlier step, data that are not floats,
                conditioning that is not one value per sample, a network, metric or loss that
                returns something of another shape, or if B is not a multiple of this process's
                devices times `accumulate`.
        """
        if not isinstance(state, TrainState):
            raise ValueError(
                f"state must be a TrainState, from init, got {type(state).__name__}"
            )
        check_not_donated(state)
        with self._mesh_context():
            return self._program(state, self.shard(batch), self._replicated_teacher)

    def lower(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
        """Returns the program of a step, not yet compiled, for cost and memory analysis."""
        # With `jax_disable_jit` there would be no program.
        with self._mesh_context(), jax.disable_jit(False):
            return self._program.lower(state, self.shard(batch), self._replicated_teacher)

    def replicate(self, tree: Any) -> Any:
        """Returns the tree with a copy of every array on every device of the mesh."""
        if self.mesh is None:
            return tree
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def shard(self, batch: Batch) -> Batch:
        """Returns the arrays divided over the devices of the mesh, along their first axis.

        Raises:
            ValueError: for a batch that a step does not take.
        """
        self._check_batch(batch)
        if self.mesh is None:
            return batch

        # Each process has only its own rows; together they are one global array.
        sharding = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))

        def divided(array):
            if is_tracing():
                return with_sharding(array, sharding)
            return jax.make_array_from_process_local_data(sharding, np.asarray(array))

        return jax.tree.map(divided, dict(batch))

    def _check_batch(self, batch):
        """Raises ValueError for a batch that a step does not take."""
        split_batch(batch)

        # Every device gets the same number of samples of every part. Under a caller's `jit` the
        # batch is that of all processes; otherwise it is the share of this process.
        num_devices = 1
        if self.mesh is not None:
            num_devices = self.mesh.size if is_tracing() else len(self.mesh.local_devices)
        count = len(batch["data"])
        if count % (num_devices * self.accumulate):
            raise ValueError(
                f"batch['data'] has {count} samples, which {num_devices} devices x "
                f"accumulate={self.accumulate} do not divide; choose a multiple"
            )

        # Checked here: within the compiled step values are not known. Integers would be cut to 32
        # bits, and the embedding of a label that is no class is NaN.
        for name, value in batch.items():
            for leaf in jax.tree.leaves(value):
                if isinstance(leaf, np.ndarray):
                    check_integers(f"batch[{name!r}]", leaf)
        classes = num_classes(self.apply_fn)
        labels = batch.get("class_labels")
        if classes is not None and labels is not None:
            check_class_labels("batch['class_labels']", labels, classes)

    def _mesh_context(self):
        """The context of the mesh, which networks on explicit axes may need."""
        if self.mesh is None:
            return contextlib.nullcontext()
        # Within a caller's program there are no devices yet, and JAX refuses to set them.
        if is_tracing():
            return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)
        return jax.set_mesh(self.mesh)

    @cached_property
    def _replicated_teacher(self):
        """The teacher's parameters on every device."""
        # It is passed to the jitted step as an argument. As a closure, its parameters would be
        # constants of the program, which slow down compilation. The result is kept in this object,
        # so it must not be a tracer: under a caller's `jit`, too, it is computed at once.
        with jax.ensure_compile_time_eval():
            return self.replicate(self.teacher)

    @property
    def _program(self):
        """The jitted step, which under a caller's `jit` becomes part of that program."""
        return self._jitted if is_tracing() else self._jitted_for_this_platform

    @cached_property
    def _jitted(self):
        """The step within a caller's program, where JAX allows no options of the compiler."""
        return self._jit()

    @cached_property
    def _jitted_for_this_platform(self):
        """The step as a separate program, with the compiler's options for its platform."""
        platform = jax.default_backend()
        if self.mesh is not None:
            platform = self.mesh.devices.flat[0].platform
        return self._jit(compiler_options=options_for_gradients(platform))

    def _jit(self, **options):
        """Jits the step, with state and metrics on every device."""
        # Arguments keep the shardings that they have; XLA adds the reductions over devices.
        if self.mesh is not None:
            options["out_shardings"] = NamedSharding(self.mesh, PartitionSpec())

        # `jax.jit(self._step)` would hold this object, which holds the jitted function: a cycle
        # that only the garbage collector frees, and the teacher's parameters on the devices with
        # it. So the step of a copy without the teacher is jitted.
        pure = dataclasses.replace(self, teacher=None)
        return jax.jit(pure._step, donate_argnums=0, **options)

    def _step(
        self, state: TrainState, batch: Batch, teacher: Any
    ) -> tuple[TrainState, Metrics]:
        """Returns the next state and the metrics of this step."""
        # Within `jax.shard_map` each device trains by its own batch. JAX would add up the gradients
        # of all devices by parameters that they share.
        state, batch = pvaried_alike((state, batch))

        # The key of a step follows from its number, so a resumed run draws the same noise. Under
        # `same_numbers`, `jax.random` draws the same numbers whatever JAX's settings are.
        key = jax.random.fold_in(as_key(state.key), state.step)
        with same_numbers():
            grads, value, metrics = self._gradient(key, state, batch, teacher)

        # One step of the optimizer. Optax mixes dtypes, which strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = self._update(grads, value, state)
            params = optax.apply_updates(state.params, updates)

            # The norm before the optimizer clips the gradient: it shows when clipping sets in.
            norm = optax.tree.norm(jax.tree.map(at_least_float32, grads))

        # The moving averages. Their decay grows with the steps; otherwise the random initial
        # parameters would count for 1 / (1 - decay) steps.
        num_done = state.step.astype(jnp.float32)
        ema = []
        for decay, average in zip(self.ema_decays, state.ema, strict=True):
            ramped = jnp.minimum(decay, (1 + num_done) / (10 + num_done))
            ema.append(moved_towards(average, params, 1 - ramped))

        # The target has the decay of the loss's own schedule.
        target = state.target
        target_decay = self.loss.target_decay_at(state.step)
        if target_decay is not None:
            target = moved_towards(target, params, 1 - target_decay)

        metrics = {**metrics, "grad_norm": norm.astype(jnp.float32)}
        state = TrainState(state.step + 1, params, tuple(ema), target, opt_state, state.key)
        return state, metrics

    def _update(self, grads, value, state):
        """Returns (updates, state) of the optimizer; some of them follow the value of the loss."""
        optimizer = optax.with_extra_args_support(self.optimizer)
        arguments = (grads, state.opt_state, state.params)
        try:
            return optimizer.update(*arguments, value=value)
        except _FAILURES as error:
            # Some of optax's own say that they take further arguments, and do not.
            if "unexpected keyword argument 'value'" in str(error):
                return optimizer.update(*arguments)
            raise ValueError(
                "optimizer must need no arguments but the gradient, its state, the parameters and "
                f"value=, the loss: {_first_line(error)}; take another one, or update in a loop of "
                "your own"
            ) from error

    def _init_optimizer(self, params):
        """Returns the first state of the optimizer."""
        try:
            return self.optimizer.init(params)
        except _FAILURES as error:
            raise ValueError(
                f"optimizer cannot begin with parameters such as these: {_first_line(error)}; "
                "take another one, or update in a loop of your own"
            ) from error

    def _gradient(self, key, state, batch, teacher):
        """Returns (gradient, loss, metrics), each the mean over `accumulate` parts of the batch."""
        # Without a moving average the target is the parameters themselves; the losses stop the
        # gradient there. An average has the network's own dtypes where it is called.
        target = state.params
        if state.target is not None:
            target = jax.tree.map(lambda a, p: a.astype(p.dtype), state.target, target)
        frozen = Frozen(target, teacher)

        # Of one part of the batch. Dropout, of units and of labels, has keys of its own.
        def gradient(key, batch):
            # Of latents whose standard deviation is given, other ones at every step.
            batch = draw_latents(jax.random.fold_in(key, _LATENTS), batch)
            apply_fn = self.apply_fn
            if self.dropout:
                apply_fn = WithDropout(apply_fn, jax.random.fold_in(key, _DROPOUT))
            if self.null is not None:
                label_key = jax.random.fold_in(key, _LABEL_DROPOUT)
                batch = without_some(label_key, batch, self.null, self.label_dropout)

            def objective(params):
                result = self.loss(key, apply_fn, params, frozen, batch, state.step)
                check_result(self.loss, result)
                return result

            (value, metrics), grads = jax.value_and_grad(objective, has_aux=True)(
                state.params
            )
            return grads, value, metrics

        if self.accumulate == 1:
            return gradient(key, batch)
        return mean_over_parts(gradient, key, batch, self.accumulate)


def _own(leaf: Any) -> jax.Array:
    """A copy of an array, or of a number, with a dtype that other arrays do not change."""
    # A Python number is weakly typed, and the next state would not be: two programs for one step.
    array = jnp.array(leaf)
    return array.astype(array.dtype) if getattr(array, "weak_type", False) else array


def _first_line(error: Exception) -> str:
    """What an error says, without JAX's note on its traceback."""
    return str(error).partition("\n")[0].removesuffix(".")
