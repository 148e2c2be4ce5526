"""Makes samplers.npz: what the samplers of diffusers compute in a run, and from what.

The file was made with diffusers 0.42.1, torch 2.13.0 and NumPy 2.4.6 on an x86-64 CPU; it names
them in `index`, which also holds (JSON) the class, configuration and shapes of each case. To add
classes to it:

    pip install -e ".[parity]" && python -m tests.golden.make_sampler_goldens
"""

import contextlib
import dataclasses
import json
import math
import sys
import warnings
from fractions import Fraction
from pathlib import Path
from unittest import mock

import diffusers
import numpy as np
import torch

from tests.golden.packing import pack
from tests.support.mended_schedulers import mend_pndm, mend_third_order
from tests.support.reference_schedulers import reference_class
from tests.support.sampler_cases import (
    FINE,
    FRESH,
    LOG_SNR,
    SAMPLERS,
    SCORE_SDE,
    Draw,
    draw_case,
)

CASES = 12  # stored, of each class
LARGEST_ANGLE = float(np.nextafter(np.float32(math.pi / 2), np.float32(0)))

# diffusers warns of options that only cmjax has, and of times off the grid of distillation.
diffusers.logging.set_verbosity_error()


def reference_case(
    name: str, config: dict, ours: dict, levels: dict, shape: tuple, double: bool, seed: int
) -> dict:
    """Returns all that diffusers computes in one run, with the inputs it was computed from.

    Args:
        name: of the class.
        config: its options.
        ours: options that only cmjax has: arguments of `step` in diffusers.
        levels: arguments of `set_timesteps`.
        shape: of the samples.
        double: whether to run diffusers in float64, its class as if it said float64 for float32;
            see `Draw.fine`.
        seed: of samples, of what the network returns, and of noise.
    """
    options = config
    if name == "RePaintScheduler":
        options = config | {"trained_betas": _array(config.get("trained_betas"))}
    with _precision(double, name):
        scheduler = reference_class(name)(**options)
        levels = _set_timesteps(scheduler, levels, ours)
    saved_config = json.loads(scheduler.to_json_string())
    mend_third_order(scheduler)
    if name == "PNDMScheduler":
        mend_pndm(scheduler)
    if hasattr(scheduler, "set_begin_index"):
        # As pipelines do; else it looks for the time, which rounding may have doubled.
        scheduler.set_begin_index(0)
    times = _times(scheduler)
    case = {
        "name": name,
        "config": config,
        "ours": ours,
        "levels": levels,
        "saved_config": saved_config,
        "double": double,
        "timesteps": times.numpy(),
        **{key: value.numpy() for key, value in _levels(scheduler).items()},
    }
    if hasattr(scheduler, "init_noise_sigma"):
        case["init_noise_sigma"] = float(scheduler.init_noise_sigma) * _unit(scheduler)

    # The run, each step from the float32 sample that cmjax starts it from.
    rng = np.random.default_rng(seed)
    first, *draws = rng.standard_normal((2 * len(times) + 1, *shape), np.float32)
    sample = np.float32(first * case.get("init_noise_sigma", 1.0))
    rows = []
    for index in range(len(times)):
        output, noise = draws[2 * index : 2 * index + 2]
        rows.append(_step(scheduler, case, index, sample, output, noise))
        sample = np.float32(rows[-1]["prev_sample"])
    case |= {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    for key, value in case.items():
        if isinstance(value, np.ndarray):
            case[key] = np.float32(value)
    return case


@contextlib.contextmanager
def _precision(double, name):
    single = torch.float32
    # Levels that NumPy would round before their squares are subtracted.
    is_wide = name in LOG_SNR or (double and name in FRESH)
    with (
        mock.patch.object(torch, "float32", torch.float64 if double else single),
        mock.patch.object(np, "float32", np.float64 if is_wide else np.float32),
        warnings.catch_warnings(),
    ):
        # Of "dpmsolver" as a deprecated algorithm_type.
        warnings.simplefilter("ignore", FutureWarning)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(single)


def _array(values):
    """A list as an array of NumPy, the only one that diffusers' RePaint takes."""
    return None if values is None else np.array(values)


def _set_timesteps(scheduler, levels, ours):
    """Returns the arguments that mean the same to cmjax."""
    name = type(scheduler).__name__
    if name == "SCMScheduler":
        listed = levels.get("timesteps")
        n = levels.get("num_inference_steps") or len(listed)
        options = {"timesteps": None, "max_timesteps": None, "intermediate_timesteps": None}
        if listed:
            options["timesteps"] = [*listed, 0.0]
        else:
            options["max_timesteps"] = LARGEST_ANGLE  # the default, 1.5708, is above pi/2
            if n == 2:
                # The default, which fails for any other n.
                options["intermediate_timesteps"] = 1.3
        scheduler.set_timesteps(n, **options)
    elif name == "EulerDiscreteScheduler" and "sigmas" in levels:
        # The end is listed too.
        is_clean = scheduler.config.final_sigmas_type == "zero"
        end = 0.0 if is_clean else float(scheduler.sigmas[-2])
        scheduler.set_timesteps(sigmas=[*levels["sigmas"], end])
    elif name == "EDMEulerScheduler" and "sigmas" in levels:
        scheduler.set_timesteps(sigmas=torch.tensor(levels["sigmas"]))
        return {"sigmas": scheduler.sigmas[:-1].tolist()}
    elif name == "ScoreSdeVeScheduler":
        scheduler.set_timesteps(**levels)
        scheduler.set_sigmas(**levels)
    elif name == "UniPCMultistepScheduler" and "sigmas" in levels:
        scheduler.set_timesteps(sigmas=np.array(levels["sigmas"]))
    elif name == "RePaintScheduler":
        jumps = {"jump_length": 10, "jump_n_sample": 10, **ours}
        scheduler.set_timesteps(**levels, **jumps)

        # The times of network calls are those below the time before.
        times = scheduler.timesteps
        before = torch.cat([times[:1] + 1, times[:-1]])
        scheduler.timesteps = times[times < before]
    else:
        scheduler.set_timesteps(**levels)
    return levels


def _times(scheduler):
    """What the network is given at each call."""
    name = type(scheduler).__name__
    if name == "SCMScheduler":
        return scheduler.timesteps[:-1]  # the end is listed too
    if name == "ScoreSdeVeScheduler":
        # The levels of the corrector's calls and the predictor's, as in ScoreSdeVePipeline.
        return scheduler.sigmas.repeat_interleave(scheduler.config.correct_steps + 1)
    if name == "ScoreSdeVpScheduler":
        # As in the authors' code; diffusers has no pipeline.
        return 999 * scheduler.timesteps
    return scheduler.timesteps


def _unit(scheduler):
    """What diffusers' samples are divided by.

    Those of SCM have variance 1 there; what goes in here is multiplied by sigma_data, as its
    callers do.
    """
    is_scm = type(scheduler).__name__ == "SCMScheduler"
    return scheduler.config.sigma_data if is_scm else 1.0


def _levels(scheduler):
    """The levels that diffusers has, of each call, and maybe of the end."""
    if hasattr(scheduler, "sigmas_interpol"):
        levels = torch.stack([scheduler.sigmas, scheduler.sigmas_interpol])[:, :-2].clone()
        # Every second call is between two levels, in a list that starts one later in the one class.
        offset = 0 if type(scheduler).__name__ == "KDPM2AncestralDiscreteScheduler" else 1
        levels[0, 1::2] = levels[1, offset::2]
        return {"sigmas": levels[0]}
    if hasattr(scheduler, "sigmas_of_calls"):
        return {"sigmas": scheduler.sigmas_of_calls}
    if type(scheduler).__name__ == "ScoreSdeVeScheduler":
        return {"sigmas": _times(scheduler)}
    if type(scheduler).__name__ == "ScoreSdeVpScheduler":
        return {}  # they are computed within a step
    if type(scheduler).__name__ in LOG_SNR:
        # Its sigmas are sigma / alpha, or those of flow paths.
        alphas, sigmas = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas)
        return {"alphas": alphas, "sigmas": sigmas}
    if type(scheduler).__name__ == "IPNDMScheduler":
        return {"alphas": scheduler.alphas, "sigmas": scheduler.betas}
    if scheduler.config.get("invert_sigmas"):
        return {}  # 1 minus a small noise level keeps few digits of it; the times are compared
    if hasattr(scheduler, "sigmas"):
        # The levels of "log_linear" have one more at the end, which no step goes to.
        return {"sigmas": scheduler.sigmas[: len(scheduler.timesteps) + 1]}
    if hasattr(scheduler, "alphas_cumprod"):
        variance = scheduler.alphas_cumprod[scheduler.timesteps]
        return {"alphas": variance**0.5, "sigmas": (1 - variance) ** 0.5}
    return {}


