"""Makes consistency_scheduler.npz: what diffusers' scheduler of that name computes, and from what.

The stored file was made with diffusers 0.42.1, torch 2.13.0 and NumPy 2.4.6 on an x86-64 CPU; it
names them in `index`. It holds one flat array per quantity, all cases one after the other, and in
`index` (JSON) each case's configuration and shapes. To make it again:

    pip install -e ".[parity]" && python tests/golden/make_goldens.py
"""

import json
from pathlib import Path
from unittest import mock

import diffusers
import numpy as np
import torch
from diffusers.schedulers import scheduling_consistency_models

# The configuration and the published sums of diffusers' own tests of this scheduler,
# tests/schedulers/test_scheduler_consistency_model.py at 58eb52c0803ea9af3abec60841c2a093bdf1f951.
LOOP_CONFIG = {"num_train_timesteps": 201, "sigma_min": 0.002, "sigma_max": 80.0}
LOOPS = {
    "one step": {
        "levels": {"num_inference_steps": 1},
        "start": 0,
        "sum": 192.7614,
        "mean": 0.2510,
    },
    "timesteps 106 and 0": {
        "levels": {"timesteps": [106, 0]},
        "start": 0,
        "sum": 347.6357,
        "mean": 0.4527,
    },
    "noised to step 8 of 10": {
        "levels": {"num_inference_steps": 10},
        "start": 8,
        "sum": 763.9186,
        "mean": 0.9947,
    },
}


def reference_case(
    config: dict, levels: dict, spacing: str, steps: list[int], shape: tuple, seed: int
) -> dict:
    """Returns all that diffusers computes at some steps of one run, with the inputs it had."""
    rng = np.random.default_rng(seed)
    scheduler = _scheduler(config, levels)
    sigmas = scheduler.sigmas.numpy()
    noise, model_output, sample = rng.standard_normal((3, len(steps), *shape), np.float32)
    sample *= sigmas[steps].reshape(-1, *[1] * len(shape))

    # Levels at which the scalings are compared: special ones, those of the run, and drawn ones.
    low = config["sigma_min"]
    high = config["sigma_max"]
    special = [0, low, (low * high) ** 0.5, 1, high]
    probes = np.float32([*special, *sigmas[steps], *rng.uniform(low, high, 3)])
    case = {
        "config": config,
        "levels": levels,
        "spacing": spacing,
        "steps": steps,
        "saved_config": json.loads(scheduler.to_json_string()),
        "init_noise_sigma": scheduler.init_noise_sigma,
        "sigmas": sigmas,
        "timesteps": scheduler.timesteps.numpy(),
        "probes": probes,
        "probe_timesteps": scheduler.sigma_to_t(probes.astype(np.float64)),
        "scalings": _stack(scheduler.get_scalings(torch.from_numpy(probes))),
        "boundary_scalings": _stack(
            scheduler.get_scalings_for_boundary_condition(torch.from_numpy(probes))
        ),
        "sample": sample,
        "model_output": model_output,
        "noise": noise,
    }
    inputs = zip(steps, *map(torch.from_numpy, (sample, model_output, noise)), strict=True)
    outputs = [_step(config, levels, *one) for one in inputs]
    return case | {name: _stack([one[name] for one in outputs]) for name in outputs[0]}


def reference_loop(levels: dict, start: int, **published: float) -> dict:
    """Runs one of diffusers' test loops.

    Returns its inputs, the noise drawn, its result and the published sums.
    """
    scheduler = _scheduler(LOOP_CONFIG, levels)
    ramp = torch.arange(768) / 768
    original = ramp.reshape(3, 8, 8, 4).permute(3, 0, 1, 2) * scheduler.init_noise_sigma
    added_noise = ramp.flip(-1).reshape(3, 8, 8, 4).permute(3, 0, 1, 2)
    generator = torch.manual_seed(0)
    timesteps = scheduler.timesteps[start:]
    noise = []

    def draw(*args, **kwargs):
        noise.append(torch.randn(original.shape, generator=generator))
        return noise[-1]

    sample = (
        scheduler.add_noise(original, added_noise, timesteps[:1]) if start else original
    )
    with mock.patch.object(scheduling_consistency_models, "randn_tensor", draw):
        for t in timesteps:
            model_output = scheduler.scale_model_input(sample, t) * (t / (t + 1)).float()
            sample = scheduler.step(model_output, t, sample).prev_sample
    # A single step draws nothing; the noise of the last step is for cmjax to ignore.
    noise = noise or [torch.randn(original.shape, generator=generator)]
    arrays = {
        "original": original,
        "added_noise": added_noise,
        "noise": torch.stack(noise),
        "result": sample,
    }
    arrays = {name: value.numpy() for name, value in arrays.items()}
    return {"config": LOOP_CONFIG, "levels": levels, "start": start, **published, **arrays}


