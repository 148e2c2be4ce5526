"""Writes `ncsnpp.npz` and `ncsnpp_names.json`, from the reference of OpenAI's CIFAR-10 models.

    PYTHONPATH=REFERENCE:. python tests/golden/make_ncsnpp_goldens.py [PART ...]

REFERENCE is a checkout of openai/consistency_models_cifar10 (Apache-2.0 licence) at the
commit below. It was run with Python 3.11, jax and jaxlib 0.4.13, flax 0.7.0, optax 0.1.5, dm-haiku
0.0.10, ml-collections, numpy below 1.26 and scipy below 1.11; blobfile, which it imports to find
files, is not needed. `draw` of `tests/support/ncsnpp.py` makes the weights.
"""

import importlib
import json
import sys
import types
from pathlib import Path

import flax
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

sys.modules["blobfile"] = types.ModuleType("blobfile")
from jcm import losses, sampling, sde_lib  # noqa: E402
from jcm.models import ncsnpp  # noqa: E402
from jcm.models import utils as mutils  # noqa: E402

COMMIT = "d086e77dfdc30b51671685f9eec90c90d4f4eaa6"
FOLDER = Path(__file__).parent
# The name of the reference's config file, and what a small network changes in it.
NETWORKS = {
    "toy": (
        "cifar10_ve_cd",
        {"nf": 8, "ch_mult": (1, 2, 3), "num_res_blocks": 2, "attn_resolutions": (8,)},
        16,
    ),
    "plain": (
        "cifar10_k_vp",
        {"nf": 12, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,)},
        8,
    ),
    "cifar10": ("cifar10_ve_cd", {}, 32),
}
RECIPES = {
    "edm": "cifar10_k_ve",
    "cd": "cifar10_ve_cd",
    "ct": "cifar10_ve_ct_adaptive",
    "progressive": "cifar10_ve_progressive_distillation",
}


def draw(name, shape):
    # tests/support/ncsnpp.py cannot be imported with an old JAX; its function is run alone.
    source = (FOLDER.parent / "support" / "ncsnpp.py").read_text()
    function = source[source.index("def draw(") : source.index("@functools.cache")]
    namespace = {"np": np, "zlib": importlib.import_module("zlib")}
    exec(function, namespace)  # noqa: S102
    return namespace["draw"](name, shape)


