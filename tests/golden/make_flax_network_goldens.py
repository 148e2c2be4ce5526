"""Writes `mean_flow.npz`, its like, and `flax_networks.json`, from the authors' JAX code.

    python tests/golden/make_flax_network_goldens.py mean_flow CHECKOUT

CHECKOUT is one of the repository at the commit below (all are under the MIT licence). It needs
what the authors ran their code with: Python 3.11, jax 0.4.30, flax 0.8.5, optax 0.2.5 and NumPy
1.26, with this repository on the path; nothing of cmjax is imported.
"""

import json
import sys

import flax
import jax
import jax.numpy as jnp
import numpy as np

from tests.support import flax_networks as support

COMMITS = {
    "mean_flow": ("Gsunshine/meanflow", "d70cb55d298ee03c53bf6da67bec281082e4e2d9"),
}
CALLS = (1, 2, 4)


def inputs(size, channels, classes, batch):
    """What a network is told, every part of it another in every sample."""
    rng = np.random.RandomState(0)
    t = np.linspace(1, 0.03, batch)
    told = {
        "x": 1.5 * rng.standard_normal((batch, size, size, channels)),
        "t": t,
        "h": t * np.linspace(1, 0, batch),  # t - r, from all the way to none
        "w": 1 + 8 * rng.uniform(size=batch),
        "t_min": 0.5 * rng.uniform(size=batch),
        "t_max": 0.5 + 0.5 * rng.uniform(size=batch),
    }
    told = {name: value.astype(np.float32) for name, value in told.items()}
    # The last sample has the class that stands for none.
    labels = rng.randint(0, classes, batch)
    labels[-1] = classes
    return told | {"y": labels.astype(np.int32)}


def shapes_of(network, *args, **options):
    """The shapes of a network's parameters by dotted name."""
    keys = {"params": jax.random.key(0), "gen": jax.random.key(1)}
    tree = jax.eval_shape(lambda: network.init(keys, *args, **options))["params"]
    flat = flax.traverse_util.flatten_dict(tree, sep=".")
    return {name: leaf.shape for name, leaf in flat.items()}


def drawn(shapes):
    return {"params": support.nested(support.drawn(shapes))}


def noise(size, channels):
    shape = (3, size, size, channels)
    return np.random.RandomState(1).standard_normal(shape).astype(np.float32)


def mean_flow():
    import meanflow
    from models import models_dit

    toy = support.TOYS["mean_flow"]
    models_dit.toy = lambda **options: models_dit.DiT(**toy | options)
    size, channels, classes = toy["input_size"], toy["in_channels"], toy["num_classes"]

    def model(name, classes):
        return meanflow.MeanFlow(model_str=name, model_config={}, num_classes=classes)

    # The toy's output for inputs of which every part varies.
    told = inputs(size, channels, classes, batch=6)
    one = (jnp.ones((1, size, size, channels)), jnp.ones(1), jnp.ones(1, int))
    shapes = shapes_of(model("toy", classes), *one)
    params = drawn(shapes)
    net = models_dit.toy()
    args = [told[name] for name in ("x", "t", "h", "y")]
    arrays = {f"toy/{name}": told[name] for name in ("x", "t", "h", "y")}
    arrays["toy/u"] = net.apply({"params": params["params"]["net"]}, *args)

    # Samples in one, two and four calls; the repository lists the times by hand.
    labels = np.int32([0, 3, 5])
    arrays |= {"samples/noise": noise(size, channels), "samples/y": labels}
    for calls in CALLS:
        x = noise(size, channels)
        times = jnp.linspace(1, 0, calls + 1)
        for i in range(calls):
            method = meanflow.MeanFlow.sample_one_step
            keys = {"gen": jax.random.key(0)}
            sampler = model("toy", classes)
            x = sampler.apply(params, x, labels, i, times, method=method, rngs=keys)
        arrays[f"samples/{calls}"] = x

    # The released size.
    told = inputs(32, 4, 1000, batch=2)
    told |= {"t": np.float32([1.0, 0.6]), "h": np.float32([1.0, 0.35])}
    one = (jnp.ones((1, 32, 32, 4)), jnp.ones(1), jnp.ones(1, int))
    released = shapes_of(model("DiT_B_4", 1000), *one)
    args = [told[name] for name in ("x", "t", "h", "y")]
    params = drawn(released)["params"]["net"]
    u = models_dit.DiT_B_4().apply({"params": params}, *args)
    arrays |= {f"released/{name}": told[name] for name in ("t", "h", "y")}
    arrays |= {"released/u": u[:, 3::8, 5::8], "released/std": u.std()}
    return arrays, {"toy": support.packed(shapes), "MF-B/4": support.packed(released)}


def main(family, checkout):
    sys.path.insert(0, checkout)
    with jax.default_matmul_precision("float32"):
        arrays, names = {"mean_flow": mean_flow}[family]()
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    np.savez_compressed(support.GOLDEN / f"{family}.npz", **arrays)
    versions = {module.__name__: module.__version__ for module in (jax, flax, np)}
    repository, commit = COMMITS[family]
    names["made of"] = {repository: commit, **versions}
    stored = json.loads(support.NAMES.read_text()) if support.NAMES.exists() else {}
    stored[family] = names
    text = json.dumps(stored, separators=(",", ":"))
    support.NAMES.write_text(text + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