def _scheduler(config, levels):
    scheduler = diffusers.CMStochasticIterativeScheduler(**config)
    scheduler.set_timesteps(**levels)
    return scheduler


def _step(config, levels, index, sample, model_output, noise):
    def step(scheduler, noise):
        def given(*args, **kwargs):
            return noise

        with mock.patch.object(scheduling_consistency_models, "randn_tensor", given):
            return scheduler.step(model_output, t, sample).prev_sample

    scheduler = _scheduler(config, levels)
    scheduler.set_begin_index(index)
    t = scheduler.timesteps[index]
    row = {
        "noisy": scheduler.add_noise(sample, noise, t[None]),
        "scaled": scheduler.scale_model_input(sample, t),
        "prev_sample": step(scheduler, noise),
    }

    # diffusers does not return x0, but a step without noise does, if the root that multiplies it is
    # a number: lift the next level away from sigma_min.
    lifted = _scheduler(config, levels)
    lifted.sigmas[index + 1] = config["sigma_max"]
    lifted.set_begin_index(index)
    lifted.scale_model_input(sample, t)  # or `step` warns
    return row | {"denoised": step(lifted, torch.zeros_like(noise))}


def _stack(tensors):
    return torch.stack(list(tensors)).numpy()


def _golden_cases():
    """The released models' grids and odd ones, with samples of ranks 1 to 4.

    Each comes with all three ways to choose levels.
    """
    released = [
        {"num_train_timesteps": n, "sigma_min": 0.002, "sigma_max": 80.0}
        for n in (18, 40, 151, 201)
    ]
    nan_at_the_end = {
        "num_train_timesteps": 40,
        "sigma_min": 0.0021,
        "sigma_max": 80.0,
        "s_noise": 1.011,
    }
    rng = np.random.default_rng(0)
    drawn = [
        {
            "num_train_timesteps": int(rng.integers(2, 100)),
            "sigma_min": float(np.exp(rng.uniform(np.log(5e-4), np.log(0.1)))),
            "sigma_max": float(rng.uniform(1, 200)),
            "sigma_data": float(rng.uniform(0.1, 2)),
            "s_noise": float(rng.uniform(0, 1.5)),
            "rho": float(rng.uniform(1, 10)),
            "clip_denoised": bool(rng.integers(2)),
        }
        for _ in range(15)
    ]
    for seed, config in enumerate([*released, nan_at_the_end, *drawn]):
        total = config["num_train_timesteps"]
        divisors = [n for n in range(1, total + 1) if total % n == 0]
        chosen = rng.choice(total, size=min(total, int(rng.integers(1, 6))), replace=False)
        ways = {
            "leading": {"num_inference_steps": int(rng.integers(1, total + 1))},
            "linspace": {"num_inference_steps": int(rng.choice(divisors))},
            "explicit": {"timesteps": sorted(chosen.tolist(), reverse=True)},
        }
        for way, levels in ways.items():
            n = levels.get("num_inference_steps") or len(levels["timesteps"])
            spacing = "linspace" if way == "explicit" else way
            steps = sorted({0, max(n - 2, 0), n - 1})
            shape = [(2, 3), (3,), (2, 1, 2), (1, 2, 2, 1)][seed % 4]
            yield reference_case(config, levels, spacing, steps, shape, seed)


def _pack(entries):
    names = [name for name, value in entries[0].items() if isinstance(value, np.ndarray)]
    shapes = [{name: entry[name].shape for name in names} for entry in entries]
    rest = [
        {key: value for key, value in entry.items() if key not in names}
        for entry in entries
    ]
    arrays = {
        name: np.concatenate([entry[name].ravel() for entry in entries]) for name in names
    }
    return [
        {**one, "shapes": shape} for one, shape in zip(rest, shapes, strict=True)
    ], arrays


def main():
    """Writes the file beside this script."""
    cases, arrays = _pack(list(_golden_cases()))
    loops, loop_arrays = _pack(
        [{"name": name, **reference_loop(**loop)} for name, loop in LOOPS.items()]
    )
    versions = {
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    index = json.dumps({"versions": versions, "case": cases, "loop": loops})
    arrays = {f"case.{name}": value for name, value in arrays.items()}
    arrays |= {f"loop.{name}": value for name, value in loop_arrays.items()}
    np.savez_compressed(
        Path(__file__).with_name("consistency_scheduler.npz"), index=index, **arrays
    )


if __name__ == "__main__":
    main()
