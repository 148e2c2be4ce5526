"""The loops that diffusers' Flax schedulers are run in; see make_flax_goldens.py.

Each function takes a scheduler, a number of steps and the source of random numbers. It returns the
levels of the network calls by name, and of each call the arrays that went in and came out.
"""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

SHAPE = (2, 2, 2)  # of samples, channels last
ONE_NUMBER = (3, 1)  # of samples that FlaxLMS can handle


def given(noise):
    """Hands out this noise wherever a scheduler draws some."""
    return mock.patch.object(jax.random, "normal", lambda *args, **kwargs: noise)


def draw(rng, shape):
    """Standard normal numbers that float32 holds, in float64."""
    return np.float64(rng.standard_normal(shape, np.float32))


def rounded(sample):
    """The float32 sample that the next step starts from, in float64."""
    return np.float64(np.float32(sample))


def prediction(config, scaled, v, alpha, sigma):
    """What the network returns for v: like v, x0 and the noise are of the sample's size."""
    outputs = {
        "epsilon": alpha * v + sigma * scaled,
        "sample": alpha * scaled - sigma * v,
        "v_prediction": v,
    }
    return rounded(outputs[config["prediction_type"]])


def run_by_times(scheduler, n, rng, *, shape=SHAPE, **arguments):
    """Takes the steps of a class whose `step` takes a training time.

    Args:
        scheduler: to run.
        n: number of steps.
        rng: the source of random numbers.
        shape: of the samples.
        arguments: further ones of `step`.
    """
    state, levels, alphas, sigmas = start(scheduler, n, shape)
    variance_type = scheduler.config.get("variance_type", "")
    is_learned = variance_type.startswith("learned")
    sample = rounded(draw(rng, shape) * float(state.init_noise_sigma))
    rows = []
    for index, t in enumerate(state.timesteps):
        v, noise = draw(rng, (2, *shape))
        scaled = np.asarray(scheduler.scale_model_input(state, sample, t))
        output = prediction(scheduler.config, scaled, v, alphas[index], sigmas[index])
        row = {"sample": sample, "scaled": scaled, "model_output": output, "noise": noise}
        if "alphas" in levels:
            row["noisy"] = scheduler.add_noise(state, output, noise, t[None])

        # A learned variance comes after the prediction, and channels come first.
        arrays = [output, sample, noise]
        if is_learned:
            variance = np.tanh(v) if variance_type == "learned_range" else v**2
            row["model_output"] = np.concatenate([output, rounded(variance)], axis=-1)
            arrays = [row["model_output"], sample, noise]
            arrays = [np.moveaxis(array, -1, 1) for array in arrays]
        with given(arrays[2]):
            end, state = scheduler.step(
                state, jnp.asarray(arrays[0]), t, arrays[1], return_dict=False, **arguments
            )
        row["prev_sample"] = np.moveaxis(end, 1, -1) if is_learned else np.asarray(end)
        if scheduler.config.get("algorithm_type") == "dpmsolver++":
            row["denoised"] = state.model_outputs[-1]
        rows.append(row)

        # From NaN, go on with another sample.
        sample = rounded(row["prev_sample"])
        if not np.all(np.isfinite(sample)):
            sample = rounded(draw(rng, shape))
    return levels, rows


def start(scheduler, n, shape):
    """Returns the state of a run, its levels, and alpha and sigma of each call."""
    state = scheduler.set_timesteps(scheduler.create_state(), n, shape)
    if jnp.issubdtype(state.timesteps.dtype, jnp.integer):
        # FlaxDPMSolverMultistep compares them with a number of 64 bits.
        state = state.replace(timesteps=state.timesteps.astype(jnp.int64))
    levels = {"timesteps": state.timesteps, "init_noise_sigma": state.init_noise_sigma}
    if hasattr(state, "sigmas"):
        sigmas = np.asarray(state.sigmas)
        size = np.hypot(1, sigmas)
        return state, levels | {"sigmas": sigmas}, 1 / size, sigmas / size
    variance = np.asarray(state.common.alphas_cumprod[state.timesteps])
    alphas = variance**0.5
    sigmas = (1 - variance) ** 0.5
    return state, levels | {"alphas": alphas, "sigmas": sigmas}, alphas, sigmas


