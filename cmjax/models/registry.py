"""The networks that cmjax reads, writes and trains, by name: its own, and those registered.

Autoencoders have a table of their own.
"""

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, cast, get_type_hints

import jax
from flax import nnx

from cmjax.configs import did_you_mean, import_by_name, shown
from cmjax.models.autoencoder_kl import AutoencoderKL
from cmjax.models.autoencoder_kl_config import AutoencoderKLConfig
from cmjax.models.autoencoder_tiny import AutoencoderTiny
from cmjax.models.autoencoder_tiny_config import AutoencoderTinyConfig
from cmjax.models.dit import DiT
from cmjax.models.dit_config import DiTConfig
from cmjax.models.dit_presets import MEAN_FLOWS, SHORTCUTS
from cmjax.models.dit_transformer import DiTTransformer2D
from cmjax.models.dit_transformer_config import DiTTransformer2DConfig
from cmjax.models.improved_mean_flow import ImprovedMeanFlow
from cmjax.models.improved_mean_flow_config import (
    IMPROVED_MEAN_FLOWS,
    ImprovedMeanFlowConfig,
)
from cmjax.models.ncsnpp import NCSNpp
from cmjax.models.ncsnpp_config import NCSNPP_PRESETS, NCSNppConfig
from cmjax.models.pixel_mean_flow import PixelMeanFlow
from cmjax.models.pixel_mean_flow_config import PIXEL_MEAN_FLOWS, PixelMeanFlowConfig
from cmjax.models.unet import UNet2D
from cmjax.models.unet_config import PRESETS, UNet2DConfig
from cmjax.random import key_of_seed

# Name -> (module, its config dataclass). `register_network` adds to it.
ARCHITECTURES: dict[str, tuple[Callable[..., nnx.Module], type]] = {
    "UNet2D": (UNet2D, UNet2DConfig),
    "DiT": (DiT, DiTConfig),
    "DiTTransformer2D": (DiTTransformer2D, DiTTransformer2DConfig),
    "NCSNpp": (NCSNpp, NCSNppConfig),
    "PixelMeanFlow": (PixelMeanFlow, PixelMeanFlowConfig),
    "ImprovedMeanFlow": (ImprovedMeanFlow, ImprovedMeanFlowConfig),
}
BUILT_IN = tuple(ARCHITECTURES)

# The same for autoencoders, which sample nothing: files name them as diffusers does.
AUTOENCODERS: dict[str, tuple[Callable[..., nnx.Module], type]] = {
    "AutoencoderKL": (AutoencoderKL, AutoencoderKLConfig),
    "AutoencoderTiny": (AutoencoderTiny, AutoencoderTinyConfig),
}

# The configs of released models by name.
RELEASED = {
    **PRESETS,
    **NCSNPP_PRESETS,
    **PIXEL_MEAN_FLOWS,
    **MEAN_FLOWS,
    **IMPROVED_MEAN_FLOWS,
    **SHORTCUTS,
}
LONGEST_NAME = 200  # of a class in files


def architecture(
    name: Any, *, trust: bool = True
) -> tuple[Callable[..., nnx.Module], type]:
    """Returns the network of a name, and the class of its config.

    Args:
        name: one of `ARCHITECTURES`, such as "UNet2D", or "package.module:Name".
        trust: whether a class that is not registered may be imported, which runs its module. Pass
            False for a name that was read from somebody else's file.

    Returns:
        The module's class, called as `cls(config, rngs=rngs)`, and its config dataclass.

    Raises:
        ValueError: if there is no network of that name, or it may not be imported, or what is
            imported is not a network.
    """
    # A name from a JSON file may be a list, which no dictionary can look up.
    if not isinstance(name, str):
        raise ValueError(f"the name of a network must be text, got {shown(name)}")
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if ":" not in name:
        hint = did_you_mean(name, list(ARCHITECTURES))
        raise ValueError(
            f"there is no network {shown(name)}{hint} (one of yours is 'package.module:Name')"
        )
    if not trust:
        raise ValueError(
            f"the network is {shown(name)}, which is not part of cmjax; call cmjax.register with "
            "it first, or import it by trust=True, which runs its module"
        )

    # Importing the module may have registered the network under this name already.
    cls = import_by_name(name, "network")
    if name not in ARCHITECTURES:
        register_network(cls, name=name)
    return ARCHITECTURES[name]


def register_network(
    cls: Any, config: type | None = None, *, name: str | None = None
) -> None:
    """Adds a network to the registry; `cmjax.register` describes it.

    Args:
        cls: a subclass of `nnx.Module`, called as `cls(config, rngs=rngs)`.
        config: its config, a frozen dataclass; None for the one that annotates `config` in
            `__init__`.
        name: name in the registry; None for "module:Class", which can be imported by name.

    Raises:
        ValueError: if `cls` or `config` is not of that kind, or the name or the config is taken.
    """
    what = "cls" if name is None else f"network {shown(name)}"
    if not (isinstance(cls, type) and issubclass(cls, nnx.Module)):
        raise ValueError(
            f"{what} must be a subclass of flax.nnx.Module, or of cmjax.Scheduler, "
            f"got {shown(cls)}; keep the parameters of other networks by Orbax or safetensors"
        )
    name = f"{cls.__module__}:{cls.__qualname__}" if name is None else name
    if isinstance(name, str) and name in BUILT_IN:
        raise ValueError(f"name {name!r} is taken by a network of cmjax; choose another")
    known = (
        ARCHITECTURES[name][0] if isinstance(name, str) and name in ARCHITECTURES else None
    )
    check_registration(cls, name, known)

    # The config is a static field of `Model`, so jit finds its programs by it: it must be hashable.
    config = _annotated_config(cls) if config is None else config
    if not dataclasses.is_dataclass(config) or config.__hash__ is None:
        raise ValueError(
            f"the config of {name!r} must be a frozen dataclass, got {shown(config)}"
        )

    # A config must not be shared, because `network_name` finds the network by its config.
    for other, (_, taken) in ARCHITECTURES.items():
        if taken is config and other != name:
            raise ValueError(
                f"{config.__name__} is the config of the network {other!r} already; give "
                f"{cls.__name__} a config class of its own, a subclass for instance"
            )
    ARCHITECTURES[name] = (cls, config)


