"""The training step and its state. Losses do not depend on it: they work in any loop."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cmjax.arrays import ApplyFn, is_tracing
from cmjax.conditioning import without_some
from cmjax.configs import shown
from cmjax.labels import check_class_labels
from cmjax.networks import num_classes
from cmjax.random import as_key, same_numbers
from cmjax.training.checks import (
    check_label_dropout,
    check_params,
    check_result,
    check_step_arguments,
)
from cmjax.training.compiling import options_for_gradients
from cmjax.training.latents import draw_latents
from cmjax.training.losses.base import (
    Batch,
    Frozen,
    FunctionLoss,
    Loss,
    Metrics,
    WithDropout,
    split_batch,
)

AXIS = "data"  # name of the axis of `data_mesh`

# Folded into a step's key. Losses split that key, which is to fold in 0, 1, and so on.
_DROPOUT = 2**32 - 1
_LABEL_DROPOUT = 2**32 - 2
_LATENTS = 2**32 - 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that resuming a run needs: data and randomness follow from `step` and `key`.

    Attributes:
        step: number of training steps taken, i32[].
        params: the trained parameters, in the form that `loss.prepare_params` returns.
        ema: slow moving averages of `params`, one per decay: sample with these.
        target: fast moving average of `params`, for the target of the loss; None if the target is
            `params` or there is none.
        opt_state: state of the optimizer.
        key: PRNG key as raw data, u32[...], which checkpoints can hold.
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

    `make_train_step` makes it, and checks its fields.

    Attributes:
        loss: the loss to minimize.
        apply_fn: the network, `(params, x, t, **cond) -> model_output`.
        optimizer: any optax transformation.
        ema_decays: decays of the moving averages `state.ema`.
        accumulate: number of parts of a batch, whose gradients are computed one after the other.
        mesh: devices that a batch is divided over; None for one device.
        teacher: parameters of the teacher, or None.
        dropout: whether the network is called with a `dropout_key`.
        label_dropout: share of the samples whose conditioning becomes `null`.
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
            ValueError: for what is no key, or a key of another generator than threefry.
        """
        # The loss says what is trained, and whether its target is a moving average.
        check_params(params)
        params = self.loss.prepare_params(params)
        step = jnp.zeros((), jnp.int32)
        has_target = self.loss.target_decay_at(step) is not None

        # Checkpoints cannot hold typed keys, so the state has the raw data.
        state = TrainState(
            step=step,
            params=params,
            ema=(params,) * len(self.ema_decays),
            target=params if has_target else None,
            opt_state=self.optimizer.init(params),
            key=jax.random.key_data(as_key(key)),
        )

        # Copies throughout: the state is donated, so its fields may share no buffer with each other
        # or with the caller's `params`.
        return self.replicate(jax.tree.map(jnp.array, state))

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Takes one training step; `state` is donated and must not be used afterwards.

        Args:
            state: a state that `init` or this function returned.
            batch: arrays `[B, ...]`, this process's share of the batch. With "data_std" the data
                are means, of which latents are drawn; see `cmjax.training.latents`.

        Returns:
            The next state, and the metrics of the loss with `grad_norm`, f32[] each.

        Raises:
            ValueError: for data that are not floats, for conditioning that is not one value per
                sample, for a network, metric or loss that returns something of another shape, or if
                B is not a multiple of this process's devices times `accumulate`.
        """
        if not isinstance(state, TrainState):
            raise ValueError(
                f"state must be a TrainState, from init, got {type(state).__name__}"
            )
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
        """Returns the arrays divided over the devices of the mesh, along their first axis."""
        # Every device gets the same number of samples of every part.
        split_batch(batch)
        num_devices = 1 if self.mesh is None else len(self.mesh.local_devices)
        count = len(batch["data"])
        if count % (num_devices * self.accumulate):
            raise ValueError(
                f"batch['data'] has {count} samples, which {num_devices} devices x "
                f"accumulate={self.accumulate} do not divide; choose a multiple"
            )

        # Within the compiled step labels are not known: one that is no class would become NaN.
        classes = num_classes(self.apply_fn)
        labels = batch.get("class_labels")
        if classes is not None and labels is not None:
            check_class_labels("batch['class_labels']", labels, classes)
        if self.mesh is None:
            return batch

        # Each process holds its own rows only; together they are one global array.
        sharding = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))

        def divided(array):
            return jax.make_array_from_process_local_data(sharding, np.asarray(array))

        return jax.tree.map(divided, dict(batch))

    def _mesh_context(self):
        """The context of the mesh, which networks on explicit axes may need."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    @cached_property
    def _replicated_teacher(self):
        """The teacher's parameters on every device."""
        # An argument of the jitted step: parameters that it closes over would be constants of the
        # program, and slow down its compilation.
        return self.replicate(self.teacher)

    @property
    def _program(self):
        """The jitted step; part of the caller's program where there is one."""
        return self._jitted if is_tracing() else self._jitted_for_this_platform

    @cached_property
    def _jitted(self):
        """The step for the caller's program, in which options of the compiler are an error."""
        return self._jit()

    @cached_property
    def _jitted_for_this_platform(self):
        """The step as a program of its own, with options for the platform it runs on."""
        platform = jax.default_backend()
        if self.mesh is not None:
            platform = self.mesh.devices.flat[0].platform
        return self._jit(compiler_options=options_for_gradients(platform))

    def _jit(self, **options):
        """Jits the step, with state and metrics on every device."""
        # Arguments keep the shardings that they have; XLA adds the reductions over devices.
        if self.mesh is not None:
            options["out_shardings"] = NamedSharding(self.mesh, PartitionSpec())
        return jax.jit(self._step, donate_argnums=0, **options)

    def _step(
        self, state: TrainState, batch: Batch, teacher: Any
    ) -> tuple[TrainState, Metrics]:
        """Returns the next state and the metrics of this step."""
        # The key of step k is folded from k, so a resumed run draws the same noise, under whatever
        # settings of JAX; so do the network and losses that draw by `jax.random`.
        key = jax.random.fold_in(as_key(state.key), state.step)
        with same_numbers():
            grads, metrics = self._gradient(key, state, batch, teacher)

        # One step of the optimizer. Those of optax mix dtypes, which the caller may have forbidden.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)

        # The moving averages follow, quickly at first: they would otherwise remember the random
        # initial parameters for 1 / (1 - decay) steps.
        num_done = state.step.astype(jnp.float32)
        ema = []
        for decay, average in zip(self.ema_decays, state.ema, strict=True):
            ramped = jnp.minimum(decay, (1 + num_done) / (10 + num_done))
            ema.append(_moved(average, params, 1 - ramped))

        # The target has the decay of the loss's own schedule.
        target = state.target
        target_decay = self.loss.target_decay_at(state.step)
        if target_decay is not None:
            target = _moved(target, params, 1 - target_decay)

        # The norm before clipping, which is the optimizer's: it shows when clipping sets in.
        metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
        state = TrainState(state.step + 1, params, tuple(ema), target, opt_state, state.key)
        return state, metrics

    def _gradient(self, key, state, batch, teacher):
        """Returns (gradient, metrics), each the mean over `accumulate` parts of the batch."""
        # Losses without a moving average compare with the parameters themselves, behind a
        # `stop_gradient` of their own.
        target = state.params if state.target is None else state.target
        frozen = Frozen(target, teacher)

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

            return jax.grad(objective, has_aux=True)(state.params)

        if self.accumulate == 1:
            return gradient(key, batch)

        # One part after the other in a `scan`, so that only one part's activations are in memory.
        def add_part(total, part):
            index, batch = part
            result = gradient(jax.random.fold_in(key, index), batch)
            return jax.tree.map(lambda a, b: a + b / self.accumulate, total, result), None

        # Arrays [accumulate, B / accumulate, ...]. A part is every accumulate-th sample, so that
        # every device keeps its own samples; parts of neighbours would move them between devices.
        parts = jax.tree.map(
            lambda a: a.reshape(-1, self.accumulate, *a.shape[1:]).swapaxes(0, 1),
            dict(batch),
        )

        # Sums start from zeros of the shapes that a part returns.
        first = jax.tree.map(lambda a: a[0], parts)
        shapes = jax.eval_shape(gradient, key, first)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), shapes)
        return jax.lax.scan(add_part, zeros, (jnp.arange(self.accumulate), parts))[0]


