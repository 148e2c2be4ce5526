"""Samplers that are equal under a change of variables or at an end of their options.

The same runs are compared, with the same noise.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cmjax
from cmjax import schedulers
from cmjax.constraints import inpaint
from cmjax.schedulers import SCHEDULERS
from tests.support.draws import draws
from tests.support.tiers import each

KEY = jax.random.key(0)
SHAPE = (3, 2)

PROPERTIES = {
    "seed": st.integers(0, 2**32 - 1),
    "data": st.tuples(st.floats(-1, 1), st.floats(0.1, 1.0)),
}
EDM = {"sigma_min": 1e-3, "sigma_max": 1e3}  # wide enough for the levels below
# Levels differ by factors of at least 1.1, or rounding is all there is to a step.
LEVELS = st.lists(st.integers(-25, 45), min_size=3, max_size=3, unique=True).map(
    lambda powers: np.float32(1.1 ** np.array(sorted(powers, reverse=True)))
)
TIMES = st.lists(st.integers(20, 999), min_size=3, max_size=3, unique=True).map(
    lambda times: np.array(sorted(times, reverse=True))
)


def holds(**strategies):
    return lambda test: settings(max_examples=draws(50))(given(**strategies)(test))


def estimate(data, x, alpha, sigma):
    """Some x0 for a sample alpha x0 + sigma z.

    It is the same for x / alpha at noise level sigma / alpha on any path.
    """
    mean, std = data
    total = jnp.square(alpha * std) + jnp.square(sigma)
    gaussian = mean + alpha * jnp.square(std) / total * (x - alpha * mean)
    return gaussian + 0.3 * jnp.sin(x / jnp.sqrt(total))


def network(scheduler, x0=estimate):
    """The network of `x0(data, x, alpha, sigma, *later times)` for a scheduler."""

    def apply_fn(data, scaled, t, *later):
        alpha, sigma = scheduler.parametrization.path(t[0])
        c_in, c_skip, c_out = scheduler.parametrization.scalings(alpha, sigma)
        x = scaled / c_in
        denoised = x0(data, x, alpha, sigma, *(time[0] for time in later))
        return (denoised - c_skip * x) / c_out

    return apply_fn


@functools.partial(jax.jit, static_argnames=("scheduler", "x0", "num_inference_steps"))
def compiled(scheduler, x0, seed, data, init, **levels):
    state = scheduler.set_timesteps(**levels)
    x = scheduler.init_sample(state, init["noise"]) if "noise" in init else init["sample"]
    options = {"state": state, "init": x, "return_trajectory": True}
    _, steps = cmjax.sample(
        jax.random.key(seed), network(scheduler, x0), data, scheduler, SHAPE, **options
    )
    return state.alphas[1:, None, None], steps.prev_sample


def run(scheduler, seed, data, init=None, x0=estimate, **levels):
    """Returns signal levels [N, 1, 1] and samples [N, ...] that the steps of a run arrive at."""
    start = {"noise": noise(seed)} if init is None else {"sample": init}
    data = tuple(map(np.float32, data))
    for name, value in levels.items():
        if not isinstance(value, int):
            levels[name] = np.asarray(value)
    alphas, samples = compiled(scheduler, x0, np.uint32(seed), data, start, **levels)
    return np.asarray(alphas), np.asarray(samples)


def noise(seed):
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def assert_close(actual, expected, tolerance=1e-3):
    """Of samples [N, ...], to a share of the largest of each step."""
    size = np.maximum(1, np.abs(expected).max((1, 2), keepdims=True))
    np.testing.assert_allclose(actual / size, expected / size, atol=tolerance)


@holds(
    **PROPERTIES,
    times=TIMES,
    prediction=st.sampled_from(["sample", "epsilon", "v_prediction"]),
)
def test_tcd_with_all_noise_fresh_is_lcm(seed, data, times, prediction):
    # LCM's boundary scaling is off at this timestep_scaling; with this beta_start TCD's lowest
    # level, time 0, is clean.
    options = {"beta_start": 1e-12, "prediction_type": prediction}
    lcm = schedulers.LCMScheduler(**options, timestep_scaling=1e6)
    tcd = schedulers.TCDScheduler(**options, eta=1.0)
    _, expected = run(lcm, seed, data, timesteps=times)
    _, x = run(tcd, seed, data, timesteps=times)
    assert_close(x, expected)


@holds(**PROPERTIES, levels=LEVELS)
def test_scm_is_consistency_sampling_at_the_angles_of_its_levels(seed, data, levels):
    cm = schedulers.CMStochasticIterativeScheduler(
        sigma_min=1e-6, sigma_max=1e3, clip_denoised=False
    )
    scm = schedulers.SCMScheduler()
    angles = np.arctan(levels / scm.sigma_data)
    z = noise(seed)
    _, expected = run(cm, seed, data, levels[0] * z, sigmas=levels)
    for matched in ({"sigmas": levels}, {"timesteps": angles}):
        alphas, x = run(scm, seed, data, np.cos(angles[0]) * levels[0] * z, **matched)
        np.testing.assert_allclose(alphas[:-1, 0, 0], np.cos(angles[1:]), rtol=1e-5)
        assert_close(x / alphas, expected)


@holds(**PROPERTIES, times=TIMES)
def test_an_euler_step_is_the_same_on_all_three_paths(seed, data, times):
    # The probability-flow ODE of x / alpha in sigma / alpha is one for every path:
    # variance-preserving (DDIM without noise), variance-exploding (EDM), and straight (flow
    # matching, with networks that do not look where they go).
    ddim = schedulers.DDIMScheduler(clip_sample=False)
    alpha, sigma = (np.asarray(level) for level in ddim.parametrization.path(times))
    z = noise(seed)
    levels = sigma / alpha
    straight = sigma / (alpha + sigma)
    alphas, vp = run(ddim, seed, data, sigma[0] * z, timesteps=times)
    _, ve = run(
        schedulers.EDMEulerScheduler(**EDM), seed, data, levels[0] * z, sigmas=levels
    )
    flow = schedulers.FlowMapEulerDiscreteScheduler()
    kept, line = run(
        flow, seed, data, straight[0] * z, x0=estimate_anywhere, sigmas=straight
    )
    assert_close(vp / alphas, ve)
    assert_close(line / kept, ve)

    # And by hand, for the first step.
    x = levels[0] * z
    x0 = np.asarray(estimate(data, x, 1.0, levels[0]))
    slope = (x - x0) / levels[0]
    assert_close(ve[:1], (x + (levels[1] - levels[0]) * slope)[None])


def estimate_anywhere(data, x, alpha, sigma, r):
    return estimate(data, x, alpha, sigma)


@holds(**PROPERTIES, times=TIMES, eta=st.sampled_from([0.4, 1.0]))
def test_ddim_is_ancestral_sampling_with_the_same_share_of_noise(seed, data, times, eta):
    ddim = schedulers.DDIMScheduler(
        clip_sample=False, eta=eta, prediction_type="v_prediction"
    )
    alpha, sigma = (np.asarray(level) for level in ddim.parametrization.path(times))
    z = noise(seed)
    alphas, vp = run(ddim, seed, data, sigma[0] * z, timesteps=times)
    ancestral = schedulers.EDMEulerAncestralScheduler(**EDM, eta=eta)
    _, ve = run(ancestral, seed, data, (sigma / alpha)[0] * z, sigmas=sigma / alpha)
    assert_close(vp / alphas, ve)


@holds(**PROPERTIES, levels=LEVELS)
def test_first_order_solvers_without_noise_are_euler(seed, data, levels):
    options = {**EDM, "final_sigmas_type": "sigma_min"}
    _, euler = run(schedulers.EDMEulerScheduler(**options), seed, data, sigmas=levels)
    for scheduler in (
        schedulers.EDMEulerAncestralScheduler(**options, eta=0.0),
        schedulers.EDMDPMSolverMultistepScheduler(**options, solver_order=1),
        schedulers.EDMEulerScheduler(
            **options, s_churn=9.0, s_tmin=1e4
        ),  # no level is as high
        schedulers.EDMEulerScheduler(**options, s_churn=9.0, s_tmax=1e-4),
    ):
        assert_close(run(scheduler, seed, data, sigmas=levels)[1], euler, 1e-5)


@holds(**PROPERTIES, levels=LEVELS, end=st.sampled_from(["zero", "sigma_min"]))
def test_sde_dpm_solver_of_first_order_is_ancestral_sampling(seed, data, levels, end):
    options = {**EDM, "final_sigmas_type": end}
    _, ancestral = run(
        schedulers.EDMEulerAncestralScheduler(**options), seed, data, sigmas=levels
    )
    solver = schedulers.EDMDPMSolverMultistepScheduler(
        **options, solver_order=1, algorithm_type="sde-dpmsolver++"
    )
    assert_close(run(solver, seed, data, sigmas=levels)[1], ancestral, 1e-4)


@pytest.mark.parametrize(
    ("discrete", "edm"),
    [
        ("HeunDiscreteScheduler", "EDMHeunScheduler"),
        ("EulerAncestralDiscreteScheduler", "EDMEulerAncestralScheduler"),
        ("KDPM2DiscreteScheduler", "EDMDPM2Scheduler"),
    ],
)
@holds(**PROPERTIES, times=TIMES)
def test_solvers_of_discrete_times_are_those_of_edm_at_their_levels(
    discrete, edm, seed, data, times
):
    # Between two training times, where DPM-Solver-2 calls the network, the level is interpolated
    # twice: 1% apart in x0 at most.
    tolerance = 1e-2 if edm == "EDMDPM2Scheduler" else 1e-3
    discrete = SCHEDULERS[discrete]()
    levels = np.asarray(discrete.parametrization.path(np.float32(times))[1])
    init = levels[0] * noise(seed)
    _, expected = run(SCHEDULERS[edm](**EDM), seed, data, init, sigmas=levels)
    _, x = run(discrete, seed, data, init, timesteps=times)
    assert_close(x, expected, tolerance)


def mapped(data, x, start, end):
    """Takes x from levels (alpha, sigma) to others along the ODE of data N(mean, std^2)."""
    mean, std = data

    def spread(alpha, sigma):
        return jnp.sqrt(jnp.square(alpha * std) + jnp.square(sigma))

    return end[0] * mean + spread(*end) / spread(*start) * (x - start[0] * mean)


def x0_of_flow_map(data, x, alpha, sigma, r):
    """x - t u, with u the mean velocity from t to r of the exact map."""
    end = r / 1000
    arrived = mapped(data, x, (alpha, sigma), (1 - end, end))
    velocity = (x - arrived) / (sigma - end)
    return x - sigma * velocity


@holds(**PROPERTIES, n=st.integers(1, 3))
def test_an_exact_flow_map_arrives_at_the_same_in_any_number_of_steps(seed, data, n):
    scheduler = schedulers.FlowMapEulerDiscreteScheduler(shift=3.0)
    alphas, x = run(scheduler, seed, data, x0=x0_of_flow_map, num_inference_steps=n)
    for alpha, arrived in zip(alphas[:, 0, 0], x, strict=True):
        expected = mapped(data, noise(seed), (0.0, 1.0), (alpha, 1 - alpha))
        assert_close(arrived[None], np.asarray(expected)[None], 1e-4)


def test_one_step_of_a_flow_map_subtracts_the_mean_velocity():
    def u(params, x, t, r):
        return jnp.cos(x) + (r - t)[0] / 1000

    x = cmjax.sample(
        KEY, u, None, schedulers.FlowMapEulerDiscreteScheduler(), SHAPE, init=noise(0)
    )
    np.testing.assert_allclose(x, noise(0) - (jnp.cos(noise(0)) - 1), atol=1e-6)


def x0_of_jump(data, x, alpha, sigma, s):
    """What CTM's g must be for its jump to arrive at `estimate`."""
    kept = jnp.exp(s / 250) / sigma
    return (estimate(data, x, alpha, sigma) - kept * x) / (1 - kept)