def check_registration(cls: type, name: Any, known: Any) -> None:
    """Checks a class of a user's own, and the name that it is to have in files.

    Args:
        cls: the class.
        name: its name.
        known: what has that name already, or None.

    Raises:
        ValueError: for an abstract class, a name that is no text or could not be typed, or one that
            another class has.
    """
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise ValueError(f"cls {cls.__name__} is abstract: it does not define {missing}")

    # The name is typed on command lines and printed in errors.
    usable = isinstance(name, str) and name.isprintable() and name == name.strip()
    if not usable or not 1 <= len(name) <= LONGEST_NAME:
        raise ValueError(
            f"name must be printable text of 1 to {LONGEST_NAME} characters, without spaces at "
            f"its ends, got {shown(name)}"
        )

    # The same class may be registered again, as it is where a notebook's cell or a module is run
    # twice: it is another object then.
    if known is not None and _origin(known) != _origin(cls):
        raise ValueError(
            f"name {name!r} is taken by {':'.join(_origin(known))}; choose another"
        )


def _origin(cls: Any) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def network_name(config: Any) -> str:
    """Returns the name of the network that `config` describes.

    Raises:
        ValueError: if it is not the config of a registered network.
    """
    # By the exact type: a subclass is the config of another network.
    for name, (_, kind) in ARCHITECTURES.items():
        if type(config) is kind:
            return name
    raise ValueError(
        f"model.config must be the config of one of {', '.join(ARCHITECTURES)}, got "
        f"{shown(config)}; call cmjax.register with a network of your own first"
    )


def autoencoder_name(config: Any) -> str:
    """Returns the name of the autoencoder that `config` describes.

    Raises:
        ValueError: if it is not the config of an autoencoder.
    """
    for name, (_, kind) in AUTOENCODERS.items():
        if type(config) is kind:
            return name
    kinds = " or ".join(kind.__name__ for _, kind in AUTOENCODERS.values())
    raise ValueError(f"config must be an {kinds}, got {shown(config)}")


def module_class(config: Any) -> Callable[..., nnx.Module]:
    """Returns the class of the network or autoencoder that `config` describes.

    Raises:
        ValueError: if it is not the config of a network or an autoencoder.
    """
    for network, kind in AUTOENCODERS.values():
        if type(config) is kind:
            return network
    network, _ = ARCHITECTURES[network_name(config)]
    return network


def abstract_network(config: Any) -> nnx.Module:
    """Returns the network that `config` describes, with shapes in place of its parameters.

    Raises:
        ValueError: if it is not the config of a network or an autoencoder.
    """
    network = module_class(config)
    of_users = [cls for name, (cls, _) in ARCHITECTURES.items() if name not in BUILT_IN]

    def make():
        if network in of_users:
            return network(config, rngs=nnx.Rngs(0))
        # Only shapes matter here, so that one key can serve all layers. nnx.Rngs counts its keys
        # in traced variables, with which the network of ImageNet 64x64 takes 5 seconds, not 0.3.
        key = key_of_seed(0)
        rngs = types.SimpleNamespace(params=lambda: key)
        return network(config, rngs=cast(nnx.Rngs, rngs))

    # The checker of reused keys would refuse that.
    with jax.debug_key_reuse(False):
        return nnx.eval_shape(make)


@functools.lru_cache(16)
def network_parts(config: Any) -> tuple[Any, nnx.State]:
    """Returns what `nnx.merge` makes a network of: its graph, and its parameters as shapes.

    They are made once for each config, so that equal configs share the programs that `jax.jit`
    compiles.
    """
    return nnx.split(abstract_network(config))


def preset_name(config: Any) -> str | None:
    """Returns the name of the released model whose config this is, or None."""
    return next((name for name, preset in RELEASED.items() if preset == config), None)


def sample_shape(config: Any) -> tuple[int, ...]:
    """Returns the shape of one sample of the network that `config` describes.

    It is `config.sample_shape`, or else a square image of `sample_size` and `out_channels`.

    Raises:
        ValueError: if the config has none of these.
    """
    # Samples need not be images: a config may say any shape.
    shape = getattr(config, "sample_shape", None)
    if shape is not None:
        return tuple(shape)
    try:
        return (config.sample_size, config.sample_size, config.out_channels)
    except AttributeError:
        raise ValueError(
            f"{type(config).__name__} does not say the shape of a sample; give it a property "
            "sample_shape, or fields sample_size and out_channels for square images"
        ) from None


def _annotated_config(cls: type) -> type:
    """Returns the class that annotates the argument `config` of a module's `__init__`.

    Raises:
        ValueError: if there is no such annotation, or it names a class that cannot be found.
    """
    # get_type_hints also resolves annotations that are strings.
    try:
        return get_type_hints(cls.__init__)["config"]
    except (KeyError, NameError) as error:
        raise ValueError(
            f"the config of {cls.__name__} is not known ({type(error).__name__}: {error}); write "
            "def __init__(self, config: MyConfig, *, rngs: nnx.Rngs), MyConfig being a frozen "
            "dataclass, or pass it to cmjax.register"
        ) from None
