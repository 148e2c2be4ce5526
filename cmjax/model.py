"""`Model`: a network with its parameters, its scheduler and, for latents, its autoencoder."""

import copy
import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, Self, Unpack, overload

import jax
import numpy as np
from jax.typing import ArrayLike

from cmjax.arrays import ApplyFn, as_samples, is_symbolic
from cmjax.autoencoder import Autoencoder, check_latents, parse_batch_size, picture_shape
from cmjax.configs import LARGEST, is_int, shown
from cmjax.guidance import Scale
from cmjax.labels import Labels, check_class_names, class_indices, describe_classes
from cmjax.model_sampling import (
    ModelSampleOptions,
    check_names,
    class_conditioning,
    guided_network,
    of_guidance,
)
from cmjax.models.registry import sample_shape
from cmjax.models.stored_networks import function_and_shapes, is_function_of
from cmjax.networks import check_network
from cmjax.parametrization import adapt, consistency_function, edm_denoiser
from cmjax.parametrization.conversion import read_alike
from cmjax.sampling import sample
from cmjax.sampling_inputs import check_scheduler
from cmjax.schedulers import Scheduler, StepOutput


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Model:
    """A network with its parameters and the scheduler to sample it with.

    A pytree whose leaves are those of `params` and of the autoencoder's `params`; everything else
    is static.

    A latent model samples small arrays, the latents, of which its autoencoder makes pictures.
    `sample` then returns pictures.

    Attributes:
        apply_fn: the network, `(params, x, t, **cond) -> model_output`.
        params: the parameters of the network, a pytree of arrays.
        scheduler: the scheduler that `apply_fn` is for.
        config: the config dataclass of the network.
        trained_for: if `apply_fn` adapts the network to another scheduler, the one that it was
            trained for; otherwise None.
        class_names: one name per class, or None if the classes have no names.
        unadapted: if `apply_fn` adapts the network, the network itself; otherwise None.
        autoencoder: the autoencoder of a latent model; None if the samples are what is wanted.

    Raises:
        ValueError: if `apply_fn` is no function, `scheduler` no scheduler, `class_names` not a
            tuple of one distinct name per class, or if the autoencoder is for other latents.
    """

    apply_fn: ApplyFn = dataclasses.field(metadata={"static": True})
    params: Any
    scheduler: Scheduler = dataclasses.field(metadata={"static": True})
    config: Any = dataclasses.field(metadata={"static": True})
    trained_for: Scheduler | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    class_names: tuple[str, ...] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    unadapted: ApplyFn | None = dataclasses.field(default=None, metadata={"static": True})
    autoencoder: Autoencoder | None = None

    def __post_init__(self):
        # `params` are not checked: JAX also builds models whose leaves are tracers, or placeholders
        # without a shape.
        check_network(self.apply_fn)
        check_scheduler(self.scheduler)
        if self.class_names is not None:
            check_class_names(self.class_names, self.num_classes)
        if isinstance(self.autoencoder, Autoencoder):
            check_latents(self.config, self.autoencoder.config)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of what the sampler draws: `(H, W, C)` of an image, `(h, w, c)` of a latent.

        Raises:
            ValueError: if the config does not give it.
        """
        return sample_shape(self.config)

    @property
    def picture_shape(self) -> tuple[int, ...]:
        """Shape of what `decode` makes of one sample: `sample_shape` without an autoencoder.

        Raises:
            ValueError: if the config does not give the shape of a sample.
        """
        return picture_shape(self.config, self._autoencoder_config)

    @property
    def _autoencoder_config(self) -> Any:
        """The config of the autoencoder, or None.

        Raises:
            ValueError: if the autoencoder is something else.
        """
        if self.autoencoder is None:
            return None

        # Not checked in `__post_init__`: JAX also builds models with placeholders in its place.
        if not isinstance(self.autoencoder, Autoencoder):
            raise ValueError(
                "autoencoder must be a cmjax.Autoencoder or None, got "
                f"{shown(self.autoencoder)}; open one by cmjax.load_autoencoder"
            )
        return self.autoencoder.config

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None for an unconditional model."""
        # diffusers' UNet2DModel names the field so. The config of an unconditional network need not
        # have it.
        return getattr(self.config, "num_class_embeds", None)

    @property
    def null_class(self) -> int | None:
        """Number of the class that stands for none of the classes; None if there is none."""
        if not getattr(self.config, "null_class", False):
            return None
        return self.num_classes

    def guided(
        self, scale: Scale | None = None, interval: Sequence[float] | None = None
    ) -> ApplyFn:
        """Returns the model's network, guided.

        A network that takes a guidance scale gets this one. Any other is called twice, with
        and without its class; see `cmjax.guidance.classifier_free`.

        Args:
            scale: of the guidance; 1 is none. None is what the network recommends if it takes a
                scale, and no guidance otherwise.
            interval: the noise levels (low, high) to guide at, or for a network that takes a
                scale the times, 0 (data) to 1 (noise); None for all, or for those that the network
                recommends.

        Raises:
            ValueError: if the model has no null class, or for a wrong scale or interval.
        """
        return guided_network(
            self.apply_fn,
            self.config,
            self.scheduler,
            null_class=self.null_class,
            scale=scale,
            interval=interval,
        )

    @overload
    def sample(
        self,
        key: jax.Array,
        num: int,
        *,
        return_trajectory: Literal[False] = False,
        **options: Unpack[ModelSampleOptions],
    ) -> jax.Array: ...

    @overload
    def sample(
        self,
        key: jax.Array,
        num: int,
        *,
        return_trajectory: Literal[True],
        **options: Unpack[ModelSampleOptions],
    ) -> tuple[jax.Array, StepOutput]: ...

    @overload
    def sample(
        self,
        key: jax.Array,
        num: int,
        *,
        return_trajectory: bool,
        **options: Unpack[ModelSampleOptions],
    ) -> jax.Array | tuple[jax.Array, StepOutput]: ...

    def sample(
        self,
        key: jax.Array,
        num: int,
        *,
        labels: Labels = None,
        guidance: Scale | None = None,
        guidance_interval: Sequence[float] | None = None,
        latents: bool = False,
        num_inference_steps: int | None = None,
        **options: Any,
    ) -> jax.Array | tuple[jax.Array, StepOutput]:
        """Generates samples with the model's own scheduler.

        Example:
            >>> import cmjax, jax
            >>> cmjax.load().sample(jax.random.key(0), 2, labels=7).shape
            (2, 28, 28, 1)

        Args:
            key: one key, from which sample i gets its own, `fold_in(key, first_index + i)`; or one
                key per sample, `[num]`.
            num: number of samples.
            labels: the classes to sample, for a conditional model: a number, a name of
                `class_names`, or several of these, repeated in turn. None samples all classes in
                turn, unless `cond` has `class_labels`.
            guidance: scale of guidance, for a network with a null class or one that takes a
                scale: a number, one per sample `[num]`, or a function of sigma. 1 is none, and None
                what the network recommends, or none. See `guided`.
            guidance_interval: the noise levels (low, high) to guide at, or for a network that
                takes a scale the times, 0 (data) to 1 (noise); None for all, or for those that the
                network recommends.
            latents: whether a latent model returns its samples as they are, and not the pictures
                that its autoencoder makes of them.
            num_inference_steps: number of steps; None means one, unless `options` give the levels.
            **options: further arguments of `cmjax.sample`, such as `timesteps` or `cond`. All that
                take part in the sampling are of latents in a latent model: `init`, `constrain`,
                and what `callback` is given.

        Returns:
            Pictures, `[num, *picture_shape]`, images in [-1, 1]; with `latents=True` the samples,
            `[num, *sample_shape]`. With `return_trajectory=True` the pair of these and the
            trajectory, which always is of samples. All are decoded at once: for more of them than
            memory allows, take `latents=True`, and `decode` with a `batch_size`.

        Raises:
            ValueError: for labels that the model does not have, and for whatever `cmjax.sample`
                rejects.
            TypeError: for an argument that there is none of.
        """
        check_names(options)
        if not is_int(num, 1, LARGEST) and not is_symbolic(num):
            raise ValueError(f"num must be a positive integer, got {shown(num)}")
        if not is_symbolic(num):
            num = int(num)  # NumPy's small integers would overflow
        if not isinstance(latents, bool):
            raise ValueError(f"latents must be True or False, got {shown(latents)}")
        # Where `guided` says "scale" or "interval", there are other names here.
        try:
            apply_fn = self.guided(guidance, guidance_interval)
        except ValueError as error:
            raise ValueError(of_guidance(error)) from None
        cond = class_conditioning(
            options.pop("cond", None),
            labels,
            num,
            options.get("first_index", 0),
            num_classes=self.num_classes,
            null_class=self.null_class,
            class_names=self.class_names,
        )
        drawn: Any = sample(
            key,
            apply_fn,
            self.params,
            self.scheduler,
            (num, *self.sample_shape),
            num_inference_steps=num_inference_steps,
            cond=cond,
            **options,
        )
        if latents:
            return drawn

        # Only the samples at the end are decoded; a trajectory stays one of latents.
        if isinstance(drawn, tuple):
            samples, trajectory = drawn
            return self.decode(samples), trajectory
        return self.decode(drawn)

    def decode(
        self,
        samples: ArrayLike,
        *,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> jax.Array:
        """Returns pictures of samples: decoded by the autoencoder, or unchanged without one.

        Args:
            samples: `[B, *sample_shape]`, as `cmjax.sample` returns them.
            batch_size: number of samples that are decoded at a time, which bounds the memory; None
                takes all at once, or with `progress` one.
            progress: whether to show a progress bar on stderr; see `Autoencoder.decode`.

        Returns:
            Pictures, `[B, *picture_shape]`, in the dtype of the samples. Decoded ones lie in
            [-1, 1] as nearly as the autoencoder was trained to: they are not clipped.

        Raises:
            ValueError: for samples of another shape, or a wrong `batch_size`.
        """
        samples = as_samples("samples", samples)
        if samples.shape[1:] != self.sample_shape:
            raise ValueError(
                f"samples must be [B, {', '.join(map(str, self.sample_shape))}], got "
                f"{samples.shape}"
            )
        batch_size = parse_batch_size(batch_size)
        if self._autoencoder_config is None:
            return samples
        assert self.autoencoder is not None
        return self.autoencoder.decode(samples, batch_size=batch_size, progress=progress)

    def class_indices(self, labels: Labels = None) -> list[int] | None:
        """Returns the class numbers for labels that are given by number or name.

        Args:
            labels: a number, a name of `class_names`, or several of these; None means all classes.

        Returns:
            The class numbers, which the network takes as `class_labels`; None for a model without
            classes.

        Raises:
            ValueError: if the model has no such class, or no classes at all.
        """
        return class_indices(labels, self.num_classes, self.class_names)

    def class_name(self, index: int) -> str:
        """Returns the name of a class, or its number as text if the classes have no names.

        Raises:
            ValueError: if the model has no such class.
        """
        last = LARGEST if self.num_classes is None else self.num_classes - 1
        if not is_int(index, 0, last):
            raise ValueError(
                f"index must be an integer from 0 to {last}, got {shown(index)}"
            )
        return str(index) if self.class_names is None else self.class_names[index]

    def with_scheduler(self, scheduler: Scheduler) -> Self:
        """Returns a model that samples with another scheduler, to which the network is adapted.

        A scheduler that solves the probability-flow ODE or an SDE needs a denoiser. The network is
        then read as one, that is, without the boundary condition of consistency models.

        `cmjax.save` takes the model if the network needs no adapting: if the scheduler is of the
        same class, or has the same parametrization, as most have that share training times.

        Args:
            scheduler: the new scheduler, of the class that the network was trained for or any to
                which it can be adapted; see `cmjax.parametrization.adapt`.

        Raises:
            ValueError: if the network cannot be adapted to the scheduler.
        """
        check_scheduler(scheduler)

        # The network itself is adapted, and never an adapted one.
        source = self.trained_for or self.scheduler
        network = self.unadapted or self.apply_fn

        # A scheduler of the class that it was trained for takes the network as it is: its options
        # then say what the network means. So does one that reads the output in the same way.
        if type(scheduler) is type(source) or read_alike(source, scheduler):
            return dataclasses.replace(
                self,
                apply_fn=network,
                scheduler=scheduler,
                trained_for=None,
                unadapted=None,
            )

        # A flow map, whose network takes two times, has no x0 estimate at a single level.
        if scheduler.num_times != 1 or source.num_times != 1:
            raise ValueError(
                f"scheduler is a {type(scheduler).__name__}, to which the network of a "
                f"{type(source).__name__} cannot be adapted; networks that take two times "
                "are trained for their own scheduler"
            )

        # Otherwise its inputs and outputs are converted, by way of its x0 estimate; see `adapt`.
        denoiser = edm_denoiser if scheduler.solves_ode else consistency_function
        return dataclasses.replace(
            self,
            apply_fn=adapt(network, source, scheduler, denoiser),
            scheduler=scheduler,
            trained_for=source,
            unadapted=network,
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Lets a model be pickled if its network can be made again, or imported by its name."""
        network = self.unadapted or self.apply_fn
        if type(self) is Model and is_function_of(network, self.config):
            fields = {
                field.name: getattr(self, field.name)
                for field in dataclasses.fields(self)
                if field.name not in ("apply_fn", "unadapted")
            }
            return _unpickled, (fields,)

        # The error of pickle itself would name a function inside of cmjax.
        if "<locals>" in getattr(self.apply_fn, "__qualname__", ""):
            raise TypeError(
                "model cannot be pickled, because apply_fn is a function made by another one; "
                "write it by cmjax.save, and load it where it is needed"
            )
        return super().__reduce_ex__(protocol)

    def __copy__(self) -> Self:
        """Returns a model with the same parameters."""
        # By default `copy` goes the way of pickle, which not every model can.
        return dataclasses.replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Returns a model with copies of the parameters; all else is immutable."""
        return jax.tree.map(lambda leaf: copy.deepcopy(leaf, memo), self)

    def __repr__(self) -> str:
        """Describes the model in a few lines, without its arrays."""
        # `repr` must not fail, whatever the config is.
        try:
            shape = "x".join(map(str, self.sample_shape))
        except ValueError:
            shape = "of unknown shape"
        rows = {
            "network": f"{type(self.config).__name__.removesuffix('Config')}, {self._parameters()}",
            "samples": f"{shape}, {describe_classes(self.num_classes, self.class_names)}",
            "scheduler": repr(self.scheduler),
        }
        if self.autoencoder is not None:
            rows["autoencoder"] = repr(self.autoencoder)
        if self.trained_for is not None:
            rows["trained_for"] = repr(self.trained_for)
        lines = [f"    {name}: {text}," for name, text in rows.items()]
        return "\n".join(["Model(", *lines, ")"])

    def _parameters(self) -> str:
        """Returns a text such as "1,234 parameters, float32", the most frequent dtype first."""
        # Under JAX's transformations, leaves may be placeholders without a shape.
        leaves = [leaf for leaf in jax.tree.leaves(self.params) if hasattr(leaf, "shape")]
        count = sum(int(np.prod(leaf.shape)) for leaf in leaves)
        dtypes = Counter(str(leaf.dtype) for leaf in leaves)
        kinds = " and ".join(name for name, _ in dtypes.most_common())
        return f"{count:,} parameters, {kinds or 'no arrays'}"


def _unpickled(fields: dict[str, Any]) -> Model:
    """Returns a model whose network is that of its config, adapted to its scheduler again."""
    scheduler = fields["scheduler"]
    trained_for = fields.pop("trained_for")
    apply_fn, _ = function_and_shapes(fields["config"])
    model = Model(apply_fn, **{**fields, "scheduler": trained_for or scheduler})
    return model if trained_for is None else model.with_scheduler(scheduler)
