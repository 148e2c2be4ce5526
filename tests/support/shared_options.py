"""Options and levels that several samplers share, as tests/support/sampler_cases.py draws them.

`draw` is a `Draw` of that file, `config` the options drawn so far.
"""

import dataclasses

import numpy as np

from cmjax.parametrization import Discrete

STEPS = [1, 2, 3, 5]
TYPES = ["epsilon", "sample", "v_prediction"]
SCHEDULES = ["linear", "scaled_linear"]


def discrete(draw, types=TYPES, schedules=SCHEDULES):
    """A coarse grid of training times with large betas, or a fine one as of released models."""
    numbers = [20, 50]
    low = (0.02, 0.05)
    high = (0.06, 0.3)
    if draw.fine:
        numbers = [20, 50, 1000]
        low = (2e-5, 1e-3)
        high = (0.005, 0.03)
        schedules = [*schedules, "squaredcos_cap_v2"]
    n = draw.pick(numbers)
    config = {"num_train_timesteps": n, "prediction_type": draw.pick(types)}
    config |= {"beta_start": draw.between(*low), "beta_end": draw.between(*high)}
    config["beta_schedule"] = draw.pick(schedules)
    if n < 1000 and draw.chance(4):
        config["trained_betas"] = [draw.between(low[0], high[1]) for _ in range(n)]
    return config


def zero_snr(draw, config):
    # Where there is no signal the noise says nothing of the image: an error here; in diffusers NaN,
    # or sigma = 4096.
    return {
        "rescale_betas_zero_snr": config["prediction_type"] != "epsilon" and draw.chance()
    }


def bounds(draw):
    return {
        "clip_sample": draw.chance(),
        "thresholding": draw.chance(3),
        "clip_sample_range": draw.between(0.3, 2),
        "dynamic_thresholding_ratio": draw.between(0.5, 1),
        "sample_max_value": draw.between(1, 3),
    }


def spacing(draw):
    return {
        "timestep_spacing": draw.pick(["linspace", "leading", "trailing"]),
        "steps_offset": draw.pick([0, 1]),
    }


def spaced_steps(draw, config):
    # diffusers starts a single step at the lowest level of linspace.
    steps = STEPS if draw.first else [*STEPS, 12]
    if config["timestep_spacing"] == "linspace":
        steps = steps[1:]
    return {"num_inference_steps": draw.pick(steps)}


def distilled(draw):
    config = discrete(draw) | {"set_alpha_to_one": draw.chance()}
    grid = [config["num_train_timesteps"] // k for k in (1, 2, 3, 5)]
    return config | zero_snr(draw, config) | {"original_inference_steps": draw.pick(grid)}


def distilled_levels(draw, config):
    if draw.chance(3):
        return {"timesteps": draw.some(range(config["num_train_timesteps"]))}
    strength = draw.between(0.3, 1.0) if draw.chance() else 1.0
    most = int(config["original_inference_steps"] * strength)
    return {
        "num_inference_steps": draw.pick([n for n in STEPS if n <= most]),
        "strength": strength,
    }


def other_levels(draw):
    kinds = ["", "use_karras_sigmas", "use_exponential_sigmas"]
    kind = draw.pick(kinds if draw.first else [*kinds, "use_beta_sigmas"])
    return {kind: True} if kind else {}


def log_snr(draw, more):
    """Options that all solvers in log(alpha / sigma) have, and at most one kind of levels."""
    config = discrete(draw)
    grids = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"]
    kind = draw.pick(["", "", "", *grids, *more])
    config |= {kind: True} if kind else {}
    if kind == "use_flow_sigmas":
        config["prediction_type"] = draw.pick(["epsilon", "sample", "flow_prediction"])
        config["flow_shift"] = draw.between(0.3, 6)
    return config | {
        "solver_order": draw.pick([1, 2, 3]),
        "lower_order_final": draw.chance(),
        "thresholding": draw.chance(3),
        "dynamic_thresholding_ratio": draw.between(0.5, 1),
        "sample_max_value": draw.between(1, 3),
    }


def has_own_levels(config):
    """Whether the levels of a run are other than those of spaced training times."""
    return any(name.startswith("use_") for name in config)


def clipped(draw, config):
    """lambda_min_clipped between two training times, of which at least three quarters stay."""
    if not draw.chance(3):
        return {}
    names = [field.name for field in dataclasses.fields(Discrete)]
    known = {name: value for name, value in config.items() if name in names}
    if "trained_betas" in known:
        known["trained_betas"] = tuple(known["trained_betas"])
    lambdas = -np.log(Discrete(**known).training_ratios())
    last = len(lambdas) - 1 - draw.pick(range(len(lambdas) // 4))
    return {"lambda_min_clipped": float(lambdas[last] + lambdas[last - 1]) / 2}


def log_snr_steps(draw, config, explicit=False):
    if explicit and not has_own_levels(config) and draw.chance(3):
        return {"timesteps": draw.some(range(config["num_train_timesteps"]))}
    # Those without explicit times end where the last level is, with a single one at the highest.
    steps = STEPS[1:] if has_own_levels(config) and not explicit else STEPS
    return {"num_inference_steps": draw.pick([*steps, 8, 12])}


def flow(draw):
    return {"num_train_timesteps": draw.pick([50, 1000]), "shift": draw.between(0.3, 6)}


def flow_match(draw):
    config = flow(draw) | other_levels(draw)
    if draw.chance():
        config["shift_terminal"] = draw.between(0.05, 0.5)
    if not draw.first and draw.chance():
        config["use_dynamic_shifting"] = True
        config["time_shift_type"] = draw.pick(["exponential", "linear"])
        config["base_shift"] = draw.between(0.3, 1)
    return config


def flow_match_levels(draw, config):
    levels = flow_levels(draw, config)
    if config.get("use_dynamic_shifting"):
        levels["mu"] = draw.between(0.3, 3)
    return levels


def flow_levels(draw, config):
    # diffusers divides by 0 to stretch a run whose lowest level is 1.
    stretched = "shift_terminal" in config
    kind = draw.pick(["num_inference_steps", "timesteps", "sigmas"])
    if kind == "num_inference_steps":
        steps = STEPS if draw.first else [*STEPS, 12]
        return {kind: draw.pick(steps[1:] if stretched else steps)}
    total = config["num_train_timesteps"] if kind == "timesteps" else 1
    highest = 39 if stretched else 40
    return {kind: [total * k / 40 for k in draw.some(range(1, highest + 1))]}


def edm(draw):
    return {
        "sigma_min": draw.between(5e-4 if draw.fine else 0.02, 0.1),
        "sigma_max": draw.between(1, 200),
        "rho": draw.between(1 if draw.fine else 4, 12),
        "sigma_data": draw.between(0.1, 2),
        "sigma_schedule": draw.pick(["karras", "exponential"]),
        "prediction_type": draw.pick(["epsilon", "v_prediction"]),
        "final_sigmas_type": draw.pick(["zero", "sigma_min"]),
    }


def edm_levels(draw, config):
    steps = STEPS if starts_single_steps_high(config) else STEPS[1:]
    return {"num_inference_steps": draw.pick(steps)}


def starts_single_steps_high(config):
    """Whether diffusers starts a single step at the highest level, and ends it at the lowest.

    It starts at the lowest level of the exponential grid, and ends at the highest of the other.
    """
    return config["sigma_schedule"] == "karras" and config["final_sigmas_type"] == "zero"
