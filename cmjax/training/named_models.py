"""Models that the configuration of a run names: to start from, and to learn from."""

from typing import Any

import jax.numpy as jnp

from cmjax.checkpoints.loading import load
from cmjax.model import Model


def load_named(name: str, source: str) -> Model:
    """Returns the model that a key of the configuration names; an error begins with the key."""
    try:
        return load(source, dtype=jnp.float32)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def check_interchangeable(name: str, source: str, found: Any, wanted: Any) -> None:
    """Raises ValueError unless two schedulers are for networks of the same meaning.

    A flow map starts as a network of one time with the same parametrization, such as that of flow
    matching, or a denoiser for a consistency trajectory model.

    Args:
        name: key of the configuration.
        source: its value, which names the model.
        found: the scheduler of that model, which has a parametrization.
        wanted: the scheduler of the run.
    """
    # Otherwise the network would be evaluated with the wrong scalings or times. Noise levels may
    # differ: they only say where it is evaluated, and where a consistency function is the identity.
    own = found.parametrization.without_boundary()
    if own == wanted.parametrization.without_boundary():
        return
    has = _kind_of(found)
    needs = _kind_of(wanted)
    raise ValueError(f"{name} {source} is a network for {has}, but this run is for {needs}")


def _kind_of(scheduler):
    """Returns a scheduler in the words of an error message: its class and its scale or path."""
    name = type(scheduler).__name__
    if hasattr(scheduler, "sigma_data"):
        return f"{name}(sigma_data={scheduler.sigma_data})"
    return f"{name}, {scheduler.parametrization}"
