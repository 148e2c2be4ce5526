"""Makes trajectory.npz: the loss of trajectory models and its gradients, by their authors' code.

The authors' code is not part of this repository; check it out beside it:

    https://github.com/sony/ctm at 87cca3be93df8dc1e6797175bf4f404dfb536f28

    PYTHONPATH=. python tests/golden/make_trajectory_goldens.py CTM

Their network is replaced by `tests.support.flow_maps.tiny`, their LPIPS by the mean squared error,
and all that they draw by the draws that are stored beside the losses. Needs PyTorch. In the
target's first jump their code takes the trained parameters by default, the paper the moving
average (equation 8); here it is set to the latter (`ctm_target_inner_type`).
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
LEVELS = 12
SOLVER_STEPS = 2


def draws():
    """Data, noise, grid indices and levels, each sample's own."""
    rng = np.random.default_rng(0)
    start = rng.integers(0, LEVELS - 1 - SOLVER_STEPS, COUNT)
    end = start + rng.integers(SOLVER_STEPS, LEVELS - start)
    return {
        "data": 0.5 * rng.normal(size=(COUNT, 4, 4, 2)).astype(np.float32),
        "noise": rng.normal(size=(COUNT, 4, 4, 2)).astype(np.float32),
        "denoising_noise": rng.normal(size=(COUNT, 4, 4, 2)).astype(np.float32),
        "sigma": np.exp(1.2 * rng.normal(size=COUNT) - 1.2).astype(np.float32),
        "start": start.astype(np.int32),
        "end": end.astype(np.int32),
        "labels": rng.integers(0, 3, COUNT).astype(np.int32),
    }


def karras_diffusion(folder):
    """The authors' module, without what only their training script needs."""
    stubs = {"cm": types.ModuleType("cm"), "blobfile": types.ModuleType("blobfile")}
    for name in ("dist_util", "logger", "nn", "script_util", "enc_dec_lib"):
        stubs[f"cm.{name}"] = types.ModuleType(f"cm.{name}")
        setattr(stubs["cm"], name, stubs[f"cm.{name}"])
    stubs["cm"].__path__ = []
    stubs["cm.dist_util"].dev = lambda: "cpu"
    stubs["cm.enc_dec_lib"].get_xl_feature = None
    stubs["cm.enc_dec_lib"].gaussian_blur = None

    # The helpers are their own; the module is one of the package "cm".
    path = Path(folder, "code", "cm")
    exec((path / "nn.py").read_text(), stubs["cm.nn"].__dict__)  # noqa: S102
    module = types.ModuleType("cm.karras_diffusion")
    module.__package__ = "cm"
    with mock.patch.dict(sys.modules, stubs):
        exec((path / "karras_diffusion.py").read_text(), module.__dict__)  # noqa: S102
    return module


def tiny(params, x, t, r, labels):
    """`tests.support.flow_maps.tiny` in PyTorch, given a 250th of the times."""
    t = t[:, None, None, None] / 250
    r = r[:, None, None, None] / 250
    gain = params["gain"][labels][:, None, None, None]
    inner = gain * x + params["shift"] + torch.sin(2 * t) * torch.flip(x, [2])
    return torch.tanh(inner) + params["span"] * (t - r) * torch.cos(x + r)


def network(params):
    """A network of the authors' kind; one that takes no second time takes the first twice."""

    def call(x, t, s=None, teacher=False, y=None):
        return tiny(params, x, t, t if s is None else s, y)

    return call


def losses_of(module, given):
    """(consistency loss, denoising loss), and parameters, with which both have a gradient."""
    args = types.SimpleNamespace(
        apply_adaptive_weight=False,
        ctm_estimate_inner_type="model",
        ctm_estimate_outer_type="target_model_sg",
        ctm_target_inner_type="target_model_sg",
        ctm_target_matching=False,
        diffusion_training=True,
        diffusion_weight_schedule="karras_weight",
        g_learning_period=1,
        gan_training=False,
        inner_parametrization="edm",
        large_log=False,
        loss_norm="lpips",
        outer_parametrization="euler",
        rho=7,
        save_png=False,
        self_learn=False,
        sigma_data=0.5,
        sigma_max=80.0,
        sigma_min=0.002,
        start_scales=LEVELS,
        target_subtract=False,
        time_continuous=False,
        training_mode="ctm",
        weight_schedule="uniform",
        weight_schedule_multiplier=1.0,
    )
    wide = {name: torch.as_tensor(value) for name, value in given.items()}
    wide = {
        name: value.double() if value.is_floating_point() else value.long()
        for name, value in wide.items()
    }
    jumps = types.SimpleNamespace(
        sample_t=lambda *_: (wide["start"], None), sample_s=lambda *_, **__: wide["end"]
    )
    levels = types.SimpleNamespace(sample=lambda *_: (wide["sigma"], None))

    # In place of LPIPS, which gets both pictures mapped to [0, 1].
    def squared_error(a, b):
        return (2 * (a - b)).square().mean(dim=(1, 2, 3))

    def parameters(factor):
        leaves = jax.tree.map(np.asarray, tiny_params())
        return {
            name: torch.tensor(factor * leaf, dtype=torch.float64)
            for name, leaf in leaves.items()
        }

    trained = {name: leaf.requires_grad_() for name, leaf in parameters(1.0).items()}
    diffusion = module.KarrasDenoiser(args, jumps, levels, squared_error)
    diffusion.teacher_model = network(parameters(0.8))
    with (
        mock.patch("torch.nn.functional.interpolate", lambda x, **_: x),
        mock.patch("torch.randn_like", lambda _: wide["denoising_noise"]),
    ):
        terms = diffusion.ctm_losses(
            0,
            network(trained),
            wide["data"],
            {"y": wide["labels"]},
            network(parameters(0.9)),
            wide["noise"],
            num_heun_step=SOLVER_STEPS,
            diffusion_training_=True,
        )
    return terms["consistency_loss"].mean(), terms["denoising_loss"].mean(), trained


def main(folder):
    given = draws()
    stored = dict(given)
    *found, trained = losses_of(karras_diffusion(folder), given)
    for name, loss in zip(("jump", "denoising"), found, strict=True):
        print(name, loss.item())
        gradient = torch.autograd.grad(loss, list(trained.values()), retain_graph=True)
        stored[f"{name}/loss"] = loss.item()
        for key, value in zip(trained, gradient, strict=True):
            stored[f"{name}/{key}"] = value.numpy()
    path = Path(__file__).parent / "trajectory.npz"
    np.savez_compressed(path, **{key: np.asarray(value) for key, value in stored.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
