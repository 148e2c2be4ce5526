"""Few-step generation for JAX: consistency models as small pure functions.

Everything public is an attribute of this package, and is imported when it is first used.
`__init__.pyi` declares the same names for type checkers and editors; a test compares the two.
"""

import importlib
from typing import Any

from cmjax.version import __version__ as __version__

# Imported lazily, so that `import cmjax` is fast and one module does not load all the others.
_SUBMODULES = (
    "arrays",
    "autoencoder",
    "categorical",
    "checkpoints",
    "cli",
    "conditioning",
    "configs",
    "constraints",
    "editing",
    "evaluation",
    "files",
    "former_names",
    "generation",
    "guidance",
    "image_files",
    "images",
    "interrupts",
    "labels",
    "level_search",
    "meshes",
    "model",
    "model_sampling",
    "models",
    "networks",
    "parametrization",
    "printing",
    "processes",
    "progress",
    "random",
    "registry",
    "sampling",
    "sampling_inputs",
    "schedulers",
    "serialization",
    "spelling",
    "system",
    "testing",
    "tracing",
    "training",
    "version",
)

# For each submodule, the names that are also public here: `cmjax.sample` is
# `cmjax.sampling.sample`.
_EXPORTS = {
    "autoencoder": ("Autoencoder",),
    "checkpoints": ("load", "load_autoencoder", "save", "save_autoencoder"),
    "model": ("Model",),
    "models": ("from_linen", "from_nnx"),
    "registry": ("register",),
    "sampling": ("sample",),
    "schedulers": (
        "CMStochasticIterativeScheduler",
        "CTMScheduler",
        "DDIMInverseScheduler",
        "DDIMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepInverseScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSDEScheduler",
        "DPMSolverSinglestepScheduler",
        "DDPMScheduler",
        "DiscreteScheduler",
        "DiscreteSigmasScheduler",
        "EDMDPM2Scheduler",
        "EDMDPMSolverMultistepScheduler",
        "EDMEulerAncestralScheduler",
        "EDMEulerScheduler",
        "EDMHeunScheduler",
        "EDMScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "ExplodingScheduler",
        "FlowMapEulerDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "FlowMatchLCMScheduler",
        "FlowMatchScheduler",
        "FlowScheduler",
        "HeunDiscreteScheduler",
        "IPNDMScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "KarrasVeScheduler",
        "LCMScheduler",
        "LMSDiscreteScheduler",
        "LogSNRScheduler",
        "PNDMScheduler",
        "RePaintScheduler",
        "SCMScheduler",
        "Scheduler",
        "SchedulerState",
        "ScoreSdeVeScheduler",
        "ScoreSdeVpScheduler",
        "SpacedScheduler",
        "StepOutput",
        "TCDScheduler",
        "TableScheduler",
        "UniPCMultistepScheduler",
        "VQDiffusionScheduler",
        "scheduler_from_config",
    ),
}

# The same table by name: {"sample": "sampling", ...}.
_HOMES = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted([*_HOMES, *_SUBMODULES])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used (PEP 562)."""
    # Python calls this only for names that are not in the module yet. An imported submodule becomes
    # an attribute by itself.
    if name in _SUBMODULES:
        return importlib.import_module(f"cmjax.{name}")
    if name in _HOMES:
        value = getattr(importlib.import_module(f"cmjax.{_HOMES[name]}"), name)
        globals()[name] = value  # so that Python does not call this function again
        return value

    # Names of diffusers, with what takes their place.
    way = importlib.import_module("cmjax.former_names").way_of_package(name, _HOMES)
    message = f"module 'cmjax' has no attribute {name!r}"
    raise AttributeError(f"{message}; {way}" if way else message)


def __dir__() -> list[str]:
    """Lists the public names, imported or not."""
    return sorted({*globals(), *__all__})
