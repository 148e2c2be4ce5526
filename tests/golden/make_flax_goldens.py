"""Makes flax_schedulers.npz: what the Flax schedulers that diffusers has removed computed.

diffusers 0.39 is the last version that has them. They run with a JAX of their time, in an
environment of their own without cmjax; the versions are in `index` of the file:

    python3 -m venv /tmp/flax
    /tmp/flax/bin/pip install diffusers==0.39.0 jax==0.4.30 jaxlib==0.4.30 flax==0.8.5 "numpy<2"
    /tmp/flax/bin/python -m tests.golden.make_flax_goldens

They run in float64, so that what is stored is theirs to float32. Each case says in `about` whether
it is to be reproduced as it is; `tests/schedulers/test_flax_goldens.py` has the other ones.

Three methods do not run with that JAX (`failures` in the file): two draw noise with an array of one
key, one calls a method of PyTorch. Noise is given to all of them here in place of their drawing,
and the method is added, so that the rest of what they compute can be stored.
"""

import importlib.metadata
import json
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np

from tests.golden.flax_cases import FAILING, RUNS, TRAINING
from tests.golden.flax_runs import (
    SHAPE,
    draw,
    run_by_times,
    run_karras_ve,
    run_lms,
    run_score_sde_ve,
    start,
)
from tests.golden.packing import pack

jax.config.update("jax_enable_x64", True)
diffusers.logging.set_verbosity_error()


def flax_scheduler(name, config):
    """Returns the Flax class of this name with these options, in float64 if it can be."""
    options = dict(config)
    if name not in ("KarrasVeScheduler", "ScoreSdeVeScheduler"):
        options["dtype"] = jnp.float64
    return getattr(diffusers, f"Flax{name}")(**options)


def reference_case(name, config, n, *, about="the same", ours=None, seed=0, **how):
    """Returns all that a Flax class computes in one run, with the inputs it was computed from.

    Args:
        name: of the class, without "Flax".
        config: its options.
        n: number of steps.
        about: "the same" where cmjax computes the same, or in which way the Flax class differs.
        ours: options of cmjax with which it takes the same steps.
        seed: of samples, of what the network returns, and of noise.
        how: further arguments of the class's function.
    """
    runs = {
        "LMSDiscreteScheduler": run_lms,
        "KarrasVeScheduler": run_karras_ve,
        "ScoreSdeVeScheduler": run_score_sde_ve,
    }
    scheduler = flax_scheduler(name, config)
    rng = np.random.default_rng(seed)
    levels, rows = runs.get(name, run_by_times)(scheduler, n, rng, **how)
    arrays = {key: np.stack([row[key] for row in rows]) for key in rows[0]} | levels
    saved = json.loads(scheduler.to_json_string())
    return {
        "name": name,
        "config": config,
        "ours": ours or {},
        "levels": {"num_inference_steps": n},
        "saved_config": saved,
        "about": about,
        **{key: np.asarray(value, np.float32) for key, value in arrays.items()},
    }


def pndm_of_velocity(n):
    """Where FlaxPNDM ends with a network that knows x0 and the noise, and returns v."""
    config = {"skip_prk_steps": True, "prediction_type": "v_prediction"}
    scheduler = flax_scheduler("PNDMScheduler", config)
    state, _, alphas, sigmas = start(scheduler, n, SHAPE)
    x0, noise = draw(np.random.default_rng(0), (2, *SHAPE))
    sample = alphas[0] * x0 + sigmas[0] * noise
    for t, alpha, sigma in zip(state.timesteps, alphas, sigmas, strict=True):
        v = jnp.asarray(alpha * noise - sigma * x0)
        sample, state = scheduler.step(state, v, t, sample, return_dict=False)
    arrays = {"x0": x0, "noise": noise, "prev_sample": sample}
    return {
        "about": "means of v",
        "config": config,
        "levels": {"num_inference_steps": n},
        **{key: np.asarray(value, np.float32) for key, value in arrays.items()},
    }


def training_case(name, config):
    """What `add_noise` and `get_velocity` return for the state that training code creates."""
    scheduler = flax_scheduler(name, config)
    state = scheduler.create_state()
    times = jnp.array([0, 40, 500, 999])
    original, noise = draw(np.random.default_rng(1), (2, len(times), 3))
    arrays = {"times": times, "original": original, "noise": noise}
    arrays["noisy"] = scheduler.add_noise(state, original, noise, times)
    if hasattr(scheduler, "get_velocity"):
        arrays["velocity"] = scheduler.get_velocity(state, original, noise, times)
    return {
        "about": "training",
        "name": name,
        "config": config,
        **{key: np.asarray(value, np.float32) for key, value in arrays.items()},
    }


def failure(name, config, n, method):
    """Returns the error that a method ends in, for options that its class lists.

    Raises:
        AssertionError: if it ends well.
    """
    scheduler = flax_scheduler(name, config)
    sample = jnp.ones(SHAPE)
    key = jax.random.key(0)
    try:
        state = scheduler.set_timesteps(scheduler.create_state(), n, SHAPE)
        if method == "step":
            sample = scheduler.step(state, sample, state.timesteps[0], sample).prev_sample
        elif method == "add_noise_to_input":
            scheduler.add_noise_to_input(state, sample, 1.0, key)
        elif method == "step_correct":
            scheduler.step_correct(state, sample, sample, key)
        elif method == "step_pred":
            scheduler.step_pred(state, sample, 1.0, sample, key)
    except (AttributeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    assert np.any(np.isnan(sample)), f"{name}.{method} runs with {config}"
    return "NaN"


def main():
    """Writes the file beside this script."""
    failures = [
        {
            "name": name,
            "config": config,
            "n": n,
            "method": method,
            "error": failure(name, config, n, method),
        }
        for name, config, n, method in FAILING
    ]

    # What FlaxScoreSdeVe calls of PyTorch.
    type(jnp.zeros(1)).long = lambda array: array.astype(int)
    runs = [reference_case(**run, seed=seed) for seed, run in enumerate(RUNS)]
    runs.append(pndm_of_velocity(7))
    runs += [training_case(name, config) for name, config in TRAINING]
    cases, arrays = pack(runs)
    packages = ("diffusers", "jax", "jaxlib", "flax", "numpy", "scipy")
    versions = {package: importlib.metadata.version(package) for package in packages}
    index = {"versions": versions, "failures": failures, "cases": cases}
    path = Path(__file__).with_name("flax_schedulers.npz")
    np.savez_compressed(path, index=json.dumps(index), **arrays)


if __name__ == "__main__":
    main()
