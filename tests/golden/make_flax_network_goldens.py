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
    "improved_mean_flow": (
        "Lyy-iiis/imeanflow",
        "bf60cd7cb653f6628e59d48034b333c5eba445e2",
    ),
    "shortcut": ("kvfrans/shortcut-models", "601004348667094e1b71f30942199759412d4432"),
}
CALLS = (1, 2, 4)
ORDER = ("x", "t", "h", "w", "t_min", "t_max", "y")


def inputs(size, channels, classes, batch):
    """What a network is given, every part of it another in every sample."""
    rng = np.random.RandomState(0)
    t = np.linspace(1, 0.03, batch)
    given = {
        "x": 1.5 * rng.standard_normal((batch, size, size, channels)),
        "t": t,
        "h": t * np.linspace(1, 0, batch),  # t - r, from all the way to none
        "w": 1 + 8 * rng.uniform(size=batch),
        "t_min": 0.5 * rng.uniform(size=batch),
        "t_max": 0.5 + 0.5 * rng.uniform(size=batch),
    }
    given = {name: value.astype(np.float32) for name, value in given.items()}
    # The last sample has the class that stands for none.
    labels = rng.randint(0, classes, batch)
    labels[-1] = classes
    return given | {"y": labels.astype(np.int32)}


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
    given = inputs(size, channels, classes, batch=6)
    one = (jnp.ones((1, size, size, channels)), jnp.ones(1), jnp.ones(1, int))
    shapes = shapes_of(model("toy", classes), *one)
    params = drawn(shapes)
    net = models_dit.toy()
    args = [given[name] for name in ("x", "t", "h", "y")]
    arrays = {f"toy/{name}": given[name] for name in ("x", "t", "h", "y")}
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
    given = inputs(32, 4, 1000, batch=2)
    given |= {"t": np.float32([1.0, 0.6]), "h": np.float32([1.0, 0.35])}
    one = (jnp.ones((1, 32, 32, 4)), jnp.ones(1), jnp.ones(1, int))
    released = shapes_of(model("DiT_B_4", 1000), *one)
    args = [given[name] for name in ("x", "t", "h", "y")]
    params = drawn(released)["params"]["net"]
    u = models_dit.DiT_B_4().apply({"params": params}, *args)
    arrays |= {f"released/{name}": given[name] for name in ("t", "h", "y")}
    arrays |= {"released/u": u[:, 3::8, 5::8], "released/std": u.std()}
    return arrays, {"toy": support.packed(shapes), "MF-B/4": support.packed(released)}


def improved_mean_flow():
    import imf
    from models import imfDiT

    toy = support.TOYS["improved_mean_flow"]
    size, channels, classes = toy["input_size"], toy["in_channels"], toy["num_classes"]

    def model(name, classes, size):
        network = imf.iMeanFlow(model_str=name, num_classes=classes)
        one = (jnp.ones((1, size, size, 4)), jnp.ones(1), jnp.ones(1, int))
        return network, shapes_of(network, *one)

    # The toy's output for inputs of which every part varies.
    imfDiT.toy = lambda **options: imfDiT.imfDiT(**toy | options)
    sampler, shapes = model("toy", classes, size)
    params = drawn(shapes)
    given = inputs(size, channels, classes, batch=6)
    args = [given[name] for name in ORDER]
    arrays = {f"toy/{name}": value for name, value in given.items()}
    arrays["toy/u"], _ = imfDiT.toy().apply({"params": params["params"]["net"]}, *args)

    # Samples in one, two and four calls.
    labels = np.int32([0, 3, 5])
    arrays |= {"samples/noise": noise(size, channels), "samples/y": labels}
    for calls in CALLS:
        x = noise(size, channels)
        times = jnp.linspace(1, 0, calls + 1)
        guidance = [jnp.float32(number) for number in (3.0, 0.2, 0.6)]
        method = imf.iMeanFlow.sample_one_step
        for i in range(calls):
            x = sampler.apply(params, x, labels, i, times, *guidance, method=method)
        arrays[f"samples/{calls}"] = x

    # The smallest released size.
    names = {"toy": support.packed(shapes)}
    _, shapes = model("imfDiT_B_2", 1000, 32)
    given = inputs(32, 4, 1000, batch=2)
    given |= {"t": np.float32([1.0, 0.6]), "h": np.float32([1.0, 0.35])}
    args = [given[name] for name in ORDER]
    params = drawn(shapes)["params"]["net"]
    u, _ = imfDiT.imfDiT_B_2().apply({"params": params}, *args)
    arrays |= {f"released/{name}": given[name] for name in ORDER[1:]}
    arrays |= {"released/u": u[:, 3::8, 5::8], "released/std": u.std()}

    for size in ("B", "M", "L", "XL"):
        _, shapes = model(f"imfDiT_{size}_2", 1000, 32)
        names[f"iMF-{size}/2"] = support.packed(shapes)
    return arrays, names


