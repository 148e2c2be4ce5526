"""Options of XLA's compiler for the training steps that cmjax compiles itself."""

import functools
from typing import Any

import jax

# XLA's convolutions and their gradients are faster by this library of products, where jaxlib has
# it (docs/performance.md). It is an experiment of XLA's, and its name may change.
FOR_GRADIENTS_ON_CPUS: dict[str, Any] = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
}


@functools.cache
def options_for_gradients(platform: str) -> dict[str, Any] | None:
    """Returns `compiler_options` for `jax.jit` of a training step.

    Only the outermost `jit` may have options: a step within the caller's own `jit` has none.

    Args:
        platform: of the devices that the program runs on, such as "cpu".

    Returns:
        The options; None for the compiler's own, elsewhere than on CPUs and where this version of
        jaxlib does not know them.
    """
    if platform != "cpu":
        return None
    program = jax.jit(lambda x: x).lower(0.0)
    try:
        program.compile(compiler_options=FOR_GRADIENTS_ON_CPUS)
    except jax.errors.JaxRuntimeError:
        return None
    return FOR_GRADIENTS_ON_CPUS