def _step(scheduler, case, index, sample, output, noise):
    """Takes one step; returns the arrays that went in and came out."""
    name = case["name"]
    if name in SCORE_SDE:
        return _score_sde_step(scheduler, case, index, sample, output, noise)
    dtype = torch.float64 if case["double"] else torch.float32
    sample, output, noise = (
        torch.from_numpy(array).to(dtype) for array in (sample, output, noise)
    )
    row = _network_call(scheduler, case, index, sample, output, noise)
    if name == "RePaintScheduler":
        row |= _repainted(scheduler, index, sample, row["model_output"], noise)
        return {key: value.numpy() for key, value in row.items()}

    # The step, with the noise given to the class of diffusers.
    t = scheduler.timesteps[index]
    arguments = _arguments_of_step(scheduler, case, index, noise)
    if name in ("EDMDPMSolverMultistepScheduler", "DDPMScheduler"):
        is_last = index == len(case["timesteps"]) - 1
        noise = 0 * noise if is_last else noise  # cmjax adds no noise on the last step
    output = row["model_output"] * _unit(scheduler)
    is_learned = _has_learned_variance(scheduler)
    if is_learned:
        # diffusers has channels first.
        output = output.movedim(-1, 1)
        sample = sample.movedim(-1, 1)
        noise = noise.movedim(-1, 1)
    bases = [base.__module__ for base in type(scheduler).__mro__]
    module = sys.modules[next(base for base in bases if base.startswith("diffusers"))]
    with mock.patch.object(
        module, "randn_tensor", lambda *args, **kwargs: noise, create=True
    ):
        result = scheduler.step(output, t, sample, **arguments)
    scheduler.num_inference_steps = len(scheduler.timesteps)

    # What came out, channels last.
    row["prev_sample"] = result.prev_sample
    denoised = _denoised(scheduler, result)
    if denoised is not None:
        row["denoised"] = denoised
    if is_learned:
        row["prev_sample"] = row["prev_sample"].movedim(1, -1)
        row["denoised"] = row["denoised"].movedim(1, -1)
    return {key: value.numpy() for key, value in row.items()}


