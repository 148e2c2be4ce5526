"""Makes distribution_matching.npz: both losses of DMD and their gradients, by the authors' code.

The authors' code is not part of this repository; check it out beside it:

    https://github.com/tianweiy/DMD2 at 8d8fa55633d47cfb81bbc7a892e7248f9518763f

    PYTHONPATH=. python tests/golden/make_distribution_matching_goldens.py DMD2

Their networks are replaced by `tests.support.flow_maps.tiny` with EDM's scalings, and all that they
draw by the draws that are stored beside the losses. The gradient of the first loss is that by the
generated samples, of the second that by the parameters of the fake denoiser. Needs PyTorch.
"""

import sys
import types
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import torch

from tests.support.flow_maps import tiny_params

COUNT = 16
SIGMA_DATA = 0.5


def draws():
    """Generated samples, noise, indices of the authors' grid of 1,000 levels, and labels."""
    rng = np.random.default_rng(0)
    return {
        "generated": 0.5 * rng.normal(size=(COUNT, 4, 4, 2)).astype(np.float32),
        "noise": rng.normal(size=(COUNT, 4, 4, 2)).astype(np.float32),
        "level": rng.integers(20, 981, COUNT).astype(np.int32),
        "labels": rng.integers(0, 3, COUNT).astype(np.int32),
    }


def guidance_class(folder):
    """The authors' class, without what only their training script needs."""
    stubs = {name: types.ModuleType(name) for name in ("main", "main.edm", "dnnlib")}
    stubs["main.edm.edm_network"] = types.ModuleType("main.edm.edm_network")
    stubs["main.edm.edm_network"].get_edm_network = None
    module = types.ModuleType("edm_guidance")
    with mock.patch.dict(sys.modules, stubs):
        source = Path(folder, "main", "edm", "edm_guidance.py").read_text()
        exec(source, module.__dict__)  # noqa: S102
    return module


def denoiser(params):
    """EDM's denoiser of `tests.support.flow_maps.tiny`, `(x, sigma, labels) -> x0 estimate`."""

    def call(x, sigma, labels):
        c_in = 1 / torch.sqrt(sigma**2 + SIGMA_DATA**2)
        c_skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
        c_out = sigma * SIGMA_DATA / torch.sqrt(sigma**2 + SIGMA_DATA**2)
        t = torch.log(sigma)
        scaled = c_in * x
        gain = params["gain"][labels][:, None, None, None]
        mirrored = torch.flip(scaled, [2])
        output = torch.tanh(gain * scaled + params["shift"] + torch.sin(2 * t) * mirrored)
        return c_skip * x + c_out * output

    return call


def parameters(factor):
    leaves = jax.tree.map(np.asarray, tiny_params())
    return {
        name: torch.tensor(factor * leaf, dtype=torch.float64, requires_grad=True)
        for name, leaf in leaves.items()
    }


def main(folder):
    given = draws()
    module = guidance_class(folder)
    guidance = module.EDMGuidance.__new__(module.EDMGuidance)
    torch.nn.Module.__init__(guidance)
    fake = parameters(0.9)
    grid = module.get_sigmas_karras(1000, 0.002, 80.0).double().flip(0)
    guidance.__dict__.update(
        real_unet=denoiser(parameters(0.8)),
        fake_unet=denoiser(fake),
        karras_sigmas=grid,
        num_train_timesteps=1000,
        min_step=20,
        max_step=980,
        sigma_data=SIGMA_DATA,
    )

    # Their code draws levels [B, 1, 1, 1] and noise: both are the stored ones.
    level = torch.as_tensor(given["level"]).long()
    noise = torch.as_tensor(given["noise"]).double()
    labels = torch.as_tensor(given["labels"]).long()
    generated = torch.as_tensor(given["generated"]).double().requires_grad_()
    with (
        mock.patch("torch.randint", lambda *_, **__: level[:, None, None, None]),
        mock.patch("torch.randn_like", lambda _: noise),
    ):
        matching = guidance.compute_distribution_matching_loss(generated, labels)[0]
        fitting = guidance.compute_loss_fake(generated, labels)[0]

    stored = {**given, "sigma": grid[level].numpy()}
    del stored["level"]
    stored["matching/loss"] = matching["loss_dm"].item()
    (gradient,) = torch.autograd.grad(matching["loss_dm"], [generated])
    stored["matching/generated"] = gradient.numpy()
    stored["fake/loss"] = fitting["loss_fake_mean"].item()
    used = {name: leaf for name, leaf in fake.items() if name != "span"}
    gradients = torch.autograd.grad(fitting["loss_fake_mean"], list(used.values()))
    for name, value in zip(used, gradients, strict=True):
        stored[f"fake/{name}"] = value.numpy()
    path = Path(__file__).parent / "distribution_matching.npz"
    np.savez_compressed(path, **{key: np.asarray(value) for key, value in stored.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