def shortcut():
    import model

    def network(**sizes):
        return model.DiT(**support.TOYS["shortcut"] | sizes, dtype=jnp.float32)

    def shapes_for(net, size):
        one = (jnp.zeros((1, size, size, 4)), jnp.zeros(1), jnp.zeros(1))
        return shapes_of(net, *one, jnp.zeros(1, int))

    # The toy's output for steps of several lengths 1 / 2**k, from times 0 (noise) to 1 (data).
    size, classes = 6, support.TOYS["shortcut"]["num_classes"]
    net = network()
    shapes = shapes_for(net, size)
    params = drawn(shapes)
    given = inputs(size, 4, classes, batch=6)
    k = np.int32([0, 1, 2, 3, 5, 7])
    t = np.float32([0, 1, 1, 7, 11, 100]) / 2**k
    t = t.astype(np.float32)
    arrays = {"toy/x": given["x"], "toy/t": t, "toy/k": k, "toy/y": given["y"]}
    arrays["toy/v"] = net.apply(params, given["x"], t, k, given["y"])

    # Samples in one, two and four calls, as helper_inference.py takes them.
    labels = np.int32([0, 3, 5])
    arrays |= {"samples/noise": noise(size, 4), "samples/y": labels}
    for calls in CALLS:
        x = noise(size, 4)
        for i in range(calls):
            t = jnp.full(3, i / calls)
            k = jnp.full(3, int(np.log2(calls)))
            x = x + net.apply(params, x, t, k, labels) / calls
        arrays[f"samples/{calls}"] = x

    # The released sizes.
    names = {"toy": support.packed(shapes)}
    released = {"num_classes": 1000, "hidden_size": 768, "depth": 12, "num_heads": 12}
    net = network(**released)
    shapes = shapes_for(net, 32)
    names["Shortcut-B/2"] = support.packed(shapes)
    x = inputs(32, 4, 1000, batch=2)["x"]
    t = np.float32([0.0, 0.5])
    k = np.int32([0, 2])
    labels = np.int32([207, 1000])
    v = net.apply(drawn(shapes), x, t, k, labels)
    arrays |= {"released/t": t, "released/k": k, "released/y": labels}
    arrays |= {"released/v": v[:, 3::8, 5::8], "released/std": v.std()}
    released |= {"hidden_size": 1152, "depth": 28, "num_heads": 16}
    names["Shortcut-XL/2"] = support.packed(shapes_for(network(**released), 32))
    released = {"num_classes": 1, "hidden_size": 768, "depth": 12, "num_heads": 12}
    names["Shortcut-B/2 CelebA-HQ"] = support.packed(shapes_for(network(**released), 32))
    return arrays, names


FAMILIES = {
    "mean_flow": mean_flow,
    "improved_mean_flow": improved_mean_flow,
    "shortcut": shortcut,
}


def main(family, checkout):
    sys.path.insert(0, checkout)
    with jax.default_matmul_precision("float32"):
        arrays, names = FAMILIES[family]()
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