def _network_call(scheduler, case, index, sample, output, noise):
    """What the network sees, what it returns, the noise of the step, and a noised image."""
    name = case["name"]
    t = scheduler.timesteps[index]
    if hasattr(scheduler, "scale_model_input"):
        scaled = scheduler.scale_model_input(sample, t)
    else:
        scaled = sample / _unit(scheduler)
    if hasattr(scheduler, "alphas_cumprod"):
        output = _prediction(case, index, scaled, output)
    row = {"sample": sample, "scaled": scaled, "model_output": output, "noise": noise}
    if name == "RePaintScheduler":
        return row  # which is noised in `_repainted`

    if _has_learned_variance(scheduler):
        # After the prediction comes the variance: from -1 to 1, or a variance itself.
        variance = torch.tanh(output)
        is_range = scheduler.config.variance_type == "learned_range"
        variance = variance if is_range else variance**2
        row["model_output"] = torch.cat([output, variance], dim=-1)

    if name in ("DPMSolverMultistepInverseScheduler", "KarrasVeScheduler"):
        pass  # the one noises to levels of times that it has left out, the other to none
    elif hasattr(scheduler, "add_noise"):
        row["noisy"] = scheduler.add_noise(output, noise, t[None])
    elif hasattr(scheduler, "scale_noise") and "sigmas" in case:
        row["noisy"] = scheduler.scale_noise(output, t[None], noise)
    return row