@holds(**PROPERTIES, levels=LEVELS)
def test_ctm_with_all_noise_fresh_is_consistency_sampling(seed, data, levels):
    options = {"sigma_min": 0.01, "sigma_max": 1e3, "clip_denoised": False}
    cm = schedulers.CMStochasticIterativeScheduler(**options)
    ctm = schedulers.CTMScheduler(**options, gamma=1.0)
    _, expected = run(cm, seed, data, sigmas=levels)
    _, x = run(ctm, seed, data, x0=x0_of_jump, sigmas=levels)
    assert_close(x, expected)


@holds(**PROPERTIES, levels=LEVELS)
def test_ctm_without_noise_and_with_a_denoiser_is_euler_down_to_sigma_min(
    seed, data, levels
):
    ctm = schedulers.CTMScheduler(**EDM, clip_denoised=False)
    euler = schedulers.EDMEulerScheduler(**EDM, final_sigmas_type="sigma_min")
    init = levels[0] * noise(seed)
    _, expected = run(euler, seed, data, init, sigmas=levels)
    assert_close(
        run(ctm, seed, data, init, x0=estimate_anywhere, sigmas=levels)[1], expected
    )


@functools.partial(jax.jit, static_argnames="scheduler")
def inpainted(scheduler, seed, image, known):
    def apply_fn(params, x, *times):
        return jnp.sin(3 * x) + 0.1 * jnp.cos(times[0][0])

    constrain = inpaint(image, known)
    key = jax.random.key(seed)
    return cmjax.sample(
        key, apply_fn, None, scheduler, SHAPE, num_inference_steps=3, constrain=constrain
    )