def run_lms(scheduler, n, rng, *, order=4, together=False):
    """Takes the steps of samples of one number each, with the number of the step for its time.

    FlaxLMS takes `timestep` for an index into its n levels, and its memory is a list of numbers,
    one a call: it holds the slopes of one number only.

    Args:
        scheduler: a FlaxLMSDiscreteScheduler.
        n: number of steps.
        rng: the source of random numbers.
        order: of the steps.
        together: whether to hand all samples to one run all the same.
    """
    first, levels, alphas, sigmas = start(scheduler, n, ())
    count = 1 if together else ONE_NUMBER[0]
    states = [first] * count
    sample = rounded(draw(rng, ONE_NUMBER) * float(first.init_noise_sigma))
    rows = []
    for index, t in enumerate(first.timesteps):
        v = draw(rng, ONE_NUMBER)
        scaled = np.asarray(scheduler.scale_model_input(first, sample, t))
        output = prediction(scheduler.config, scaled, v, alphas[index], sigmas[index])
        row = {"sample": sample, "scaled": scaled, "model_output": output, "noise": 0 * v}
        ends = []
        for i, (x, part) in enumerate(
            zip(np.split(sample, count), np.split(output, count), strict=True)
        ):
            end, states[i] = scheduler.step(
                states[i], part, index, x, order=order, return_dict=False
            )
            ends.append(np.asarray(end))
        row["prev_sample"] = np.concatenate(ends)
        rows.append(row)
        sample = rounded(row["prev_sample"])
    return levels, rows


def run_karras_ve(scheduler, n, rng):
    """Takes the steps as in KarrasVePipeline.

    Noise that raises the level of a step belongs to the row before it, as in cmjax.
    """
    state = scheduler.set_timesteps(scheduler.create_state(), n, SHAPE)
    levels = np.append(np.asarray(state.schedule[::-1]), 0.0)
    calls = []
    rows = []
    sample = jnp.zeros(SHAPE)
    for start_level, low in zip(levels[:-1], levels[1:], strict=True):
        noise = draw(rng, SHAPE)
        with given(noise):
            x, high = scheduler.add_noise_to_input(
                state, sample, float(start_level), jax.random.key(0)
            )
        if rows:
            rows[-1] |= {"noise": noise, "prev_sample": np.asarray(x)}
        else:
            # To begin with, noise of the first level, raised.
            x = high * draw(rng, SHAPE)

        # Euler's step from the raised level.
        x = rounded(x)
        output = draw(rng, SHAPE)
        moved, slope, _ = scheduler.step(state, output, high, low, x, return_dict=False)
        calls.append(high)
        rows.append(_quiet_row(x, output, moved))
        if low == 0:
            break

        # The slope at its end corrects it.
        end = rounded(moved)
        output = draw(rng, SHAPE)
        calls.append(low)
        rows.append(_quiet_row(end, output, None))
        sample, _, _ = scheduler.step_correct(
            state, output, high, low, x, end, slope, return_dict=False
        )
    sigmas = np.array(calls)
    return {"timesteps": sigmas / 2, "sigmas": sigmas}, rows


def _quiet_row(sample, output, end):
    """The arrays of a network call without noise."""
    return {
        "sample": sample,
        "scaled": sample,
        "model_output": output,
        "noise": np.zeros(SHAPE),
        "prev_sample": end,
    }


def run_score_sde_ve(scheduler, n, rng, *, together=False):
    """Takes the steps as in ScoreSdeVePipeline; a row for each network call.

    Args:
        scheduler: a FlaxScoreSdeVeScheduler.
        n: number of levels.
        rng: the source of random numbers.
        together: whether to hand both samples to the class at once, whose norms are of all of them.
    """
    state = scheduler.set_timesteps(scheduler.create_state(), n, SHAPE)
    state = scheduler.set_sigmas(state, n)
    calls = scheduler.config.correct_steps + 1
    sigmas = np.repeat(np.asarray(state.sigmas), calls)
    count = 1 if together else SHAPE[0]
    sample = rounded(sigmas[0] * draw(rng, SHAPE))
    rows = []
    for index, sigma in enumerate(sigmas):
        v, noise = draw(rng, (2, *SHAPE))
        output = rounded((v - sample) / sigma**2)  # the score that says that x0 is v
        row = {"sample": sample, "scaled": sample, "model_output": output, "noise": noise}
        parts = [np.split(array, count) for array in (output, sample, noise)]
        ends = []
        for score, x, z in zip(*parts, strict=True):
            key = jax.random.key(0)
            with given(jnp.asarray(z)):
                if index % calls < calls - 1:
                    end, _ = scheduler.step_correct(state, score, x, key, return_dict=False)
                else:
                    t = state.timesteps[index // calls]
                    end, mean, _ = scheduler.step_pred(
                        state, score, t, x, key, return_dict=False
                    )
                    # The pipeline returns the last mean, without noise.
                    end = mean if index == len(sigmas) - 1 else end
            ends.append(np.asarray(end))
        row["prev_sample"] = np.concatenate(ends)
        rows.append(row)
        sample = rounded(row["prev_sample"])
    return {"timesteps": sigmas, "sigmas": sigmas}, rows
