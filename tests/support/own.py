"""A small package of somebody else's: a network, a scheduler, and things that are neither."""

import sys
import textwrap

NETS = """
import dataclasses

import jax.numpy as jnp
from flax import nnx


@dataclasses.dataclass(frozen=True)
class MyConfig:
    features: int = 3
    hidden: tuple[int, ...] = (4,)

    @property
    def sample_shape(self):
        return (self.features,)


class MyNet(nnx.Module):
    def __init__(self, config: MyConfig, *, rngs: nnx.Rngs):
        widths = (config.features, *config.hidden, config.features)
        pairs = zip(widths[:-1], widths[1:])
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in pairs])

    def __call__(self, x, t, r=None):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return x + 1e-3 * t[:, None]


class NoConfig(nnx.Module):
    def __init__(self, config, *, rngs):
        pass


@dataclasses.dataclass
class ThawedConfig:
    features: int = 3


class Thawed(nnx.Module):
    def __init__(self, config: ThawedConfig, *, rngs):
        pass


@dataclasses.dataclass(frozen=True)
class StatefulConfig:
    features: int = 3


class Stateful(nnx.Module):
    def __init__(self, config: StatefulConfig, *, rngs):
        self.norm = nnx.BatchNorm(config.features, rngs=rngs)

    def __call__(self, x, t):
        return self.norm(x)
"""

SOLVERS = '''
import dataclasses

import jax

import cmjax


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class MySolver(cmjax.CMStochasticIterativeScheduler):
    """The consistency sampler with a little less noise."""

    s_noise: float = 0.5
'''


def install(folder, monkeypatch, name="mypkg"):
    """Writes the package to a folder and puts it on the path, unimported."""
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(textwrap.dedent(NETS))
    (package / "solvers.py").write_text(textwrap.dedent(SOLVERS))
    monkeypatch.syspath_prepend(folder)
    forget(name)
    return package


def forget(name="mypkg"):
    """Makes the package's modules and registered classes unknown again, as in a new process."""
    from cmjax.models.registry import ARCHITECTURES
    from cmjax.schedulers import SCHEDULERS

    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        del sys.modules[module]
    for registry in (ARCHITECTURES, SCHEDULERS):
        for known in [key for key, found in registry.items() if name in repr(found)]:
            del registry[known]
