"""Truth: solvers converge at their order, and samplers with noise draw the exact distribution."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import schedulers
from cmjax.schedulers import (
    CTMScheduler,
    DDIMScheduler,
    IPNDMScheduler,
    KarrasVeScheduler,
    PNDMScheduler,
    SCMScheduler,
    TCDScheduler,
)
from cmjax.schedulers.discrete import DiscreteScheduler
from cmjax.schedulers.discrete_sigmas import DiscreteSigmasScheduler
from cmjax.schedulers.flow import FlowScheduler
from cmjax.schedulers.flow_match import FlowMatchScheduler
from cmjax.schedulers.levels import karras_sigmas, ramp
from cmjax.schedulers.log_snr import LogSNRScheduler
from tests.support.tiers import thorough

# Weight, mean, standard deviation of each Gaussian.
MIXTURE = ((0.3, -1.0, 0.4), (0.7, 0.8, 0.25))
MEAN, STD = 0.6, 0.3
GAUSSIAN = ((1.0, MEAN, STD),)


def denoiser(x, levels, *_, data=MIXTURE):
    """E[x0 | alpha x0 + sigma z = x], also where alpha or sigma is 0."""
    alpha, sigma = (jnp.asarray(level).astype(x.dtype) for level in levels)

    # Of each Gaussian: the logarithm of its density at x, and its E[x0 | x].
    logits = []
    means = []
    for weight, mean, std in data:
        variance = jnp.square(alpha * std) + jnp.square(sigma)
        away = x - alpha * mean
        logits.append(
            math.log(weight) - jnp.log(variance) / 2 - jnp.square(away) / (2 * variance)
        )
        means.append(mean + alpha * std**2 / variance * away)
    share = jax.nn.softmax(jnp.stack(logits), axis=0)
    return jnp.sum(share * jnp.stack(means), axis=0)


def gaussian_flow(x, start, end=(1.0, 0.0)):
    """Takes x from levels (alpha, sigma) to others along the probability-flow ODE of GAUSSIAN."""

    def spread(alpha, sigma):
        return jnp.sqrt(jnp.square(alpha * STD) + jnp.square(sigma))

    # (x - alpha mean) / spread stays as it is.
    return end[0] * MEAN + spread(*end) / spread(*start) * (x - start[0] * MEAN)


def convention(scheduler, alpha, sigma):
    """What samples are divided by for the network, and what it predicts of (x, x0, eps).

    Written from the papers, not from the `scalings` that are tested.
    """
    flow = getattr(scheduler, "use_flow_sigmas", False)
    if flow or isinstance(scheduler, (FlowScheduler, FlowMatchScheduler)):
        sign = -1 if getattr(scheduler, "invert_sigmas", False) else 1
        return 1, lambda x, x0, eps: sign * (eps - x0)
    if isinstance(scheduler, IPNDMScheduler):
        return 1, lambda x, x0, eps: alpha * eps - sigma * x0
    if isinstance(scheduler, SCMScheduler):
        return scheduler.sigma_data, lambda x, x0, eps: (alpha * x - x0) / sigma
    if isinstance(scheduler, (DiscreteScheduler, DiscreteSigmasScheduler, LogSNRScheduler)):
        size = jnp.sqrt(jnp.square(alpha) + jnp.square(sigma))
        predictions = {
            "epsilon": lambda x, x0, eps: eps,
            "sample": lambda x, x0, eps: x0,
            "v_prediction": lambda x, x0, eps: (alpha * eps - sigma * x0) / size,
        }
        return size, predictions[scheduler.prediction_type]
    if isinstance(scheduler, KarrasVeScheduler):
        return 1, lambda x, x0, eps: -eps
    std = scheduler.sigma_data
    size = jnp.sqrt(jnp.square(sigma) + std**2)
    sign = -1 if getattr(scheduler, "prediction_type", "epsilon") == "v_prediction" else 1
    return size, lambda x, x0, eps: sign * (x0 * size - x * std**2 / size) / (sigma * std)


def network(scheduler, estimate):
    """The network of `estimate(x, (alpha, sigma), *later times)` of x0."""

    def apply_fn(params, scaled, t, *later):
        alpha, sigma = scheduler.parametrization.path(t[0])
        size, prediction = convention(scheduler, alpha, sigma)
        x = size * scaled
        x0 = estimate(x, (alpha, sigma), *(time[0] for time in later))
        return prediction(x, x0, (x - alpha * x0) / sigma)

    return apply_fn


def cumulative(x, sigma):
    """Share of the mixture with noise of this level that is below x."""
    erf = np.vectorize(math.erf)
    return sum(
        weight * (1 + erf((x - mean) / np.sqrt(2 * (std**2 + sigma**2)))) / 2
        for weight, mean, std in MIXTURE
    )


def exact_flow(x, low, high):
    """Takes x from noise level `low` up to `high` along the probability-flow ODE.

    In one dimension it is monotone and its marginals are known, so it keeps quantiles.
    """
    quantiles = cumulative(x, low)

    # Bisection for the number with the same share of the mixture below it.
    below = np.full_like(x, -10 * high - 10)
    above = np.full_like(x, 10 * high + 10)
    for _ in range(80):
        middle = (below + above) / 2
        small = cumulative(middle, high) < quantiles
        below = np.where(small, middle, below)
        above = np.where(small, above, middle)
    return (below + above) / 2


@functools.partial(jax.jit, static_argnums=0)
def exact_denoising_run(scheduler, state, x, num_steps):
    """Runs the solver with the exact x0, at the state's levels and without noise.

    `num_steps` is traced, so that runs whose states are of one shape share a program.
    """

    def step(_, carry):
        state, x = carry
        denoised = denoiser(x, (state.alpha, state.sigma))
        return scheduler.advance(state, x, denoised, jnp.zeros_like(x))

    _, end = jax.lax.fori_loop(0, num_steps, step, (scheduler.prepare(state, x), x))
    return end


def lengthened(state, more):
    """The state with `more` rows below those of its run, which the run does not reach."""

    def pad(leaf):
        leaf = np.asarray(leaf)
        return leaf if leaf.ndim == 0 else np.pad(leaf, (0, more), mode="edge")

    return jax.tree.map(pad, state)


def edm(name, **options):
    # Karras's levels are smooth in the step index; if sampling ended at zero, the last step would
    # not shrink with the others.
    scheduler = schedulers.SCHEDULERS[name](
        sigma_min=0.1, sigma_max=10.0, final_sigmas_type="sigma_min", **options
    )
    return scheduler, lambda n: scheduler.set_timesteps(n)


def uneven():
    # Every second step is twice as long, which the slope between two x0 must allow for.
    scheduler, _ = edm("EDMDPMSolverMultistepScheduler")

    def levels(n):
        places = (np.arange(n) + np.arange(n) % 2 / 3) / n
        return scheduler.set_timesteps(sigmas=10 * 0.01**places)

    return scheduler, levels


def log_snr(name, **options):
    # Equal steps of log(alpha / sigma), then a last call that stays where it is: the last step does
    # not shrink with the others if it is to end at zero.
    scheduler = schedulers.SCHEDULERS[name](
        use_exponential_sigmas=True, final_sigmas_type="sigma_min", **options
    )
    return scheduler, lambda n: scheduler.set_timesteps(n)


def lms(**options):
    # Karras's levels down to one above 0, which the last step then ends at: not one of the others.
    scheduler = schedulers.SCHEDULERS["LMSDiscreteScheduler"](**options)

    def levels(n):
        sigmas = karras_sigmas(ramp(n + 1), 0.1, 100.0, 7.0)
        return without_last_call(scheduler.set_timesteps(sigmas=sigmas))

    return scheduler, levels


def sigmas_of_ratios(ratios):
    return ratios / np.sqrt(1 + ratios**2)


def pndm(num_times, betas, **options):
    # The last call stays where it is, at time 0.
    scheduler = PNDMScheduler(num_train_timesteps=num_times, trained_betas=betas, **options)

    def levels(n):
        last = num_times - 1
        return scheduler.set_timesteps(timesteps=last - last // n * np.arange(n + 1))

    return scheduler, levels


def pndm_of_linear_betas(**options):
    # Down to a level above 0, from where on betas grow linearly.
    betas = (0.1, *np.linspace(1, 10, 768) / 768)
    return pndm(769, tuple(map(float, betas)), **options)


def pndm_of_equal_ratios(**options):
    variances = 1 - sigmas_of_ratios(np.linspace(0.25, 8, 3073)) ** 2
    betas = 1 - variances / np.append(1, variances[:-1])
    return pndm(3073, tuple(map(float, betas)), **options)


def ipndm(sigmas):
    # From other levels than its own, given in float64.
    scheduler = IPNDMScheduler()

    def levels(n):
        given = IPNDMScheduler(trained_betas=tuple(map(float, sigmas(n + 1))))
        return given.set_timesteps(n).replace(scheduler=scheduler)

    return scheduler, levels


def ipndm_of_its_levels():
    # Of those that `num_inference_steps` gives a part, from high to low noise.
    return ipndm(lambda n: np.sin(np.linspace(0.9, 0.2, n) * math.pi / 2) ** 2)


def ipndm_of_equal_ratios():
    return ipndm(lambda n: sigmas_of_ratios(np.linspace(8, 0.25, n)))


def karras_ve(**options):
    # Equal steps of log sigma down to sigma_min; the step from there to 0 would not shrink.
    scheduler = schedulers.SCHEDULERS["KarrasVeScheduler"](
        sigma_min=0.1, sigma_max=10.0, s_noise=1.0, **options
    )
    return scheduler, lambda n: without_last_call(scheduler.set_timesteps(n))


def without_last_call(state):
    """The run up to the level of its last call."""
    table = jax.tree.map(lambda column: column[:-1], (state.weights, state.scalings))
    weights, scalings = table
    return state.replace(
        sigmas=state.sigmas[:-1],
        alphas=state.alphas[:-1],
        timesteps=state.timesteps[:-1],
        weights=weights,
        scalings=scalings,
    )


def ddim():
    # Times at exact strides from the first to the last, where sampling ends: hence
    # set_alpha_to_one=False.
    scheduler = DDIMScheduler(
        num_train_timesteps=1025,
        clip_sample=False,
        set_alpha_to_one=False,
        beta_start=0.001,
    )

    def levels(n):
        return scheduler.set_timesteps(timesteps=1024 - 1024 // n * np.arange(n + 1))

    return scheduler, levels


def discrete_euler():
    # Training levels from 0.1 to 9.
    scheduler = schedulers.SCHEDULERS["EulerDiscreteScheduler"](
        num_train_timesteps=300,
        beta_start=0.01,
        use_karras_sigmas=True,
        final_sigmas_type="sigma_min",
    )
    return scheduler, lambda n: scheduler.set_timesteps(n)


def flow(name):
    scheduler = schedulers.SCHEDULERS[name]()
    return scheduler, lambda n: scheduler.set_timesteps(
        sigmas=np.linspace(0.9, 0, n + 1)[:-1]
    )


ORDERS = {
    "EDMEuler": (edm("EDMEulerScheduler"), 1),
    "EDMEulerAncestral without noise": (edm("EDMEulerAncestralScheduler", eta=0.0), 1),
    "EDMHeun": (edm("EDMHeunScheduler"), 2),
    "EDMDPM2": (edm("EDMDPM2Scheduler"), 2),
    "DPM-Solver++ 1": (edm("EDMDPMSolverMultistepScheduler", solver_order=1), 1),
    "DPM-Solver++ 2M midpoint": (edm("EDMDPMSolverMultistepScheduler"), 2),
    "DPM-Solver++ 2M heun": (edm("EDMDPMSolverMultistepScheduler", solver_type="heun"), 2),
    "DPM-Solver++ 2M on uneven levels": (uneven(), 2),
    "DDIM": (ddim(), 1),
    "flow maps": (flow("FlowMapEulerDiscreteScheduler"), 1),
    "flow matching": (flow("FlowMatchEulerDiscreteScheduler"), 1),
    "flow matching, Heun": (flow("FlowMatchHeunDiscreteScheduler"), 2),
    "Euler of discrete times": (discrete_euler(), 1),
}


MULTI = "DPMSolverMultistepScheduler"
SINGLE = "DPMSolverSinglestepScheduler"
UNIPC = "UniPCMultistepScheduler"
BY_EPS = {"algorithm_type": "dpmsolver"}
NO_CORRECTOR = {"disable_corrector": tuple(range(1000))}

# Steps of order 3 see the shape of the mixture in more of them, and are exact to float32 in fewer.
SECOND = (96, 192, 384)
THIRD = (96, 144, 192)
FOURTH = (256, 384, 512)

# The corrector of UniPC raises the order by one (Zhao et al. 2023, theorem 3.1).
NUMBERS = dict.fromkeys(ORDERS, (64, 128, 256))
for name, solver, order, numbers in [
    ("DPM-Solver++ 2M", log_snr(MULTI), 2, SECOND),
    ("DPM-Solver++ 3M", log_snr(MULTI, solver_order=3), 3, THIRD),
    ("DPM-Solver 2M", log_snr(MULTI, **BY_EPS), 2, SECOND),
    ("UniPC 1", log_snr(UNIPC, solver_order=1), 2, SECOND),
    ("UniPC 1 by eps", log_snr(UNIPC, solver_order=1, predict_x0=False), 2, SECOND),
    ("UniPC 2", log_snr(UNIPC), 3, THIRD),
    ("UniPC 2, not corrected", log_snr(UNIPC, **NO_CORRECTOR), 2, SECOND),
    ("UniPC 3, not corrected", log_snr(UNIPC, solver_order=3, **NO_CORRECTOR), 3, THIRD),
    ("KarrasVe without churn", karras_ve(s_churn=0.0), 2, SECOND),
    ("LMS 2", lms(order=2), 2, SECOND),
    ("LMS 4", lms(), 4, (128, 192, 256)),
    # Pseudo numerical methods take the means of equal steps, but steps that are equal in time are
    # not equal in the variable of the integral, sigma / alpha: of second order, whatever the mean.
    # Its order shows where steps are equal in sigma / alpha. (First steps of lower order, without
    # Runge-Kutta, are at a level where eps hardly changes.)
    ("PNDM", pndm_of_linear_betas(), 2, SECOND),
    ("PNDM without Runge-Kutta", pndm_of_linear_betas(skip_prk_steps=True), 2, SECOND),
    ("PNDM on equal ratios", pndm_of_equal_ratios(), 4, FOURTH),
    (
        "PNDM without Runge-Kutta on equal ratios",
        pndm_of_equal_ratios(skip_prk_steps=True),
        4,
        FOURTH,
    ),
    ("iPNDM", ipndm_of_its_levels(), 2, SECOND),
    ("iPNDM on equal ratios", ipndm_of_equal_ratios(), 4, FOURTH),
    ("DEIS 2", log_snr("DEISMultistepScheduler"), 2, SECOND),
    ("DEIS 3", log_snr("DEISMultistepScheduler", solver_order=3), 3, THIRD),
    ("DPM-Solver++ 2S", log_snr(SINGLE), 2, SECOND),
    ("DPM-Solver++ 3S", log_snr(SINGLE, solver_order=3), 3, SECOND),
    (
        "DPM-Solver++ 3S heun",
        log_snr(SINGLE, solver_order=3, solver_type="heun"),
        3,
        SECOND,
    ),
    ("DPM-Solver 3S", log_snr(SINGLE, solver_order=3, **BY_EPS), 3, THIRD),
]:
    ORDERS[name] = (solver, order)
    NUMBERS[name] = numbers


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_with_the_order_of_the_method(name):
    (scheduler, levels), order = ORDERS[name]
    counts = np.array(NUMBERS[name])
    ends = np.linspace(-1.6, 1.4, 7)
    errors = []
    # Levels and weights stay float32: a floor near 1e-7, below all errors here.
    with jax.enable_x64():
        states = [jax.jit(levels, static_argnums=0)(int(n)) for n in counts]
        longest = max(state.num_steps for state in states)
        for state in states:
            alphas = np.asarray(state.alphas, np.float64)
            sigmas = np.asarray(state.sigmas, np.float64)

            # Back from the ends to where they come from: for x / alpha the ODE is that of EDM.
            noise = sigmas / alphas
            start = alphas[0] * exact_flow(ends / alphas[-1], noise[-1], noise[0])

            # And forth by the solver.
            x = jnp.asarray(start, jnp.float64)
            state_of_all = lengthened(state, longest - state.num_steps)
            x = exact_denoising_run(scheduler, state_of_all, x, state.num_steps)
            errors.append(np.sqrt(np.mean((np.asarray(x) - ends) ** 2)))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert min(errors) > 2e-6 and slope == pytest.approx(order, abs=0.2)


def start(scheduler, **levels):
    return jax.jit(lambda: scheduler.set_timesteps(**levels))()


def draws(state, data, count=20_000):
    """Exact samples at the first level of a run, f32[count]."""
    random = np.random.default_rng(0)
    weights, means, stds = np.array(data).T
    kind = random.choice(len(data), count, p=weights)
    x0 = means[kind] + stds[kind] * random.standard_normal(count)
    return np.float32(
        state.alphas[0] * x0 + state.sigmas[0] * random.standard_normal(count)
    )


def run(scheduler, estimate, state, init):
    """Samples from `init`, with the network of `estimate`."""
    options = {"state": state, "init": init}
    sample = functools.partial(
        cmjax.sample, KEY, network(scheduler, estimate), None, scheduler, init.shape
    )
    return np.asarray(jax.jit(lambda options: sample(**options))(options))


def assert_mean_and_variance(x, mean, variance):
    # Five standard errors each: one false alarm in 9e5 tests of a correct sampler, were seeds not
    # fixed.
    assert abs(x.mean() - mean) < 5 * (variance / x.size) ** 0.5
    squares = (x - mean) ** 2
    assert abs(np.mean(squares) - variance) < 5 * np.std(squares) / x.size**0.5


KEY = jax.random.key(0)
SDE = {"algorithm_type": "sde-dpmsolver++"}


# n steps are enough for an error of discretisation below two standard errors.
@pytest.mark.parametrize(
    ("name", "options", "n"),
    [
        ("EDMEulerAncestralScheduler", {}, 200),
        ("EDMEulerAncestralScheduler", {"eta": 0.5}, 200),
        ("EDMDPMSolverMultistepScheduler", SDE, 50),
        ("EDMDPMSolverMultistepScheduler", {**SDE, "solver_type": "heun"}, 50),
        ("EDMHeunScheduler", {"s_churn": 20.0}, 50),
        ("EDMHeunScheduler", {"s_churn": 20.0, "s_tmin": 0.3, "s_tmax": 3.0}, 50),
        ("EDMDPM2Scheduler", {"s_churn": 10.0}, 50),
        (MULTI, {**SDE, "solver_order": 3}, 50),
        (MULTI, {"algorithm_type": "sde-dpmsolver", "solver_type": "heun"}, 100),
        # The noises of the calls of a step are independent of each other: of first order only.
        thorough(SINGLE, {**SDE, "solver_order": 2}, 600),
        thorough(SINGLE, {**SDE, "solver_order": 3, "solver_type": "heun"}, 600),
        ("EDMEulerScheduler", {"s_churn": 10.0}, 200),
        ("KarrasVeScheduler", {"s_churn": 20.0}, 50),
        ("KarrasVeScheduler", {"s_churn": 20.0, "s_min": 0.3, "s_max": 3.0}, 50),
    ],
)
def test_samplers_with_noise_draw_the_mixture(name, options, n):
    if name == "KarrasVeScheduler":
        scheduler, levels = karras_ve(**options)
    else:
        scheduler, levels = (edm if name.startswith("EDM") else log_snr)(name, **options)
    state = jax.jit(levels, static_argnums=0)(n)
    x = run(scheduler, denoiser, state, draws(state, MIXTURE))
    x = x / state.alphas[-1]
    weights, means, stds = np.array(MIXTURE).T
    mean = weights @ means
    end = float(state.sigmas[-1] / state.alphas[-1])
    assert_mean_and_variance(x, mean, weights @ (stds**2 + means**2) - mean**2 + end**2)
    left = cumulative(np.zeros(1), end)[0]  # near the weight of the first Gaussian
    assert abs(np.mean(x < 0) - left) < 5 * (left * (1 - left) / x.size) ** 0.5


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("EDMEulerScheduler", {}, 0.02),
        ("EDMHeunScheduler", {"sigma_data": 2.0}, 0.001),
        ("EDMDPM2Scheduler", {"prediction_type": "v_prediction"}, 0.001),
        ("EDMDPMSolverMultistepScheduler", {}, 0.001),
        ("HeunDiscreteScheduler", {}, 0.004),
        (
            "HeunDiscreteScheduler",
            {"use_karras_sigmas": True, "prediction_type": "v_prediction"},
            0.004,
        ),
        ("KDPM2DiscreteScheduler", {"prediction_type": "sample"}, 0.004),
        ("KarrasVeScheduler", {"s_churn": 0.0}, 0.002),
        ("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}, 0.02),
        ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}, 0.02),
        (MULTI, {"prediction_type": "v_prediction"}, 0.002),
        (MULTI, {"prediction_type": "flow_prediction", "use_flow_sigmas": True}, 0.01),
        (UNIPC, {"prediction_type": "flow_prediction", "use_flow_sigmas": True}, 0.01),
        (SINGLE, {"prediction_type": "sample"}, 0.01),
        (
            "PNDMScheduler",
            {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
            0.01,
        ),
        ("PNDMScheduler", {"skip_prk_steps": True, "prediction_type": "sample"}, 0.02),
        ("IPNDMScheduler", {}, 0.001),
        ("FlowMapEulerDiscreteScheduler", {"shift": 3.0}, 0.02),
        (
            "EulerDiscreteScheduler",
            {"timestep_type": "continuous", "prediction_type": "v_prediction"},
            0.02,
        ),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "invert_sigmas": True}, 0.02),
        ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, 0.001),
    ],
)
def test_solvers_take_noise_to_gaussian_data_through_any_preconditioning(
    name, options, tolerance
):
    scheduler = schedulers.SCHEDULERS[name](**options)
    state = start(scheduler, num_inference_steps=200)
    init = draws(state, GAUSSIAN, 5)
    x = run(scheduler, functools.partial(denoiser, data=GAUSSIAN), state, init)
    expected = gaussian_flow(init, (state.alphas[0], state.sigmas[0]))
    np.testing.assert_allclose(x, expected, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "options", "n"),
    [
        thorough(
            "DDPMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}, 500
        ),
        thorough(
            "DDPMScheduler", {"variance_type": "fixed_large", "clip_sample": False}, 500
        ),
        thorough("KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}, 500),
        (
            "DPMSolverSDEScheduler",
            {"use_karras_sigmas": True, "prediction_type": "sample"},
            100,
        ),
        # Jumps take samples of the lower level to samples of the higher one.
        thorough("RePaintScheduler", {"jump_n_sample": 2, "clip_sample": False}, 500),
    ],
)
def test_ancestral_samplers_of_discrete_times_draw_gaussian_data(name, options, n):
    scheduler = schedulers.SCHEDULERS[name](**options)
    state = start(scheduler, num_inference_steps=n)
    estimate = functools.partial(denoiser, data=GAUSSIAN)
    x = run(scheduler, estimate, state, draws(state, GAUSSIAN))
    assert_mean_and_variance(x, MEAN, STD**2)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LCMScheduler", {}),
        ("SCMScheduler", {"sigma_data": 1.5}),
        ("FlowMatchLCMScheduler", {"shift": 3.0}),
        ("FlowMatchLCMScheduler", {"invert_sigmas": True}),
        (
            "FlowMatchEulerDiscreteScheduler",
            {"stochastic_sampling": True, "invert_sigmas": True},
        ),
    ],
)
def test_consistency_samplers_with_the_exact_function_draw_gaussian_data_in_any_number_of_steps(
    name, options, n
):
    scheduler = schedulers.SCHEDULERS[name](**options)
    state = start(scheduler, num_inference_steps=n)
    x = run(scheduler, gaussian_flow, state, draws(state, GAUSSIAN))
    assert_mean_and_variance(x, MEAN, STD**2)


def jump_as_x0(x, start, end):
    """The x0 with which one straight step from `start` arrives where the ODE does.

    The step is x' = kept x + (alpha' - kept alpha) x0 with kept = sigma' / sigma.
    """
    kept = end[1] / start[1]
    share = end[0] - kept * start[0]
    share = jnp.where(share > 0, share, 1)  # 0: there is no way to go
    return (gaussian_flow(x, start, end) - kept * x) / share


@pytest.mark.parametrize(
    ("gamma", "n"), [(0.0, 1), (0.0, 40), (0.3, 2), (0.3, 40), (1.0, 1), (1.0, 3)]
)
def test_ctm_with_the_exact_jump_draws_gaussian_data_for_any_gamma_and_number_of_steps(
    gamma, n
):
    scheduler = CTMScheduler(gamma=gamma, clip_denoised=False)
    state = start(scheduler, num_inference_steps=n)

    def x0(x, levels, s):
        return jump_as_x0(x, levels, scheduler.parametrization.path(s))

    x = run(scheduler, x0, state, draws(state, GAUSSIAN))
    assert_mean_and_variance(x, MEAN, STD**2 + scheduler.sigma_min**2)


@pytest.mark.parametrize(("eta", "n"), [(0.0, 4), (0.3, 8), ((0.9, 0.0, 1.0), 3)])
def test_tcd_with_the_exact_jump_draws_gaussian_data_for_any_eta(eta, n):
    scheduler = TCDScheduler(eta=eta)
    state = start(scheduler, num_inference_steps=n)
    next_times = np.append(state.timesteps[1:], np.float32(0))
    arrivals = jnp.asarray(np.floor(np.float32(1 - np.array(eta)) * next_times))

    def x0(x, levels):
        # TCD's networks learn the time to jump to; this one looks it up.
        here = jnp.argmin(jnp.abs(state.sigmas[:-1] - levels[1]))
        return jump_as_x0(x, levels, scheduler.parametrization.path(arrivals[here]))

    x = run(scheduler, x0, state, draws(state, GAUSSIAN))
    alpha, sigma = scheduler.parametrization.path(jnp.int32(0))
    assert_mean_and_variance(x, alpha * MEAN, (alpha * STD) ** 2 + sigma**2)
