"""Writes `pixel_mean_flow.npz` and `pixel_mean_flow_names.json`, from Pixel MeanFlow's reference.

    python tests/golden/make_pixel_mean_flow_goldens.py TORCH JAX

TORCH is a checkout of the branch `torch` of Lyy-iiis/pMF (MIT licence), JAX one of its branch
`main`; the commits below are those that the stored files are of. `tests/support/pixel_mean_flow.py`
draws the weights. Needs the parity extra, and 2 GB for the network B/16.
"""

import importlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
import torch

from tests.support import pixel_mean_flow as support

COMMITS = {
    "torch": "990e81a84249dbd68a128accef67eb95621d10b1",
    "main": "75f6073042c21f7104686261a0c4784db4ede9d1",
}
NETWORKS = ("B_16", "L_16", "H_16", "B_32", "L_32", "H_32")
FOLDER = Path(__file__).parent


def module(checkout, name):
    """A module of a checkout; both have modules of the same names."""
    for known in [n for n in sys.modules if n.split(".")[0] in ("models", "pmf")]:
        del sys.modules[known]
    sys.path.insert(0, checkout)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(checkout)


def inputs(size, classes, batch):
    """What a network is given, every part of it another in every sample."""
    rng = np.random.RandomState(0)
    t = np.linspace(1, 0.03, batch)
    given = {
        "x": 1.5 * rng.standard_normal((batch, 3, size, size)),
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


def with_weights(network, prefix="net."):
    """The network with drawn weights."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.from_numpy(support.draw(prefix + name, parameter.shape)))
    return network.eval()


def names(network):
    """Names and shapes of a state dict as a file has it; of blocks those of the first."""
    blocks, tensors = {}, {}
    for name, tensor in network.state_dict().items():
        part, _, rest = name.partition(".")
        index = rest.partition(".")[0]
        if part in ("shared_blocks", "u_heads"):
            blocks[part] = int(index) + 1
            first = f"net.{part}.0.{rest.partition('.')[2]}"
            assert tensors.setdefault(first, list(tensor.shape)) == list(tensor.shape)
        elif not part.startswith("v_"):
            tensors[f"net.{name}"] = list(tensor.shape)
    return {"blocks": blocks, "tensors": tensors}


def in_jax(checkout, given):
    """The same network in the JAX code, with the same weights."""
    network = module(checkout, "models.pmfDiT").pmfDiT(**support.TOY)
    x = given["x"].transpose(0, 2, 3, 1)
    rest = [given[name] for name in ("t", "h", "w", "t_min", "t_max", "y")]
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, *rest)["params"]

    def drawn(path, leaf):
        # shared_blocks_0 -> shared_blocks.0, and the names of leaves in PyTorch.
        parts = [key.key for key in path]
        name = "net." + ".".join(parts)
        for list_ in ("shared_blocks", "u_heads", "v_heads"):
            name = name.replace(f"{list_}_", f"{list_}.")
        name = name.replace("mlp.layers_", "mlp.")
        name = name.replace(".kernel", ".weight")
        name = name.replace("_flax_embedding.embedding", "_flax_embedding")
        name = name.replace(
            "embedding_table.embedding", "embedding_table._flax_embedding.weight"
        )
        shape = leaf.shape
        if "embedding_table" in name:
            return support.draw(name, shape[1:])[None]
        if len(shape) == 4:
            return support.draw(name, (shape[3], shape[2], *shape[:2])).transpose(
                2, 3, 1, 0
            )
        if len(shape) == 2:
            return support.draw(name, shape[::-1]).T
        return support.draw(name, shape)

    params = jax.tree_util.tree_map_with_path(drawn, shapes)
    with jax.default_matmul_precision("highest"):
        u, _ = network.apply({"params": params}, x, *rest)
    return np.asarray(u).transpose(0, 3, 1, 2)


class Given:
    """A source of noise that returns what it is given."""

    def __init__(self, noise):
        self.noise = noise

    def randn(self, shape):
        assert tuple(self.noise.shape) == tuple(shape)
        return self.noise


def main(torch_checkout, jax_checkout):
    reference = module(torch_checkout, "models.pmfDiT")
    arrays, stored = {}, {}

    # A toy network: its output for inputs of which every part varies.
    toy = with_weights(reference.pmfDiT(**support.TOY))
    stored["toy"] = names(toy)
    given = inputs(support.TOY["input_size"], support.TOY["num_classes"], batch=6)
    order = ("x", "t", "h", "w", "t_min", "t_max", "y")
    with torch.no_grad():
        u, _ = toy(*(torch.from_numpy(given[name]) for name in order))
    arrays |= {f"toy/{name}": value for name, value in given.items()} | {"toy/u": u.numpy()}
    off = np.abs(in_jax(jax_checkout, given) - u.numpy()).max()
    print(
        f"toy: the JAX code differs by {off / u.numpy().std():.1e} of the standard deviation"
    )

    # Samples of it in one, two and four calls, from given noise of scale 2.
    pmf = module(torch_checkout, "pmf")
    pmf.pmfDiT.pmfDiT_B_32 = lambda **options: pmf.pmfDiT.pmfDiT(
        **(support.TOY | {"eval_mode": options["eval_mode"]})
    )
    sampler = pmf.pixelMeanFlow("pmfDiT_B_32", img_size=12, num_classes=5)
    with_weights(sampler, prefix="")
    noise = torch.from_numpy(
        np.random.RandomState(1).standard_normal((3, 3, 12, 12)).astype(np.float32)
    )
    labels = torch.tensor([0, 3, 5])
    arrays |= {"samples/noise": noise.numpy(), "samples/y": labels.numpy().astype(np.int32)}
    for steps in (1, 2, 4):
        x = sampler.generate(3, Given(noise), steps, 3.0, 0.2, 0.6, labels)
        arrays[f"samples/{steps}"] = x.numpy()

    # The smallest released size, for two samples; every 32nd pixel is stored.
    b_16 = with_weights(reference.pmfDiT_B_16(eval_mode=True))
    given = inputs(256, 1000, batch=2)
    given["t"] = np.float32([1.0, 0.6])
    given["h"] = np.float32([1.0, 0.35])
    with torch.no_grad():
        u, _ = b_16(*(torch.from_numpy(given[name]) for name in order))
    arrays |= {f"B_16/{name}": value for name, value in given.items() if name != "x"}
    arrays["B_16/u"] = u.numpy()[:, :, 5::32, 9::32]
    arrays["B_16/std"] = u.numpy().std()

    # The names of all released files.
    del b_16
    with torch.device("meta"):
        for name in NETWORKS:
            network = getattr(reference, f"pmfDiT_{name}")(eval_mode=True)
            stored[name] = names(network)
    versions = {"torch": torch.__version__, "jax": jax.__version__, "numpy": np.__version__}
    stored["made of"] = {"Lyy-iiis/pMF": COMMITS, **versions}
    np.savez_compressed(FOLDER / "pixel_mean_flow.npz", **arrays)
    text = json.dumps(stored, separators=(",", ":"))
    (FOLDER / "pixel_mean_flow_names.json").write_text(text + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
