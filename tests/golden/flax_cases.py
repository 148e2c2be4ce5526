"""The runs of diffusers' Flax schedulers that make_flax_goldens.py stores.

`ours` are the options with which cmjax takes the steps of the Flax class, where its defaults do
not. `about` names what the Flax class does otherwise; tests/schedulers/test_flax_goldens.py says
how.
"""

STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
}
LINEAR = {"prediction_type": "v_prediction"}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
EIGHT = {"num_train_timesteps": 8, "beta_start": 0.02, "beta_end": 0.4}
NOISE = {"prediction_type": "epsilon"}

# FlaxDPMSolverMultistep ends at training time 0.
TIME_0 = {"final_sigmas_type": "sigma_min"}


def run(name, config, n, **rest):
    """Arguments of `make_flax_goldens.reference_case`."""
    return {"name": name, "config": config, "n": n, **rest}


RUNS = [
    # FlaxDDIM; its eta shortens the way to the noise, and adds none.
    run(
        "DDIMScheduler",
        STABLE_DIFFUSION
        | {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
        10,
    ),
    run("DDIMScheduler", LINEAR, 5),
    run("DDIMScheduler", COSINE | {"clip_sample_range": 0.8}, 7),
    run(
        "DDIMScheduler",
        STABLE_DIFFUSION,
        5,
        about="eta",
        ours={"eta": 0.7},
        eta=0.7,
    ),
    # FlaxDDPM, whose steps go from t to t - 1 for any number of steps.
    run("DDPMScheduler", EIGHT | NOISE, 8),
    run("DDPMScheduler", EIGHT | LINEAR | {"variance_type": "fixed_large"}, 8),
    run("DDPMScheduler", EIGHT | COSINE | {"variance_type": "learned"}, 8),
    run("DDPMScheduler", STABLE_DIFFUSION, 5, about="one time down"),
    run(
        "DDPMScheduler",
        EIGHT | NOISE | {"variance_type": "fixed_small_log"},
        8,
        about="root of a logarithm",
    ),
    run(
        "DDPMScheduler",
        EIGHT | NOISE | {"variance_type": "learned_range"},
        8,
        about="mean of variances",
    ),
    # FlaxDPMSolverMultistep.
    run("DPMSolverMultistepScheduler", STABLE_DIFFUSION, 8, ours=TIME_0),
    run(
        "DPMSolverMultistepScheduler",
        LINEAR
        | {"algorithm_type": "dpmsolver", "solver_type": "heun"}
        | {"lower_order_final": False},
        6,
        ours=TIME_0,
    ),
    run(
        "DPMSolverMultistepScheduler",
        COSINE | {"solver_order": 1, "timestep_spacing": "trailing"},
        5,
        ours=TIME_0,
    ),
    run(
        "DPMSolverMultistepScheduler",
        STABLE_DIFFUSION | {"solver_order": 3},
        7,
        ours=TIME_0,
        about="half of the second derivative",
    ),
    run(
        "DPMSolverMultistepScheduler",
        STABLE_DIFFUSION
        | {"solver_order": 1, "thresholding": True, "sample_max_value": 4.0},
        5,
        ours=TIME_0,
        about="percent",
        shape=(1, 3, 4),
    ),
    # FlaxEulerDiscrete; it adds 1 to "leading" times.
    run("EulerDiscreteScheduler", STABLE_DIFFUSION, 6),
    run(
        "EulerDiscreteScheduler",
        LINEAR | {"timestep_spacing": "leading"},
        8,
        ours={"steps_offset": 1},
    ),
    run("EulerDiscreteScheduler", LINEAR, 12),
    # FlaxKarrasVe; its levels are the squares of what its options say.
    run(
        "KarrasVeScheduler",
        {"sigma_min": 0.5, "sigma_max": 8.0, "s_churn": 0},
        5,
        ours={"sigma_min": 0.25, "sigma_max": 64.0},
    ),
    run(
        "KarrasVeScheduler",
        {"sigma_min": 0.2, "sigma_max": 9.0, "s_churn": 2.0},
        6,
        ours={"sigma_min": 0.2**2, "sigma_max": 81.0},
    ),
    # FlaxLMSDiscrete.
    run("LMSDiscreteScheduler", STABLE_DIFFUSION, 10),
    run("LMSDiscreteScheduler", LINEAR, 4, ours={"order": 2}, order=2),
    run("LMSDiscreteScheduler", STABLE_DIFFUSION, 8, about="times cut off"),
    run("LMSDiscreteScheduler", STABLE_DIFFUSION, 4, about="together", together=True),
    # FlaxPNDM; its last step ends at training time 0, whatever `set_alpha_to_one` says.
    run(
        "PNDMScheduler",
        STABLE_DIFFUSION | {"skip_prk_steps": True, "steps_offset": 1},
        10,
    ),
    run("PNDMScheduler", NOISE, 5),
    run(
        "PNDMScheduler",
        STABLE_DIFFUSION | {"skip_prk_steps": True, "set_alpha_to_one": True},
        6,
        ours={"set_alpha_to_one": False},
    ),
    run("PNDMScheduler", NOISE, 8, about="odd strides"),
    # FlaxScoreSdeVe.
    run("ScoreSdeVeScheduler", {"num_train_timesteps": 5}, 5),
    run(
        "ScoreSdeVeScheduler",
        {
            "num_train_timesteps": 4,
            "sigma_max": 50.0,
            "snr": 0.1,
            "sampling_eps": 1e-3,
            "correct_steps": 2,
        },
        4,
    ),
    run(
        "ScoreSdeVeScheduler",
        {"num_train_timesteps": 2},
        2,
        about="norms of the batch",
        together=True,
    ),
]

# Of whom `add_noise` is stored, and `get_velocity` where there is one.
TRAINING = [
    ("DDIMScheduler", STABLE_DIFFUSION),
    ("DDPMScheduler", {}),
    ("DPMSolverMultistepScheduler", STABLE_DIFFUSION),
    ("EulerDiscreteScheduler", STABLE_DIFFUSION),
    ("LMSDiscreteScheduler", STABLE_DIFFUSION),
    ("PNDMScheduler", {}),
]

# What ends in an error or in NaN, with JAX 0.4.30: class, options, number of steps, and method.
FAILING = [
    ("DDPMScheduler", {"variance_type": "fixed_large_log"}, 5, "step"),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}, 5, "set_timesteps"),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, 5, "set_timesteps"),
    ("EulerDiscreteScheduler", {"prediction_type": "sample"}, 5, "step"),
    ("LMSDiscreteScheduler", {}, 5, "step"),
    ("PNDMScheduler", {"prediction_type": "sample"}, 5, "step"),
    ("KarrasVeScheduler", {}, 5, "add_noise_to_input"),
    ("ScoreSdeVeScheduler", {"num_train_timesteps": 5}, 5, "step_correct"),
    ("ScoreSdeVeScheduler", {"num_train_timesteps": 5}, 5, "step_pred"),
]
