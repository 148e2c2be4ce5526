"""Makes flow_maps.npz: losses of flow maps and their gradients, by their authors' own code.

The authors' code is not part of this repository; check it out beside it:

    https://github.com/Gsunshine/meanflow      at d70cb55d298ee03c53bf6da67bec281082e4e2d9
    https://github.com/Lyy-iiis/imeanflow      at bf60cd7cb653f6628e59d48034b333c5eba445e2
    https://github.com/Lyy-iiis/pMF            at 75f6073042c21f7104686261a0c4784db4ede9d1
    https://github.com/kvfrans/shortcut-models at 601004348667094e1b71f30942199759412d4432

    PYTHONPATH=. python tests/golden/make_flow_map_goldens.py MEANFLOW IMEANFLOW SHORTCUT PMF

Their networks are replaced by `tests.support.flow_maps.tiny`, which is small and a formula, and all
that they draw by the draws that are stored beside the losses: data, noise, times, labels.
"""

import sys
import types
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.flow_maps import tiny, tiny_heads, tiny_params

COUNT = 64
NULL = 3  # the label without a class
RNG = np.random.default_rng(0)


def draws():
    """Data, noise, times and labels, the same for all."""

    def logit_normal():
        return 1 / (1 + np.exp(0.4 - RNG.normal(size=COUNT)))

    first, second = logit_normal(), logit_normal()
    instant = np.arange(COUNT) < COUNT // 2
    t, r = np.maximum(first, second), np.minimum(first, second)
    floats = {
        "data": 0.5 * RNG.normal(size=(COUNT, 4, 4, 2)),
        "noise": RNG.normal(size=(COUNT, 4, 4, 2)),
        "t": t,
        "r": np.where(instant, t, r),
        "scale": np.exp(RNG.uniform(size=COUNT) * np.log(8)),
    }
    found = {name: value.astype(np.float32) for name, value in floats.items()}
    found["labels"] = RNG.integers(0, 3, COUNT).astype(np.int32)

    # Of times, where r = t; else some of them are within and some without.
    interval = RNG.uniform(size=(COUNT, 2)) / 2 + np.array([0, 0.5])
    interval[instant] = 0, 1
    return {**found, "interval": interval.astype(np.float32)}


def module_of(path, name):
    """The authors' module, whose networks are left out."""
    stubs = {"models": types.ModuleType("models")}
    for stub in ("models_dit", "imfDiT", "pmfDiT"):
        stubs[f"models.{stub}"] = types.ModuleType(f"models.{stub}")
        setattr(stubs[f"models.{stub}"], stub, object)
        setattr(stubs["models"], stub, stubs[f"models.{stub}"])
    module = types.ModuleType(name)
    # JAX has since renamed the arguments of `clip`.
    source = Path(path).read_text().replace("a_min=0.0, a_max=1.0", "min=0.0, max=1.0")
    with mock.patch.dict(sys.modules, {**stubs, name: module}):
        exec(source, module.__dict__)  # noqa: S102
    return module


def column(values):
    return jnp.asarray(values)[:, None, None, None]


def flax_loss(cls, net, given, dropped, interval=(0, 1)):
    """(loss, gradient) of a MeanFlow or its successors with a given network and given draws."""
    interval = np.broadcast_to(np.asarray(interval, np.float32), (COUNT, 2))

    def setup(self):
        self.net = lambda *args, **kwargs: net(params_of[0], *args)

    def sample_tr(self, count):
        mask = column(given["t"] == given["r"])
        pair = (column(given["t"]), column(given["r"]))
        return pair if cls.__name__ == "MeanFlow" else (*pair, mask)

    def noise(key, shape, dtype):
        return jnp.asarray(given["noise"])

    def uniform(key, shape, **options):
        return (jnp.arange(COUNT) >= dropped).astype(jnp.float32)

    params_of = [None]
    own = {
        "__annotations__": {},
        "setup": setup,
        "sample_tr": sample_tr,
        "sample_cfg_scale": lambda self, count, **options: column(given["scale"]),
        "sample_cfg_interval": lambda self, count, mask: (
            column(interval[:, 0]),
            column(interval[:, 1]),
        ),
    }

    def at(options):
        model = type(f"Fixed{cls.__name__}", (cls,), own)(num_classes=NULL, **options)

        def loss(params):
            params_of[0] = params
            return model.apply(
                {},
                jnp.asarray(given["data"]),
                jnp.asarray(given["labels"]),
                method=model.forward,
                rngs={"gen": jax.random.key(0)},
            )[0]

        with (
            mock.patch("jax.random.normal", noise),
            mock.patch("jax.random.uniform", uniform),
        ):
            return jax.value_and_grad(loss)(tiny_params())

    return at