# CTM's last step keeps a part of x, those of LMS, PNDM and iPNDM a part of earlier slopes. Others
# end with noise: TCD and DEIS at training time 0, the inverse ones at the last time.
END_ELSEWHERE = ["CTMScheduler", "LMSDiscreteScheduler", "TCDScheduler"]
END_ELSEWHERE += ["DEISMultistepScheduler", "DDIMInverseScheduler"]
END_ELSEWHERE += ["PNDMScheduler", "IPNDMScheduler"]
END_ELSEWHERE += ["DPMSolverMultistepInverseScheduler"]
# Their last step is as long as diffusers has it, not as far as to x0.
END_ELSEWHERE += ["ScoreSdeVeScheduler", "ScoreSdeVpScheduler"]
END_IN_X0 = [name for name in SCHEDULERS if name not in END_ELSEWHERE]


@pytest.mark.parametrize("name", each(END_IN_X0))
@holds(seed=PROPERTIES["seed"], amplitude=st.sampled_from([1e-3, 1.0]))
def test_inpainting_keeps_known_pixels_bit_for_bit(name, seed, amplitude):
    random = np.random.default_rng(seed)
    image = random.uniform(-amplitude, amplitude, SHAPE).astype(np.float32)
    known = (random.integers(0, 3, SHAPE) / 2).astype(np.float32)  # soft edges too
    x = np.asarray(inpainted(SCHEDULERS[name](), np.uint32(seed), image, known))
    assert np.all(np.isfinite(x))
    np.testing.assert_array_equal(x[known == 1], image[known == 1])