def named(tree, prefix=""):
    """Leaves and empty dictionaries by dotted name."""
    found = {}
    for name, value in flax.serialization.to_state_dict(tree).items():
        if isinstance(value, dict) and value:
            found |= named(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def config_of(file, changes, size):
    config = importlib.import_module(f"configs.{file}").get_config()
    config.model.update(changes)
    config.data.image_size = size
    return config


def network(which):
    """The config, the module and the drawn parameters of a network."""
    config = config_of(*NETWORKS[which])
    model = ncsnpp.NCSNpp(config)
    size = config.data.image_size
    x, t = jnp.zeros((1, size, size, 3)), jnp.zeros(1)
    keys = {"params": jax.random.PRNGKey(0), "dropout": jax.random.PRNGKey(0)}
    initial = jax.eval_shape(model.init, keys, x, t)["params"]
    drawn = {name: draw(name, leaf.shape) for name, leaf in named(initial).items()}
    tree = flax.traverse_util.unflatten_dict(drawn, sep=".")
    return config, model, flax.core.freeze(tree)


def outputs(which, batch, step=1):
    """The network's output, the denoiser and the consistency function at levels that all differ."""
    config, model, params = network(which)
    sde = sde_lib.get_sde(config)
    size = config.data.image_size
    rng = np.random.RandomState(0)
    sigma = np.geomspace(80, 0.002, batch).astype(np.float32)
    x = (
        rng.standard_normal((batch, size, size, 3))
        * np.sqrt(0.25 + sigma**2)[:, None, None, None]
    )
    x = jnp.asarray(x.astype(np.float32))
    scaled = x / jnp.sqrt(sigma**2 + sde.data_std**2)[:, None, None, None]
    t = 0.25 * jnp.log(sigma)
    fns = {
        "F": lambda p: mutils.get_model_fn(model, p, {})(scaled, t)[0],
        "D": lambda p: mutils.get_denoiser_fn(sde, model, p, {})(x, sigma),
        "f": lambda p: mutils.get_distiller_fn(sde, model, p, {})(x, sigma),
    }
    found = {"sigma": sigma}
    if step == 1:
        found["x"] = x
    for name, fn in fns.items():
        value = np.asarray(jax.jit(fn)(params))
        found[f"{name}/std"] = value.std(axis=(1, 2, 3))
        found[name] = value[:, ::step, ::step]
    return {f"{which}/{name}": np.asarray(value) for name, value in found.items()}


def samples():
    """Samples of the toy network by the reference's samplers, and the noise they started from."""
    config, model, params = network("toy")
    config.model.num_scales = 5
    shape = (3, 16, 16, 3)
    state = flax.jax_utils.replicate(
        types_state(params_ema=params, model_state=flax.core.freeze({}), step=0)
    )
    key = jax.random.PRNGKey(7)
    noise = jax.random.normal(jax.random.split(key)[1], shape)
    found = {"noise": noise}

    # One step draws its own noise, the same.
    sde = sde_lib.get_sde(config)
    one = sampling.get_onestep_sampler(config, sde, model, shape)
    found["one"] = one(key[None], state)[0][0]

    # The solvers are given it.
    sde.prior_sampling = lambda _, shape: sde.t_max * noise
    heun = sampling.get_heun_sampler(sde, model, shape, denoise=True)
    found["heun"] = heun(key[None], state)[0][0]
    # The number of its steps is a float in this JAX, which its loop does not take.
    sampling.get_ema_scales_fn = lambda config: lambda step: (1.0, 4)
    halved = sampling.get_progressive_distillation_sampler(config, sde, model, shape, False)
    found["halved"] = halved(key[None], state)[0][0]

    # Two steps as in the notebook of the reference, which clips: levels 0, 11 and 17 of 18.
    f = mutils.get_distiller_fn(sde, model, params, {})
    second = jax.random.normal(jax.random.PRNGKey(8), shape)
    ends = sde.t_max ** (1 / sde.rho), sde.t_min ** (1 / sde.rho)
    sigma = (ends[0] + 11 / 17 * (ends[1] - ends[0])) ** sde.rho
    x0 = jnp.clip(f(sde.t_max * noise, jnp.full(3, sde.t_max)), -1, 1)
    x = x0 + second * np.sqrt(sigma**2 - sde.t_min**2)
    found["two"] = jnp.clip(f(x, jnp.full(3, sigma)), -1, 1)
    found |= {"two/noise": second, "two/sigma": np.float32(sigma)}
    return {f"samples/{name}": np.asarray(value) for name, value in found.items()}


def types_state(**fields):
    """A training state with the fields that samplers read."""
    unused = dict.fromkeys(("lr", "ema_rate", "params", "opt_state", "rng_state"), 0)
    return mutils.State(**(unused | fields))


def layout(file):
    """Names, shapes and dtypes of a training state; of its copies of the parameters, the names."""
    config = config_of(file, *NETWORKS["toy"][1:])
    rng = hk.PRNGSequence(config.seed)
    _, model_state, params = mutils.init_model(next(rng), config)
    optimizer, _ = losses.get_optimizer(config)
    loss = config.training.loss.lower()
    has_target = loss.endswith(("ema", "adaptive", "progressive_distillation"))
    kind = mutils.StateWithTarget if has_target else mutils.State
    fields = {"target_params": params} if has_target else {}
    state = kind(
        step=0,
        lr=config.optim.lr,
        ema_rate=config.model.ema_rate,
        params=params,
        params_ema=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        rng_state=rng.internal_state,
        **fields,
    )
    state = flax.jax_utils.unreplicate(flax.jax_utils.replicate(state))
    state = state.replace(rng_state=rng.internal_state)
    read = flax.serialization.msgpack_restore(flax.serialization.to_bytes(state))

    found = {}
    for name, value in named(read).items():
        above = name.partition(".Attn")[0]
        if above != name:
            found[above] = ("parameters", "float32")
        elif any(name.startswith(f"{other}.") for other in found):
            continue
        elif isinstance(value, dict):
            found[name] = ("empty", "")
        else:
            found[name] = (list(value.shape), str(value.dtype))
    return found


def main(*parts):
    """Makes all that is stored, or only some of it: toy, plain, cifar10, samples, names."""
    file = FOLDER / "ncsnpp.npz"
    arrays = dict(np.load(file)) if parts else {}
    jobs = {
        "samples": samples,
        "toy": lambda: outputs("toy", 7),
        "plain": lambda: outputs("plain", 4),
        "cifar10": lambda: outputs("cifar10", 2, step=4),
        "names": names,
    }
    for part in parts or jobs:
        print(part, flush=True)
        arrays |= jobs[part]()
        np.savez_compressed(file, **arrays)


def names():
    """Writes the names and shapes of networks and states."""
    text = {
        "made of": {
            "openai/consistency_models_cifar10": COMMIT,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "numpy": np.__version__,
        },
        "networks": {
            which: {
                name: list(leaf.shape) for name, leaf in named(network(which)[2]).items()
            }
            for which in NETWORKS
        },
        "states": {kind: layout(file) for kind, file in RECIPES.items()},
    }
    line = json.dumps(text, separators=(",", ":"))
    (FOLDER / "ncsnpp_names.json").write_text(line + "\n")
    return {}


if __name__ == "__main__":
    main(*sys.argv[1:])
