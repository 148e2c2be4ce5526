"""A model on disk, whose tensors are compared with those of its network before they are read."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from cmjax.arrays import ApplyFn, floating_dtype
from cmjax.autoencoder import Autoencoder, check_latents
from cmjax.checkpoints.tensors import StoredTensor, of_wrapper
from cmjax.model import Model
from cmjax.models.stored_networks import function_and_shapes
from cmjax.printing import one_line
from cmjax.schedulers.base import Scheduler

# (name, number of axes) in the network -> (name, order of axes) in the file.
Layout = Callable[[str, int], tuple[str, tuple[int, ...]]]


def stored_alike(name: str, ndim: int) -> tuple[str, tuple[int, ...]]:
    """The layout of files that have names and axes as the network has them."""
    return name, tuple(range(ndim))


class AutoencoderAlone(ValueError):
    """Raised for what was to be a model, and is an autoencoder without one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredNetwork:
    """A network on disk: everything about it but the values of its tensors.

    Attributes:
        kind: the kind of checkpoint, in words, such as "OpenAI file".
        files: the files that hold its tensors.
        config: the config of its network.
        tensors: its tensors by the names that the files use, unread.
        layout: maps a parameter's name and number of axes to its name in the file and the order of
            its axes there: axis `i` of the file is axis `axes[i]` of the network.
        note: what a user should know about it, or "".
    """

    kind: str
    files: tuple[Path, ...]
    config: Any
    tensors: Mapping[str, StoredTensor]
    layout: Layout
    note: str = ""

    def read(
        self, *, dtype: DTypeLike | None = None, keep_dtypes: bool = False
    ) -> tuple[ApplyFn, Any]:
        """Reads the tensors, one by one.

        Args:
            dtype: dtype of the parameters; None is float32.
            keep_dtypes: leave every tensor in the dtype it is stored in; excludes `dtype`.

        Returns:
            `apply_fn` and the parameters, on JAX's default device.

        Raises:
            ValueError: if `dtype` is no floating-point dtype, a tensor of the network is missing, a
                tensor of the file is not one of the network's, shapes differ, or values are not
                finite.
        """
        if dtype is not None:
            dtype = floating_dtype("dtype", dtype)

        # In the order of the network's own tree, which the leaves are put into at the end. Some
        # parameters, such as frequencies, would be others in fewer bits.
        apply_fn, abstract = self.check()
        exact = getattr(self.config, "float32_parameters", ())
        leaves = []
        for name, leaf in flatten_named(abstract).items():
            stored_name, axes = self.layout(name, leaf.ndim)
            wanted = leaf.dtype if dtype is None or name in exact else dtype
            if keep_dtypes:
                wanted = self.tensors[stored_name].dtype
            leaves.append(self._read(stored_name, leaf.shape, axes, np.dtype(wanted)))
        return apply_fn, jax.tree.unflatten(jax.tree.structure(abstract), leaves)

    def _read(
        self, name: str, shape: tuple[int, ...], axes: tuple[int, ...], dtype: np.dtype
    ) -> jax.Array:
        """Reads one tensor.

        Args:
            name: its name in the file.
            shape: its shape in the network.
            axes: order of its axes in the file.
            dtype: its dtype in the network.
        """
        where = f"{self.files[0]}: tensor {name}"

        # Without x64, device_put would make float32 of float64 without a word.
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError(
                f"{where} as {dtype} needs jax_enable_x64; or ask for another dtype"
            )

        # argsort inverts the permutation. Values beyond the range of the dtype become infinite,
        # which is an error below and no warning here.
        stored = self.tensors[name]
        values = _aligned(shape, dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            values[...] = stored.read().transpose(np.argsort(axes))

        # Read once more to tell which is at fault, the file or the dtype.
        if not np.isfinite(values).all():
            if np.isfinite(stored.read()).all():
                raise ValueError(f"{where} has values too large for {dtype}")
            raise ValueError(f"{where} has values that are not finite")
        return jax.device_put(values)

    def check(self) -> tuple[ApplyFn, Any]:
        """Compares the tensors with those of the network, without reading them.

        Returns:
            `apply_fn` and the parameters as `jax.ShapeDtypeStruct`, in the network's own tree.

        Raises:
            ValueError: listing tensors that are missing, unexpected, misshapen or not of
                floating-point numbers.
        """
        # A damaged config could ask for so many blocks that making the network takes minutes. Every
        # block has tensors, so their number is a bound.
        blocks = getattr(self.config, "num_blocks", 0)
        if blocks > max(len(self.tensors), 256):
            raise ValueError(
                f"{self.files[0]} has {len(self.tensors)} tensors, but the config has {blocks} "
                "blocks"
            )
        try:
            apply_fn, abstract = function_and_shapes(self.config)
        except ValueError as error:
            raise ValueError(
                f"{self.files[0]}: the config makes no network: {error}"
            ) from None
        except (TypeError, ArithmeticError, RecursionError) as error:
            # Of a value of another type, which only the network itself notices.
            raise ValueError(
                f"{self.files[0]}: the config makes no network: {type(error).__name__}: {error}"
            ) from error

        # Names and shapes as they should be in the file; the errors name what the user can look up.
        wanted = {}
        for name, leaf in flatten_named(abstract).items():
            stored_name, axes = self.layout(name, leaf.ndim)
            wanted[stored_name] = tuple(leaf.shape[axis] for axis in axes)
        problems = _problems(wanted, self.tensors)
        if problems:
            wrapped = of_wrapper(self.tensors, wanted)
            if wrapped:
                raise ValueError(f"{self.files[0]}: {wrapped}")
            more = ""
            if len(problems) > 10:
                more = f"; and {len(problems) - 10} more"
            raise ValueError(
                f"{self.files[0]}: {len(problems)} tensors do not fit the network: "
                f"{'; '.join(map(one_line, problems[:10]))}{more}"
            )
        return apply_fn, abstract


@dataclasses.dataclass(frozen=True)
class Latents:
    """Whose latents a network makes, if its files do not hold that autoencoder.

    Attributes:
        autoencoder: id of the autoencoder on the Hugging Face hub.
        changes: fields of the autoencoder's config that have other values here, such as
            `latents_mean`.
    """

    autoencoder: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint(StoredNetwork):
    """A model on disk: a network, with what samples it.

    Attributes:
        scheduler: the scheduler it was trained for.
        class_names: one name per class, or None.
        autoencoder: the autoencoder of a latent model, or None.
        latents: what its latents are of, if that is known and the autoencoder is not there.
        is_denoiser: whether it is known to be a denoiser, which a solver samples in many steps.
    """

    scheduler: Scheduler
    class_names: tuple[str, ...] | None = None
    autoencoder: StoredNetwork | None = None
    latents: Latents | None = None
    is_denoiser: bool = False

    def check(self) -> tuple[ApplyFn, Any]:
        """Compares the tensors with those of both networks; see `StoredNetwork.check`."""
        # Before gigabytes of the network are read.
        if self.autoencoder is not None:
            self.autoencoder.check()
            try:
                check_latents(self.config, self.autoencoder.config)
            except ValueError as error:
                raise ValueError(f"{self.autoencoder.files[0]}: {error}") from None
        return super().check()

    def load(self, *, dtype: DTypeLike | None = None, keep_dtypes: bool = False) -> Model:
        """Reads the model; arguments and errors are those of `read`."""
        apply_fn, params = self.read(dtype=dtype, keep_dtypes=keep_dtypes)
        autoencoder = None
        if self.autoencoder is not None:
            _, weights = self.autoencoder.read(dtype=dtype, keep_dtypes=keep_dtypes)
            autoencoder = Autoencoder(self.autoencoder.config, weights)
        return Model(
            apply_fn,
            params,
            self.scheduler,
            self.config,
            class_names=self.class_names,
            autoencoder=autoencoder,
        )


def _problems(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, StoredTensor]
) -> list[str]:
    """Lists what is wrong with the tensors found, for a network that wants these shapes."""
    # Grouped by what is wrong: what is missing says most of which network the file is for.
    missing = [
        f"missing {name} {shape}" for name, shape in wanted.items() if name not in found
    ]
    unexpected = []
    misshapen = []
    unreal = []
    for name, tensor in found.items():
        if name not in wanted:
            unexpected.append(f"unexpected {name} {tensor.shape}")
        elif tensor.shape != wanted[name]:
            shapes = f"{tensor.shape} in the file, {wanted[name]} in the network"
            misshapen.append(f"misshapen {name}: {shapes}")
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            unreal.append(f"{name} holds {tensor.dtype}, not floating-point numbers")
    return missing + unexpected + misshapen + unreal


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an empty array at an address that is a multiple of 64 bytes.

    XLA on a CPU uses such memory as it is, and copies any other: loading takes half the memory.
    """
    # Up to 63 bytes are left out at the start of a block that is 64 bytes longer.
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def stored_arrays(model: Model | Autoencoder, what: str = "model") -> dict[str, np.ndarray]:
    """Returns the parameters by their dotted names, copied from the devices, to be written.

    Args:
        model: whose `params` are written.
        what: the argument's name, for the errors.

    Raises:
        ValueError: naming a parameter that is no array of floating-point numbers.
    """
    arrays = {}
    for name, leaf in flatten_named(model.params).items():
        # A parameter that is divided among several devices is copied whole. Traced and donated
        # arrays have no values, which is a TypeError or a RuntimeError of JAX.
        try:
            array = np.asarray(leaf)
        except (TypeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{what}.params: {name} cannot be read: {reason}") from None
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"{what}.params: {name} holds {array.dtype}, not floating-point numbers"
            )
        arrays[name] = array
    return arrays


def flatten_named(params: Any) -> dict[str, Any]:
    """Returns the leaves by their dotted names, in the order of the tree.

    A name is such as "down_blocks.0.resnets.1.conv1.kernel".
    """
    # The path of a leaf of an nnx.State ends with the variable's own field, `value`.
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        named[name.removesuffix(".value")] = leaf
    return named
