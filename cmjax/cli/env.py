"""`cmjax env`."""

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import click

from cmjax.cli import options, terminal
from cmjax.printing import LONGEST_LINE, one_line, printable
from cmjax.version import __version__

# Distributions that what cmjax does may depend on. The last ones are shown only where installed.
REQUIRED = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "ml-dtypes",
    "safetensors",
    "huggingface-hub",
    "pillow",
    "click",
)
OPTIONAL = (
    "grain",
    "tensorboardX",
    "torch-fidelity",
    "torch",
    "diffusers",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "libtpu",
)

# Settings of JAX that change numbers, speed or what is an error.
SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_debug_nans",
    "jax_disable_jit",
    "jax_compilation_cache_dir",
)

# Environment variables that matter begin so, unless their name says that they are secret.
PREFIXES = (
    "CMJAX_",
    "JAX_",
    "XLA_",
    "LIBTPU_",
    "TPU_",
    "CUDA_VISIBLE",
    "NVIDIA_VISIBLE",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
)
SECRETS = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")


@click.command()
@options.as_json
def env(as_json: bool) -> None:
    """Lists versions, devices and settings, for error reports.

    Variables whose name says that they are secret are left out.

    \b
    Examples:
      cmjax env
      cmjax env --json
    """
    described = {
        "cmjax": {"version": __version__, "path": str(Path(__file__).parents[1])},
        "system": _system(),
        "packages": _packages(),
        **_of_jax(),
        "environment": _environment(),
    }
    if as_json:
        terminal.echo(json.dumps(described, indent=2, default=str))
        return

    # Two columns; what belongs together is indented below its name.
    for name, values in described.items():
        terminal.echo(name)
        width = max((len(key) for key in values), default=0)
        for key, value in values.items():
            terminal.echo(printable(f"  {key:{width}}  {value}"))


def _system() -> dict[str, Any]:
    """Returns the interpreter and the machine."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "executable": sys.executable,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _processor() -> str:
    """Returns the name of the processor, as far as the system tells."""
    # Python's own answer is empty on Linux, or the architecture.
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()


def _packages() -> dict[str, str]:
    """Returns the versions of packages, without importing any."""
    found = {}
    for name in (*REQUIRED, *OPTIONAL):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name in REQUIRED:
                found[name] = "not installed"
    return found


def _of_jax() -> dict[str, dict[str, Any]]:
    """Returns JAX's devices and settings, or why there are none: this may be what is reported."""
    try:
        import jax

        from cmjax.processes import device_names

        settings = {name: getattr(jax.config, name, "unknown") for name in SETTINGS}
    except Exception as error:
        return {
            "devices": {"none": one_line(f"{type(error).__name__}: {error}", LONGEST_LINE)}
        }
    try:
        devices = {
            "used": device_names(jax.local_devices()),
            "backend": jax.default_backend(),
            "processes": jax.process_count(),
            "memory": _memory(jax.local_devices()[0]),
        }
    except Exception as error:
        devices = {"none": one_line(f"{type(error).__name__}: {error}", LONGEST_LINE)}
    return {"devices": devices, "settings": settings}


def _memory(device: Any) -> str:
    """Returns how much memory a device lets JAX use, if it says so."""
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    return "unknown" if limit is None else f"{limit / 2**30:.1f} GiB each"


def _environment() -> dict[str, str]:
    """Returns the environment variables that matter."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(PREFIXES) and not any(word in name for word in SECRETS)
    }