def _has_learned_variance(scheduler):
    return (scheduler.config.get("variance_type") or "").startswith("learned")


def _arguments_of_step(scheduler, case, index, noise):
    """Options that cmjax's classes have, which in diffusers are arguments of `step`.

    Those that diffusers keeps elsewhere are set there.
    """
    name = case["name"]
    t = scheduler.timesteps[index]
    last = index == len(case["timesteps"]) - 1
    arguments = case["ours"]
    if name == "TCDScheduler":
        etas = np.broadcast_to(arguments["eta"], len(case["timesteps"]))
        return {"eta": float(etas[index])}
    if name == "DDIMScheduler":
        arguments = arguments | {"variance_noise": noise}
        if last and not scheduler.config.set_alpha_to_one:
            arguments["eta"] = 0.0  # cmjax adds no noise on the last step
        _go_to(scheduler, t, -1 if last else int(scheduler.timesteps[index + 1]))
    elif name == "DDIMInverseScheduler":
        _go_to(scheduler, t, int(scheduler.timesteps[index - 1]) if index else -1)
    elif name in LOG_SNR and last and "sde-" in scheduler.config.get("algorithm_type", ""):
        # cmjax's last step is that of the ODE.
        algorithm = scheduler.config.algorithm_type.removeprefix("sde-")
        scheduler.register_to_config(algorithm_type=algorithm)
    elif name == "DPMSolverSDEScheduler":
        scheduler.noise_sampler.fresh = noise
    return arguments


def _denoised(scheduler, result):
    """The x0 estimate of a step, or None where diffusers does not have the one of cmjax."""
    if getattr(scheduler, "predict_x0", True) is False or _by_eps(scheduler):
        return None  # it keeps eps
    if hasattr(scheduler, "model_outputs"):
        return scheduler.model_outputs[-1]  # that have been made x0 estimates
    if type(scheduler).__name__ == "DDIMInverseScheduler":
        return None  # cmjax has the estimate at the level that the network is given
    return result.get("denoised", result.get("pred_original_sample"))