def _moved(average: Any, params: Any, rate: jax.Array) -> Any:
    """Returns a moving average after it has moved towards the parameters by a share, `rate`."""
    # average + rate (params - average): parameters that are not trained stay as they are to the
    # last bit, which (1 - rate) average + rate params would not promise.
    return jax.tree.map(lambda a, p: (a + rate * (p - a)).astype(a.dtype), average, params)


def make_train_step(
    loss: Loss | Callable[..., tuple[jax.Array, Metrics]],
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation,
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
        optimizer: any optax transformation.
        ema_decays: decays of the moving averages `state.ema`; each decay ramps up,
            `min(decay, (1 + step) / (10 + step))`.
        accumulate: number of parts of a batch, whose gradients are computed one after the other to
            save memory. Each part draws its own noise, so results differ from those of 1.
        mesh: devices of one host or many to divide every batch over, along all axes of the mesh,
            be they automatic or explicit; see `data_mesh`. None for one device.
        teacher: parameters of the teacher, for distillation.
        dropout: whether to drop out units of the network, as `from_nnx` and `from_linen` make it:
            it is then called with `dropout_key`, a key per step that student and target share.
        label_dropout: share of the samples, drawn at each step, whose conditioning becomes `null`,
            so that the network can be guided; see `cmjax.guidance.classifier_free`.
        null: what their conditioning becomes, such as `{"class_labels": 10}`.

    Raises:
        ValueError: for a distillation without a teacher, a teacher for another loss, or values out
            of their range.
    """
    # A plain function becomes a loss that takes a teacher or not, and has no moving average.
    if isinstance(loss, Loss):
        _check_teacher(loss, teacher)
    elif callable(loss) and not isinstance(loss, type):
        loss = FunctionLoss(loss)
    else:
        raise ValueError(
            f"loss must be an instance of a Loss or a function, got {shown(loss)}; "
            "losses.make(name, scheduler, total_steps=...) makes one by name"
        )

    check_step_arguments(apply_fn, optimizer, ema_decays, accumulate, mesh)
    check_label_dropout(label_dropout, null, num_classes(apply_fn))
    return TrainStep(
        loss,
        apply_fn,
        optimizer,
        tuple(ema_decays),
        accumulate,
        mesh,
        teacher,
        dropout,
        label_dropout,
        null if label_dropout else None,
    )


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh with one axis over `devices`; by default all devices of all processes."""
    if devices is None:
        devices = jax.devices()
    return Mesh(np.array(devices), (AXIS,))


def _check_teacher(loss, teacher):
    """Raises ValueError for a missing teacher, or one that the loss would not use."""
    # A function may use a teacher or not, and does not say.
    if isinstance(loss, FunctionLoss):
        return
    name = type(loss).__name__
    if loss.needs_teacher and teacher is None:
        raise ValueError(f"the loss {name} needs a teacher: pass teacher=params")
    if teacher is not None and not loss.needs_teacher:
        raise ValueError(f"the loss {name} takes no teacher; leave it out")
