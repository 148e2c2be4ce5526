"""How to draw configurations of the samplers that diffusers has too, and runs of them.

Left out is what diffusers cannot do, or does in a way of its own; tests/parity/test_samplers.py
says what. The order of the draws decides what tests/golden/make_sampler_goldens.py stores.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from cmjax.schedulers import SCHEDULERS
from cmjax.schedulers.log_snr import LogSNRScheduler
from tests.support.shared_options import (
    SCHEDULES,
    STEPS,
    TYPES,
    bounds,
    clipped,
    discrete,
    distilled,
    distilled_levels,
    edm,
    edm_levels,
    flow,
    flow_levels,
    flow_match,
    flow_match_levels,
    has_own_levels,
    log_snr,
    log_snr_steps,
    other_levels,
    spaced_steps,
    spacing,
    starts_single_steps_high,
    zero_snr,
)

SHAPES = [(2, 3, 1), (1, 2, 2)]


@dataclasses.dataclass(frozen=True)
class Draw:
    """Where random choices come from: NumPy for the stored goldens, hypothesis in tests/parity.

    With `fine`, levels are drawn that float32 rounds by more than some 5e-6 in diffusers, so that
    it must make them in float64 to be compared with. In float32, 1 - beta keeps three digits of a
    beta of 1e-4, and 1 - 0.999, where the cosine schedule ends, four; EDM's grid is a difference of
    numbers as large as sigma_max^(1/rho).

    With `first`, options are left out that the samplers whose goldens were stored first did not
    have then, so that these goldens stay as they are.
    """

    pick: Callable[[Sequence], Any]
    between: Callable[[float, float], float]
    fine: bool = False
    first: bool = False

    def chance(self, times: int = 2) -> bool:
        """Returns True about once in so many times."""
        return self.pick([False] * (times - 1) + [True])

    def some(self, options: Sequence) -> list:
        """Returns one to four of the options, descending."""
        chosen = {self.pick(options) for _ in range(self.pick(range(1, 5)))}
        return sorted(chosen, reverse=True)


# A function for each sampler. It returns options of the class in diffusers, options that only cmjax
# has, and arguments of set_timesteps.


def lcm(draw):
    config = distilled(draw) | bounds(draw) | {"timestep_scaling": draw.between(0.5, 20)}
    return config, {}, distilled_levels(draw, config)


def tcd(draw):
    config = distilled(draw)  # without bounds, which are of no effect in diffusers
    levels = distilled_levels(draw, config)
    if draw.chance():
        return config, {"eta": draw.pick(range(11)) / 10}, levels
    n = levels.get("num_inference_steps") or len(levels["timesteps"])
    return config, {"eta": [draw.between(0, 1) for _ in range(n)]}, levels


def ddim(draw):
    config = (
        discrete(draw) | bounds(draw) | spacing(draw) | {"set_alpha_to_one": draw.chance()}
    )
    config |= zero_snr(draw, config)

    # With eta = 1 and zero SNR the first step is all noise; diffusers adds the root of a rounding
    # error to it.
    largest = 9 if config["rescale_betas_zero_snr"] else 10
    eta = draw.pick(range(largest + 1)) / 10
    ours = {"eta": eta, "use_clipped_model_output": draw.chance()}
    return config, ours, spaced_steps(draw, config)


def scm(draw):
    config = {"sigma_data": draw.between(0.05, 2)}
    if draw.chance():
        return config, {}, {"timesteps": [k / 20 for k in draw.some(range(1, 32))]}
    return config, {}, {"num_inference_steps": draw.pick(STEPS)}


def flow_map(draw):
    config = flow(draw)
    return config, {}, flow_levels(draw, config)


def flow_match_lcm(draw):
    config = flow_match(draw)
    return config, {}, flow_match_levels(draw, config)


def flow_match_euler(draw):
    config = flow_match(draw)
    config["invert_sigmas"] = draw.chance(3)
    # diffusers takes inverted levels for noise levels where it noises.
    config["stochastic_sampling"] = not config["invert_sigmas"] and draw.chance()
    return config, {}, flow_match_levels(draw, config)


def flow_match_heun(draw):
    return flow(draw), {}, {"num_inference_steps": draw.pick([*STEPS, 12])}


def edm_euler(draw):
    config = edm(dataclasses.replace(draw, fine=True))  # its grid is made in float64 anyway
    if starts_single_steps_high(config) and draw.chance():
        # Places on the grid, from 0 to 1 ascending: what diffusers calls sigmas.
        return config, {}, {"sigmas": [1 - k / 20 for k in draw.some(range(21))]}
    return config, {}, edm_levels(draw, config)


def edm_dpm_multistep(draw):
    config = edm(draw)
    config["solver_order"] = draw.pick([1, 2, 3])
    config["solver_type"] = draw.pick(["midpoint", "heun"])
    for name in ("lower_order_final", "euler_at_final", "thresholding"):
        config[name] = draw.chance()
    config["algorithm_type"] = draw.pick(["dpmsolver++", "sde-dpmsolver++"])
    if config["algorithm_type"] == "sde-dpmsolver++" and config["solver_order"] == 3:
        config["solver_order"] = 2  # no third order in diffusers
    config["dynamic_thresholding_ratio"] = draw.between(0.5, 1)
    config["sample_max_value"] = draw.between(1, 3)
    if draw.chance(10):
        return config, {}, {"num_inference_steps": 15}  # from which on no order is lowered
    return config, {}, edm_levels(draw, config)


def heun(draw):
    config = (
        discrete(draw, schedules=[*SCHEDULES, "exp"]) | spacing(draw) | other_levels(draw)
    )
    config |= {"clip_sample": draw.chance(), "clip_sample_range": draw.between(0.3, 2)}
    if not any(name.startswith("use_") for name in config) and draw.chance():
        return config, {}, {"timesteps": draw.some(range(config["num_train_timesteps"]))}
    return config, {}, spaced_steps(draw, config)


def kdpm2(draw):
    config = discrete(draw, TYPES[::2]) | spacing(draw) | other_levels(draw)
    return config, {}, spaced_steps(draw, config)


def euler_ancestral(draw):
    config = discrete(draw, TYPES[::2]) | spacing(draw)
    return config | zero_snr(draw, config), {}, spaced_steps(draw, config)


def dpm_multistep(draw):
    config = log_snr(draw, ["use_lu_lambdas", "use_flow_sigmas"]) | spacing(draw)
    config |= {"solver_type": draw.pick(["midpoint", "heun"])}
    config |= zero_snr(draw, config) | {"euler_at_final": draw.chance()}
    config["algorithm_type"] = draw.pick(
        ["dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"]
    )
    if "use_flow_sigmas" in config:
        # With "sigma_min" diffusers ends at the lowest level of the betas, be it above the last.
        config["algorithm_type"] = draw.pick(["dpmsolver++", "sde-dpmsolver++"])
    elif config["algorithm_type"].endswith("solver"):
        # diffusers weighs samples and noise by up to 4096 there, which cancels to fewer digits.
        config["rescale_betas_zero_snr"] = False
        config["final_sigmas_type"] = "sigma_min"  # "zero" is an error in diffusers
        if config["algorithm_type"].startswith("sde") and config["solver_order"] == 3:
            config["solver_order"] = 2  # no third order in diffusers
    else:
        config["final_sigmas_type"] = draw.pick(["zero", "sigma_min"])
    config |= clipped(draw, config)
    return config, {}, log_snr_steps(draw, config, explicit=True)


def dpm_singlestep(draw):
    config = log_snr(draw, ["use_flow_sigmas"])
    config |= {"solver_type": draw.pick(["midpoint", "heun"])}
    config["algorithm_type"] = draw.pick(["dpmsolver++", "dpmsolver", "sde-dpmsolver++"])
    if "use_flow_sigmas" in config:
        config["algorithm_type"] = draw.pick(["dpmsolver++", "sde-dpmsolver++"])
    elif config["algorithm_type"] == "dpmsolver":
        config["final_sigmas_type"] = "sigma_min"
        config["thresholding"] = False  # diffusers has no time to threshold with
    else:
        config["final_sigmas_type"] = draw.pick(["zero", "sigma_min"])
    config |= clipped(draw, config)
    levels = log_snr_steps(draw, config, explicit=True)

    # diffusers changes its own configuration where the order does not divide the calls.
    n = levels.get("num_inference_steps") or len(levels["timesteps"])
    if config.get("final_sigmas_type", "zero") == "zero" or n % config["solver_order"]:
        config["lower_order_final"] = True
    return config, {}, levels


def dpm_multistep_inverse(draw):
    config = log_snr(draw, []) | spacing(draw)  # its flow levels fall
    config |= {"solver_type": draw.pick(["midpoint", "heun"])}
    config |= {"euler_at_final": draw.chance()}
    config["algorithm_type"] = draw.pick(["dpmsolver++", "dpmsolver"])
    config |= clipped(draw, config)
    if has_own_levels(config):
        # With more of them, diffusers drops times that are rounded to the same number.
        config.pop("trained_betas", None)
        return config, {}, {"num_inference_steps": draw.pick([2, 3])}
    return config, {}, log_snr_steps(draw, config)


def deis(draw):
    config = log_snr(draw, ["use_flow_sigmas"]) | spacing(draw)
    return config, {}, log_snr_steps(draw, config)


def unipc(draw):
    config = log_snr(draw, ["use_flow_sigmas"]) | spacing(draw)
    config |= {"solver_type": draw.pick(["bh1", "bh2"]), "predict_x0": draw.chance()}
    config["final_sigmas_type"] = draw.pick(["zero", "sigma_min"])
    config |= zero_snr(draw, config)
    if "use_flow_sigmas" in config and config["prediction_type"] == "epsilon":
        # diffusers divides by alpha = 1 - 0.999999, of which float32 keeps two digits.
        config["prediction_type"] = "sample"
    if not config["predict_x0"]:
        config |= {"final_sigmas_type": "sigma_min", "thresholding": False}
        if config["prediction_type"] == "flow_prediction":
            config["prediction_type"] = "sample"  # an error in diffusers

    # Steps of higher order to sigma = 0, or of length 0, are NaN in diffusers.
    if config["final_sigmas_type"] == "zero" or has_own_levels(config):
        config["lower_order_final"] = True
    if config["final_sigmas_type"] == "zero":
        config["solver_type"] = "bh2"  # the other B(h) is infinite there
    config["disable_corrector"] = draw.pick([[], [], [0], [1, 2]])
    if has_own_levels(config) and draw.chance():
        if "use_flow_sigmas" not in config:
            config |= {"sigma_min": draw.between(0.05, 0.2)}
            config |= {"sigma_max": draw.between(3, 100)}
        elif draw.chance():
            # Of Karras levels with flow paths, the ratios of noise to signal.
            config |= {"use_karras_sigmas": True, "sigma_max": draw.between(3, 100)}
        else:
            config |= {"shift_terminal": draw.between(0.05, 0.5)}
            return config, {}, {"num_inference_steps": draw.pick([2, 3, 5, 12])}
    if "use_flow_sigmas" in config and "use_karras_sigmas" not in config and draw.chance():
        return config, {}, {"sigmas": [k / 40 for k in draw.some(range(1, 41))]}
    return config, {}, log_snr_steps(draw, config)


def lms(draw):
    config = discrete(draw) | spacing(draw) | other_levels(draw)
    return config, {"order": draw.pick([1, 2, 3, 4])}, spaced_steps(draw, config)


def euler(draw):
    config = discrete(draw) | spacing(draw) | other_levels(draw)
    config |= zero_snr(draw, config)
    config["timestep_type"] = draw.pick(["discrete", "continuous"])
    is_continuous = config["timestep_type"] == "continuous"
    if not is_continuous:  # of which diffusers would make n + 1 steps
        config["interpolation_type"] = draw.pick(["linear", "log_linear"])
    config["final_sigmas_type"] = draw.pick(["zero", "sigma_min"])
    config["sigma_min"] = draw.pick([None, 0.002])
    config["sigma_max"] = draw.pick([None, 20.0, 700.0])
    may_be_listed = not any(name.startswith("use_") for name in config)
    if may_be_listed and config.get("interpolation_type") == "linear" and draw.chance():
        return config, {}, {"timesteps": draw.some(range(config["num_train_timesteps"]))}
    if may_be_listed and draw.chance():
        # From the lowest training level, where runs may end, to the highest that the class knows.
        above = {**config, "sigma_min": None}
        low, high = SCHEDULERS["EulerDiscreteScheduler"].from_config(above).sigma_range
        places = [k / 20 for k in draw.some(range(1, 20))]
        return config, {}, {"sigmas": [low * (high / low) ** place for place in places]}
    return config, {}, spaced_steps(draw, config)


def dpm_sde(draw):
    config, _, levels = kdpm2_ancestral(draw)
    config["noise_sampler_seed"] = draw.pick([None, 0, 7])  # of no effect here
    return config, {"s_noise": draw.between(0, 1.5)}, levels


def karras_ve(draw):
    config = {"sigma_min": draw.between(0.01, 0.1), "sigma_max": draw.between(1, 200)}
    config |= {"s_noise": draw.between(0, 1.5), "s_churn": draw.pick([0, 1, 80])}
    config |= {"s_min": draw.between(0, 1), "s_max": draw.between(0.5, 100)}
    steps = [*STEPS[1:], 12]  # of a single one, the level in diffusers is 0 / 0
    return config, {}, {"num_inference_steps": draw.pick(steps)}


def kdpm2_ancestral(draw):
    config, ours, levels = kdpm2(draw)
    # From 20,000 down to 0.01 not even float64 has digits enough for how diffusers computes it.
    if config["beta_schedule"] == "squaredcos_cap_v2":
        config["beta_schedule"] = "scaled_linear"
    return config, ours, levels


def ddpm(draw):
    schedules = [*SCHEDULES, "sigmoid", *(["laplace"] if draw.fine else [])]
    config = discrete(draw, schedules=schedules) | bounds(draw) | spacing(draw)
    config |= zero_snr(draw, config)

    # diffusers takes the root of the logarithm of "fixed_large_log", which is NaN.
    variances = ["fixed_small", "fixed_small_log", "fixed_large"]
    config["variance_type"] = draw.pick([*variances, "learned", "learned_range"])
    if draw.chance(3):
        return config, {}, {"timesteps": draw.some(range(config["num_train_timesteps"]))}
    return config, {}, spaced_steps(draw, config)


def ddim_inverse(draw):
    config = discrete(draw) | spacing(draw)
    config["set_alpha_to_one"] = config["prediction_type"] != "sample" and draw.chance()
    config |= zero_snr(draw, config)
    config["timestep_spacing"] = draw.pick(["leading", "trailing"])
    config |= {"clip_sample": draw.chance(), "clip_sample_range": draw.between(0.3, 2)}
    return config, {}, spaced_steps(draw, config)


def pndm(draw):
    config = discrete(draw, TYPES[::2]) | spacing(draw)  # no "sample" in diffusers
    config |= {"set_alpha_to_one": draw.chance(), "skip_prk_steps": draw.chance()}
    if config["skip_prk_steps"]:
        return config, {}, spaced_steps(draw, config)
    return config, {}, {"num_inference_steps": draw.pick([4, 5, 12])}  # fewer are an error


def ipndm(draw):
    config = {"num_train_timesteps": draw.pick([20, 1000])}
    if draw.chance(3):
        # Noise levels, which diffusers takes as they are.
        levels = [k / 40 for k in draw.some(range(1, 41))]
        config["trained_betas"] = [*levels, draw.pick([0.0, 0.02])]
        return config, {}, {"num_inference_steps": len(levels)}
    return config, {}, {"num_inference_steps": draw.pick([*STEPS, 4, 12])}


def score_sde_ve(draw):
    config = {"num_train_timesteps": draw.pick([20, 2000]), "snr": draw.between(0.03, 0.6)}
    config |= {"sigma_min": draw.between(0.001, 0.1), "sigma_max": draw.between(1, 1500)}
    config |= {
        "sampling_eps": draw.between(1e-5, 0.05),
        "correct_steps": draw.pick([0, 1, 3]),
    }
    # diffusers starts a single step at the lowest level.
    return config, {}, {"num_inference_steps": draw.pick([*STEPS[1:], 12])}


def score_sde_vp(draw):
    config = {"num_train_timesteps": draw.pick([20, 2000])}
    config |= {"beta_min": draw.between(0.01, 1), "beta_max": draw.between(0.5, 30)}
    config["sampling_eps"] = draw.between(1e-4, 0.1)
    return config, {}, {"num_inference_steps": draw.pick([*STEPS, 12])}


def repaint(draw):
    config = discrete(draw, ["epsilon"], [*SCHEDULES, "sigmoid"])
    del config["prediction_type"]
    config |= {"clip_sample": draw.chance(), "eta": draw.pick(range(11)) / 10}
    # Few and short runs: each length compiles its table.
    n = draw.pick([1, 2, 5, 12])
    repeats = [1, 2] if n == 12 else [1, 2, 3]
    ours = {"jump_length": draw.pick([1, 2, 5]), "jump_n_sample": draw.pick(repeats)}
    return config, ours, {"num_inference_steps": n}


SAMPLERS = {
    "LCMScheduler": lcm,
    "TCDScheduler": tcd,
    "SCMScheduler": scm,
    "FlowMatchLCMScheduler": flow_match_lcm,
    "FlowMapEulerDiscreteScheduler": flow_map,
    "DDIMScheduler": ddim,
    "EDMEulerScheduler": edm_euler,
    "EDMDPMSolverMultistepScheduler": edm_dpm_multistep,
    "HeunDiscreteScheduler": heun,
    "KDPM2DiscreteScheduler": kdpm2,
    "EulerAncestralDiscreteScheduler": euler_ancestral,
    "EulerDiscreteScheduler": euler,
    "FlowMatchEulerDiscreteScheduler": flow_match_euler,
    "FlowMatchHeunDiscreteScheduler": flow_match_heun,
    "DDPMScheduler": ddpm,
    "DDIMInverseScheduler": ddim_inverse,
    "RePaintScheduler": repaint,
    "KDPM2AncestralDiscreteScheduler": kdpm2_ancestral,
    "DPMSolverSDEScheduler": dpm_sde,
    "KarrasVeScheduler": karras_ve,
    "LMSDiscreteScheduler": lms,
    "PNDMScheduler": pndm,
    "IPNDMScheduler": ipndm,
    "ScoreSdeVeScheduler": score_sde_ve,
    "ScoreSdeVpScheduler": score_sde_vp,
    "DPMSolverMultistepScheduler": dpm_multistep,
    "UniPCMultistepScheduler": unipc,
    "DEISMultistepScheduler": deis,
    "DPMSolverSinglestepScheduler": dpm_singlestep,
    "DPMSolverMultistepInverseScheduler": dpm_multistep_inverse,
}

# Those whose goldens were stored first, from one sequence of random numbers.
FIRST = list(SAMPLERS)[:11]

# Those in log(alpha / sigma), which diffusers must run in float64 to be compared with: in float32
# its differences of exponentials keep few digits.
LOG_SNR = [name for name in SAMPLERS if issubclass(SCHEDULERS[name], LogSNRScheduler)]

# Those that add most of the noise of each step afresh: the rest is a difference of squares, which
# float32 rounds away.
FRESH = ["KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler"]

# Those of the SDEs of Song et al. 2021, whose classes have other methods than `step`.
SCORE_SDE = ["ScoreSdeVeScheduler", "ScoreSdeVpScheduler"]

# Those that `Draw.fine` is for.
_NOT_FINE = ("SCM", "Score", "Flow", "EDMEuler", "KarrasVe", "IPNDM")
FINE = [name for name in SAMPLERS if not name.startswith(_NOT_FINE)]


def draw_case(name: str, draw: Draw) -> dict:
    """Returns drawn arguments of `make_sampler_goldens.reference_case`."""
    config, ours, levels = SAMPLERS[name](draw)
    case = {"name": name, "config": config, "ours": ours, "levels": levels}

    # The variance 1 - alpha^2 near t = 0 of the VP SDE is such a difference, too.
    double = draw.fine or name in [*LOG_SNR, *FRESH, *SCORE_SDE]
    return case | {"shape": draw.pick(SHAPES), "double": double}