def _score_sde_step(scheduler, case, index, sample, output, noise):
    """Takes one call of the reference's loop, for each sample as a batch of one."""
    if case["name"] == "ScoreSdeVeScheduler":
        # The score that says that x0 is the output, so that samples keep the size of their level.
        output = np.float32((output - sample) / case["timesteps"][index] ** 2)
    calls = scheduler.config.get("correct_steps", 0) + 1
    t = scheduler.timesteps[index // calls]
    module = sys.modules[type(scheduler).__module__]
    ends = []
    for arrays in zip(sample, output, noise, strict=True):
        x, prediction, z = (torch.from_numpy(array[None]).double() for array in arrays)
        with mock.patch.object(module, "randn_tensor", lambda *args, z=z, **kwargs: z):
            if case["name"] == "ScoreSdeVpScheduler":
                moved, mean = scheduler.step_pred(prediction, x, t)
            elif index % calls == calls - 1:
                moved, mean = scheduler.step_pred(prediction, t, x, return_dict=False)
            else:
                (moved,) = scheduler.step_correct(prediction, x, return_dict=False)

        # The pipeline returns the last mean, without noise.
        is_last = index == len(case["timesteps"]) - 1
        ends.append(mean if is_last else moved)
    row = {"sample": sample, "scaled": sample, "model_output": output, "noise": noise}
    return row | {"prev_sample": torch.cat(ends).numpy()}


def _repainted(scheduler, index, sample, output, noise):
    """A step of RePaint with the jump after it; their noises together are the `noise` of one step.

    The image and the mask are drawn anew at every step.
    """
    rng = np.random.default_rng(index)
    dtype = sample.dtype
    original = torch.from_numpy(np.clip(rng.standard_normal(sample.shape), -1, 1)).to(dtype)
    mask = torch.from_numpy(rng.integers(0, 2, sample.shape)).to(dtype)

    # From t the step goes down by the stride, or to x0; the jump goes up to the next call's time.
    t = int(scheduler.timesteps[index])
    n = scheduler.num_inference_steps
    total = scheduler.config.num_train_timesteps
    low = max(t - total // n, -1)
    high = low
    if index + 1 < len(scheduler.timesteps):
        high = int(scheduler.timesteps[index + 1])
    draws = torch.from_numpy(rng.standard_normal((high - low, *sample.shape))).to(dtype)

    def run(*noises):
        module = sys.modules[type(scheduler).__module__]
        drawn = mock.Mock(side_effect=noises)
        with mock.patch.object(module, "randn_tensor", drawn):
            result = scheduler.step(output, t, sample, original, mask)
            x = result.prev_sample

            # One training time after the other: where they are several at once, diffusers takes the
            # betas of times above those that it goes to.
            scheduler.num_inference_steps = total
            for time in range(low + 1, high + 1):
                x = scheduler.undo_step(x, time)
            scheduler.num_inference_steps = n
        return x, result.pred_original_sample

    theirs, denoised = run(noise, *draws)
    quiet, _ = run(0 * noise, *(0 * draws))
    loud, _ = run(torch.ones_like(noise), *(0 * draws))

    # The variance of what is added by the step, to which the jump adds 1 - kept^2.
    kept = torch.prod(1 - scheduler.betas[low + 1 : high + 1])
    weight = ((loud - quiet) ** 2 + 1 - kept) ** 0.5
    together = torch.where(weight > 0, (theirs - quiet) / weight, noise)
    row = {"noise": together, "prev_sample": theirs, "denoised": denoised}
    return row | {"original": original, "mask": mask}


def _go_to(scheduler, t, end):
    """Makes diffusers go from time t to `end`, also where that is not N // n away."""
    total = scheduler.config.num_train_timesteps
    if max(int(t) - total // len(scheduler.timesteps), -1) != end:
        scheduler.num_inference_steps = Fraction(total, int(t) - end)


def _prediction(case, index, scaled, v):
    """What the network returns for v: like v, x0 and the noise are of the sample's size."""
    sigma = float(case["sigmas"][index])
    alpha = float(case["alphas"][index]) if "alphas" in case else 1.0
    size = math.hypot(alpha, sigma)
    alpha = alpha / size
    sigma = sigma / size
    outputs = {
        "epsilon": alpha * v + sigma * scaled,
        "sample": alpha * scaled - sigma * v,
        "v_prediction": v,
        "flow_prediction": v,
    }
    kind = case["saved_config"].get("prediction_type", "epsilon")
    return outputs[kind].float().to(v.dtype)


def _by_eps(scheduler):
    """Whether the solver integrates eps instead of x0."""
    by_eps = ("dpmsolver", "sde-dpmsolver", "deis")
    return scheduler.config.get("algorithm_type", "") in by_eps


def main():
    """Adds the cases of classes that the file beside this script does not have yet."""
    path = Path(__file__).with_name("samplers.npz")
    with np.load(path, allow_pickle=False) as file:
        index = json.loads(str(file["index"]))
        arrays = {key: file[key] for key in file.files if key != "index"}
    known = {case["name"] for case in index["cases"]}
    for name in SAMPLERS:
        if name in known:
            continue

        # A seed of its own: no class changes the cases of others.
        cases, added = pack(_cases(name, np.random.default_rng(list(name.encode()))))
        index["cases"] += cases
        for key, values in added.items():
            before = arrays.get(key, np.zeros(0, np.float32))
            arrays[key] = np.concatenate([before, values])
    np.savez_compressed(path, index=json.dumps(index), **arrays)


def _cases(name, rng):
    """The stored cases of a class, every second one with `Draw.fine`."""
    draw = Draw(
        lambda options: options[rng.integers(len(options))],
        lambda low, high: float(rng.uniform(low, high)),
    )
    cases = []
    for seed in range(CASES):
        fine = seed % 2 == 1 and name in FINE
        drawn = draw_case(name, dataclasses.replace(draw, fine=fine))
        cases.append(reference_case(**drawn, seed=seed))
    return cases


if __name__ == "__main__":
    main()