def shortcut_loss(path, given, changes):
    """(loss, gradient) of a shortcut model, and the draws of its steps, in cmjax's terms."""
    source = Path(path, "targets_shortcut.py").read_text()
    for old, new in changes.items():
        assert old in source
        source = source.replace(old, new)
    module = types.ModuleType("targets_shortcut")
    exec(source, module.__dict__)  # noqa: S102

    # Their time is 1 - t, their velocity is the negative one, a step 2^-dt long.
    def network(params, x, time, dt, labels):
        t = 1 - time
        return -tiny(params, x, t, t - jnp.exp2(-dt), labels)

    target = jax.tree.map(lambda leaf: 0.9 * leaf, tiny_params())
    state = types.SimpleNamespace(
        call_model_ema=lambda x, t, dt, y, train: network(target, x, t, dt, y)
    )
    flags = types.SimpleNamespace(
        batch_size=COUNT,
        model={
            "bootstrap_every": 8,
            "denoise_timesteps": 128,
            "bootstrap_dt_bias": 0,
            "bootstrap_ema": 1,
            "bootstrap_cfg": 0,
            "class_dropout_prob": 0.0,
            "num_classes": NULL,
        },
    )

    def noise(key, shape):
        return jnp.asarray(given["noise"])[: shape[0]]

    with mock.patch("jax.random.normal", noise):
        x, v, time, dt, labels, _ = module.get_targets(
            flags,
            jax.random.key(3),
            state,
            jnp.asarray(given["data"]),
            jnp.asarray(given["labels"]),
        )

    def loss(params):  # train.py, loss_fn
        return jnp.mean((network(params, x, time, dt, labels) - v) ** 2)

    steps = {"shortcut_t": 1 - time, "shortcut_length": jnp.exp2(-dt)}
    return jax.value_and_grad(loss)(tiny_params()), steps


def main(mean_flow, improved, shortcut, pixel):
    given = draws()
    stored = dict(given)

    def net(params, x, t, h, y):
        return tiny(params, x, t, t - h, y)

    def improved_net(params, x, t, h, omega, t_min, t_max, y):
        # The second output, the velocity, in place of which cmjax takes u from t to t.
        given = {"class_labels": y, "guidance_scale": omega}
        return tiny(params, x, t, t - h, **given), tiny(params, x, t, t, **given)

    module = module_of(Path(mean_flow, "meanflow.py"), "meanflow")
    at = flax_loss(module.MeanFlow, net, given, dropped=2)
    plain = {
        "model_str": "",
        "model_config": {},
        "guidance_eq": "",
        "class_dropout_prob": 0.0,
    }
    guided = {**plain, "guidance_eq": "cfg", "class_dropout_prob": 0.1, "t_end": 0.8}
    cases = {
        "mean_flow": at(plain),
        "mean_flow_kappa": at({**guided, "omega": 1.5, "kappa": 0.4}),
        "mean_flow_omega": at({**guided, "omega": 2.0, "kappa": 0.0, "norm_p": 0.5}),
    }
    module = module_of(Path(improved, "imf.py"), "imf")
    at = flax_loss(module.iMeanFlow, improved_net, given, dropped=0)
    cases["imf_guided"] = at({"model_str": "", "class_dropout_prob": 0.0})

    def heads(params, x, t, h, omega, t_min, t_max, y):
        interval = jnp.stack([t_min, t_max], axis=-1)
        given = {"guidance_scale": omega, "guidance_interval": interval}
        both = tiny_heads(params, x, t, t - h, class_labels=y, second_head=True, **given)
        return jnp.split(both, 2, axis=-1)

    # With a second head and drawn intervals; Pixel MeanFlow's with larger noise, too.
    options = {"model_str": "", "class_dropout_prob": 0.0}
    cases["imf_heads"] = flax_loss(module.iMeanFlow, heads, given, 0, given["interval"])(
        options
    )
    module = module_of(Path(pixel, "pmf.py"), "pmf")
    cases["pmf"] = flax_loss(module.pixelMeanFlow, heads, given, 0, given["interval"])(
        {**options, "noise_scale": 2.0}
    )

    # The path as printed, with a noise of 1e-5 in the data, and without it.
    exact = {"(1 - 1e-5)": "1"}
    cases["shortcut"], steps = shortcut_loss(shortcut, given, exact)
    cases["shortcut_as_printed"], _ = shortcut_loss(shortcut, given, {})
    stored.update(steps)

    for name, (loss, gradient) in cases.items():
        print(name, float(loss))
        stored[f"{name}/loss"] = loss
        for key, value in gradient.items():
            stored[f"{name}/{key}"] = value
    path = Path(__file__).parent / "flow_maps.npz"
    np.savez_compressed(path, **{key: np.asarray(value) for key, value in stored.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
