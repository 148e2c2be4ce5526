"""What users meet: options, levels, and one clear line for every misuse, of every scheduler."""

import dataclasses
import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.schedulers import SCHEDULERS, scheduler_from_config
from cmjax.schedulers.bounds import dynamic_threshold
from cmjax.schedulers.discrete import DiscreteScheduler
from cmjax.schedulers.discrete_sigmas import DiscreteSigmasScheduler
from cmjax.schedulers.edm import EDMScheduler
from cmjax.schedulers.flow import FlowScheduler
from cmjax.schedulers.flow_match import FlowMatchScheduler
from cmjax.schedulers.log_snr import LogSNRScheduler
from tests.support.tiers import each, every_scheduler


def of_kind(*kinds):
    return [name for name, cls in SCHEDULERS.items() if issubclass(cls, kinds)]


KEY = jax.random.key(0)
SHAPE = (2, 3)
DISCRETE = of_kind(DiscreteScheduler, DiscreteSigmasScheduler, LogSNRScheduler)
DISTILLED = ["LCMScheduler", "TCDScheduler"]
EDM = of_kind(EDMScheduler)
VE = of_kind(DiscreteSigmasScheduler)
FLOW_MATCH = of_kind(FlowMatchScheduler)
FLOW = of_kind(FlowScheduler) + FLOW_MATCH
CM = of_kind(cmjax.CMStochasticIterativeScheduler)
LOG_SNR = of_kind(LogSNRScheduler)
UPWARDS = [name for name in SCHEDULERS if "Inverse" in name]
PSEUDO = ["PNDMScheduler", "IPNDMScheduler"]
TWO_CALLS = [name for name in SCHEDULERS if "Heun" in name or "DPM2" in name]  # a step
TWO_CALLS += ["DPMSolverSDEScheduler", "KarrasVeScheduler"]
CORRECTED = ["ScoreSdeVeScheduler"]  # two calls at every level
EVERY_SECOND = TWO_CALLS + CORRECTED


def start(scheduler, **levels):
    """set_timesteps under jit: eagerly, every new length compiles each of its operations."""
    return jax.jit(lambda: scheduler.set_timesteps(**levels))()


def draw(scheduler, dtype=jnp.float32, **levels):
    """Samples step by step, where XLA does not keep more digits than the dtype has."""
    state, x = scheduler.init(KEY, scheduler.set_timesteps(**levels), SHAPE, dtype)
    for _ in range(state.num_steps):
        state, (x, _) = scheduler.step(
            KEY, state, jnp.tanh(scheduler.scale_input(state, x)), x
        )
    return np.asarray(x, np.float32)


def assert_one_line(error, *words):
    message = str(error.value)
    assert "\n" not in message, message
    for word in words:
        assert word in message, message


@every_scheduler
def test_an_option_of_a_wrong_type_or_size_is_named_in_one_line(name):
    for field in dataclasses.fields(SCHEDULERS[name]):
        for value in ("x", math.nan, math.inf, [0.1, -2.0], -1e30, {}, ("a",)):
            with pytest.raises(ValueError) as error:
                SCHEDULERS[name](**{field.name: value})
            # Lists are taken for tuples, as JSON has them.
            given = tuple(value) if isinstance(value, list) else value
            assert_one_line(error, field.name, repr(given))


TCD = ["TCDScheduler"]
FLOW_LCM = ["FlowMatchLCMScheduler"]
MULTISTEP = ["EDMDPMSolverMultistepScheduler"]
UNIPC = ["UniPCMultistepScheduler"]
TWO_GRIDS = {"use_karras_sigmas": True, "use_exponential_sigmas": True}
BAD_OPTIONS = [
    (
        VE + FLOW_MATCH,
        TWO_GRIDS,
        "use_karras_sigmas and use_exponential_sigmas exclude each other",
    ),
    (
        VE + FLOW_MATCH,
        {**TWO_GRIDS, "use_beta_sigmas": True},
        "use_exponential_sigmas and use_beta_sigmas exclude each other",
    ),
    (
        ["KarrasVeScheduler"],
        {"sigma_min": 2.0, "sigma_max": 1.0},
        "sigma_min 2.0 must be less than sigma_max 1.0",
    ),
    (
        FLOW_MATCH,
        {"base_image_seq_len": 256, "max_image_seq_len": 256},
        "base_image_seq_len and max_image_seq_len must differ, got 256",
    ),
    (
        FLOW_LCM,
        {"scale_factors": (0.5, 1.0)},
        r"scale_factors=\(0.5, 1.0\) is not supported; .*init=",
    ),
    (
        FLOW_MATCH,
        {"shift_terminal": 1.0},
        "shift_terminal .*between 0 and 1.*got 1.0",
    ),
    (DISCRETE, {"prediction_type": "flow"}, "prediction_type.*'v_prediction'.*'flow'"),
    (
        DISCRETE,
        {"trained_betas": (0.1, 0.2)},
        "trained_betas must be a tuple of 1000 numbers",
    ),
    (
        DISCRETE,
        {"trained_betas": (1.0,), "num_train_timesteps": 1},
        "trained_betas.*between 0 and 1",
    ),
    (
        DISTILLED,
        {"original_inference_steps": 1001},
        "original_inference_steps 1001 must be at most .* 1000",
    ),
    (TCD, {"eta": (0.1, -0.1)}, r"eta must be .*a tuple.*got \(0.1, -0.1\)"),
    (TCD, {"eta": [0.1, "x"]}, r"eta.*\(0.1, 'x'\)"),
    (
        ["SCMScheduler"],
        {"prediction_type": "epsilon"},
        "prediction_type.*'trigflow'.*'epsilon'",
    ),
    (
        ["IPNDMScheduler"],
        {"trained_betas": (0.9, 0.0, 0.5)},
        r"trained_betas .*two or more noise levels.*only the last.*got \(0.9, 0.0, 0.5\)",
    ),
    (EDM, {"prediction_type": "sample"}, "prediction_type.*'v_prediction'.*'sample'"),
    (CORRECTED, {"sigma_min": 1400.0}, "sigma_min 1400.0 must be less than .* 1348.0"),
    (EDM + CM, {"sigma_min": 90}, "sigma_min 90 .*sigma_max 80.0"),
    (MULTISTEP, {"algorithm_type": "dpmsolver"}, "algorithm_type.*'dpmsolver'"),
    (
        ["DPMSolverMultistepInverseScheduler"],
        {"algorithm_type": "sde-dpmsolver++"},
        "algorithm_type.*'sde-dpmsolver",
    ),
    (LOG_SNR, {"lambda_min_clipped": math.inf}, "lambda_min_clipped .*-inf, got inf"),
    (
        LOG_SNR,
        {"use_lu_lambdas": True, "use_karras_sigmas": True},
        "use_karras_sigmas and use_lu_lambdas exclude each other",
    ),
    (
        LOG_SNR,
        {"prediction_type": "flow_prediction"},
        "prediction_type='flow_prediction' does not go with use_flow_sigmas=False",
    ),
    (
        LOG_SNR,
        {"prediction_type": "v_prediction", "use_flow_sigmas": True},
        "prediction_type='v_prediction' does not go with use_flow_sigmas=True",
    ),
    (
        LOG_SNR,
        {"use_dynamic_shifting": True},
        r"use_dynamic_shifting=True is not supported; set flow_shift=exp\(mu\)",
    ),
    (UNIPC, {"shift_terminal": 0.1}, "shift_terminal=0.1 is for use_flow_sigmas=True"),
    (
        UNIPC,
        {"sigma_min": 9.0, "sigma_max": 3.0},
        "sigma_min 9.0 must be less than sigma_max 3.0",
    ),
]


@pytest.mark.parametrize(("names", "options", "message"), BAD_OPTIONS)
def test_options_that_are_not_supported_say_what_to_do(names, options, message):
    for name in names:
        with pytest.raises(ValueError, match=message) as error:
            make(name, options)
        assert_one_line(error)


def make(name, options):
    """From a file of diffusers, where options that change nothing here may stand, or by hand."""
    cls = SCHEDULERS[name]
    fields = {field.name for field in dataclasses.fields(cls)}
    return cls(**options) if options.keys() <= fields else cls.from_config(options)


@every_scheduler
def test_wrong_levels_are_named_in_one_line(name):
    scheduler = SCHEDULERS[name]()
    for n in (0, -1, 2.0, "3", True, [3], 10**7):
        with pytest.raises(ValueError) as error:
            scheduler.set_timesteps(n)
        assert_one_line(error, "num_inference_steps", repr(n))
    for argument in ("timesteps", "sigmas"):
        for value in WRONG_LISTS:
            with pytest.raises(ValueError) as error:
                scheduler.set_timesteps(**{argument: value})
            assert_one_line(error, argument)
    for arguments in ({}, {"num_inference_steps": 1, "timesteps": [1]}):
        with pytest.raises(ValueError) as error:
            scheduler.set_timesteps(**arguments)
        assert_one_line(error, "num_inference_steps", *(arguments or ["none"]))


def test_twice_the_channels_are_said_to_be_learned_variances():
    def network(params, x, t):
        return jnp.concatenate([x, x], axis=-1)

    with pytest.raises(ValueError, match=r"sample \(2, 3\); .* return the first half"):
        run = (jax.random.key(0), network, None, cmjax.DDIMScheduler(), (2, 3))
        cmjax.sample(*run, num_inference_steps=1)


WRONG_LISTS = [
    # Not lists of finite numbers.
    *([], ["a"], [None], [math.nan], [1j], [True], 0.5, "abc", [[0.5]]),
    # Beyond every range.
    *([1e39], [-1e9]),
    # Not descending.
    *([0.5, 0.5], [1, 2], [2, 2]),
]


BAD_LEVELS = [
    (
        "DDIMScheduler",
        {},
        {"sigmas": [0.5]},
        r"DDIMScheduler takes timesteps=\[999.*not sigmas",
    ),
    ("DDIMScheduler", {}, {"timesteps": [1000]}, r"timesteps.*\[0, 999\].*\[1000\]"),
    (
        "DDIMScheduler",
        {"steps_offset": 1},
        {"num_inference_steps": 1000},
        "steps_offset=1 leads beyond.* 999",
    ),
    (
        "LCMScheduler",
        {},
        {"num_inference_steps": 51},
        "original_inference_steps.*=50, got 51",
    ),
    (
        "LCMScheduler",
        {},
        {"num_inference_steps": 6, "strength": 0.1},
        "original_inference_steps.*=5, got 6",
    ),
    (
        "TCDScheduler",
        {},
        {"num_inference_steps": 4, "strength": 0.0},
        "strength must be.*got 0.0",
    ),
    (
        "TCDScheduler",
        {},
        {"timesteps": [9], "strength": 0.5},
        "strength.*with timesteps, start the list lower",
    ),
    (
        "TCDScheduler",
        {"eta": (0.1, 0.2)},
        {"num_inference_steps": 3},
        "eta has 2 entries, but the run has 3 steps",
    ),
    (
        "UniPCMultistepScheduler",
        {"timestep_spacing": "leading", "num_train_timesteps": 4},
        {"num_inference_steps": 4},
        "num_inference_steps .* from 1 to 3, got 4",
    ),
    (
        "DPMSolverMultistepScheduler",
        {"timestep_spacing": "leading", "steps_offset": 10},
        {"num_inference_steps": 999},
        "steps_offset=10 leads beyond.* 999",
    ),
    (
        "DPMSolverMultistepScheduler",
        {"lambda_min_clipped": 20.0},
        {"num_inference_steps": 4},
        "lambda_min_clipped=20.0 leaves no training times",
    ),
    (
        "DEISMultistepScheduler",
        {"use_beta_sigmas": True},
        {"timesteps": [9]},
        "leave out use_beta_sigmas, or give num_inference_steps",
    ),
    (
        "IPNDMScheduler",
        {"trained_betas": (0.9, 0.5, 0.0)},
        {"num_inference_steps": 5},
        "num_inference_steps must be 2, the steps of trained_betas, got 5",
    ),
    ("IPNDMScheduler", {}, {"timesteps": [1.5]}, r"timesteps must lie in .*1\].*1.5"),
    # diffusers and k-diffusion end a list of levels with that where the run ends.
    (
        "EulerDiscreteScheduler",
        {},
        {"sigmas": [5.0, 1.0, 0.0]},
        "sigmas must lie in .*; leave out the 0, where runs end by themselves",
    ),
    (
        "ScoreSdeVpScheduler",
        {},
        {"sigmas": [0.5]},
        r"ScoreSdeVpScheduler takes timesteps=\[1.0.*not sigmas",
    ),
    ("SCMScheduler", {}, {"timesteps": [1.6]}, r"timesteps \(angles.*1.5707964\).*1.6"),
    ("EDMEulerScheduler", {}, {"sigmas": [80.1]}, r"sigmas.*\[0.002, 80\].*80.1"),
    ("KarrasVeScheduler", {}, {"timesteps": [51.0]}, r"timesteps.*\[0.01, 50\].*51"),
    (
        "KDPM2DiscreteScheduler",
        {"use_karras_sigmas": True},
        {"timesteps": [9]},
        "leave out use_karras_sigmas, or give sigmas",
    ),
]


@pytest.mark.parametrize(("name", "options", "levels", "message"), BAD_LEVELS)
def test_levels_that_a_scheduler_does_not_take_say_what_to_do(
    name, options, levels, message
):
    with pytest.raises(ValueError, match=message) as error:
        SCHEDULERS[name](**options).set_timesteps(**levels)
    assert_one_line(error)


@pytest.mark.parametrize("name", DISCRETE)
def test_a_training_time_without_signal_is_refused_where_the_network_predicts_noise(name):
    stable = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    for levels in ({"num_inference_steps": 4}, {"timesteps": [999, 400]}):
        with pytest.raises(
            ValueError,
            match="rescale_betas_zero_snr leaves no signal at.*999.*use 'v_prediction'",
        ):
            SCHEDULERS[name].from_config(stable).set_timesteps(**levels)
    with pytest.raises(ValueError, match="beta_end=0.5 .*training time 999"):
        SCHEDULERS[name](beta_end=0.5).set_timesteps(timesteps=[999])
    start(SCHEDULERS[name].from_config(stable), timesteps=[998, 400])
    by_velocity = SCHEDULERS[name].from_config(
        {**stable, "prediction_type": "v_prediction"}
    )
    state = start(by_velocity, timesteps=[999, 400])
    assert all(np.all(np.isfinite(numbers)) for numbers in jax.tree.leaves(state))


TIMES = ({"timesteps": [999, 40]}, [999, 40], None)
SIGMAS = ({"sigmas": [9.0, 0.5]}, None, [9, 0.5])
WRITTEN = {  # arguments, and the times and noise levels that they must give
    **dict.fromkeys(
        EDM, [SIGMAS, ({"timesteps": [0.5, -0.5]}, [0.5, -0.5], np.exp([2, -2]))]
    ),
    **dict.fromkeys(
        CM, [SIGMAS, ({"timesteps": [39, 0]}, 250 * np.log([80, 0.002]), [80, 0.002])]
    ),
    # Above the levels that churn raises.
    "KarrasVeScheduler": [
        ({"sigmas": [80.0, 60.0]}, [40, 30], [80, 60]),
        ({"timesteps": [40.0, 30.0]}, [40, 30], [80, 60]),
    ],
    **dict.fromkeys(DISCRETE, [TIMES]),
    **dict.fromkeys(VE, [TIMES, SIGMAS]),
    "DDIMInverseScheduler": [({"timesteps": [999, 40]}, [40, 999], None)],
    **dict.fromkeys(
        FLOW,
        [
            ({"sigmas": [0.9, 0.1]}, [900, 100], None),
            ({"timesteps": [900, 100]}, None, [0.9, 0.1]),
        ],
    ),
    **dict.fromkeys(UPWARDS, [({"timesteps": [999, 40]}, [40, 999], None)]),
    "IPNDMScheduler": [
        ({"timesteps": [1.0, 0.5]}, [1, 0.5], [1, 0.5**0.5]),
        ({"sigmas": [0.8, 0.5]}, np.arcsin([0.8, 0.5]) / (math.pi / 2), [0.8, 0.5]),
    ],
    "ScoreSdeVeScheduler": [
        ({"sigmas": [9.0, 0.5]}, [9, 0.5], [9, 0.5]),
        ({"timesteps": [1.0, 0.5]}, [1348, 13.48**0.5], None),
    ],
    "ScoreSdeVpScheduler": [({"timesteps": [1.0, 0.5]}, [999, 499.5], None)],
    "SCMScheduler": [
        ({"timesteps": [1.5, 0.5]}, None, 0.5 * np.sin([1.5, 0.5])),
        ({"sigmas": [0.5, 0.1]}, np.arctan([1, 0.2]), None),
    ],
}


@every_scheduler
def test_levels_written_down_are_taken_also_when_traced(name):
    scheduler = SCHEDULERS[name]()
    every = 2 if name in EVERY_SECOND else 1
    if name == "PNDMScheduler":
        every = 4
    for levels, times, sigmas in WRITTEN[name]:
        state = start(scheduler, **levels)
        if times is not None:
            np.testing.assert_allclose(state.timesteps[::every], times, rtol=1e-5)
        if sigmas is not None:
            np.testing.assert_allclose(state.sigmas[:-1:every], sigmas, rtol=1e-5)
        # The network's times are those of the levels; between training times, interpolated.
        path = scheduler.parametrization.path(state.timesteps)
        levels_of_calls = (state.alphas[:-1], state.sigmas[:-1])
        np.testing.assert_allclose(path, levels_of_calls, rtol=1e-3, atol=1e-6)
        arrays = {argument: np.array(value) for argument, value in levels.items()}
        traced = jax.jit(lambda arrays: scheduler.set_timesteps(**arrays))(arrays)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), traced, state
        )


@pytest.mark.parametrize(
    "name",
    ["CTMScheduler", "DDIMScheduler", "FlowMapEulerDiscreteScheduler", "EDMHeunScheduler"],
)
def test_other_levels_of_the_same_count_compile_nothing(name):
    scheduler = SCHEDULERS[name]()
    traces = []

    def network(params, x, *times):
        return jnp.tanh(x)

    @jax.jit
    def sample(state):
        traces.append(1)
        return cmjax.sample(KEY, network, None, scheduler, SHAPE, state=state)

    ((argument, value),) = WRITTEN[name][0][0].items()
    lower = 1 if isinstance(value[0], int) else 0.0625
    x = sample(start(scheduler, **{argument: np.array(value)}))
    other = sample(start(scheduler, **{argument: np.array(value) - [0, lower]}))
    assert not np.array_equal(x, other)
    assert len(traces) == 1


HIGHEST = {  # times
    **dict.fromkeys(DISCRETE, 999),
    **dict.fromkeys(EDM, math.log(80) / 4),
    **dict.fromkeys(FLOW, 1000),
    **dict.fromkeys(CM, 250 * math.log(80)),
    "SCMScheduler": math.pi / 2,
    "IPNDMScheduler": 1,
    "KarrasVeScheduler": 50,
    "ScoreSdeVeScheduler": 1348,
    "ScoreSdeVpScheduler": 999,
}


@pytest.mark.parametrize("name", each(name for name in SCHEDULERS if name not in UPWARDS))
def test_runs_start_at_the_highest_level_and_have_the_network_calls_documented(name):
    scheduler = SCHEDULERS[name]()
    if getattr(scheduler, "timestep_spacing", "") == "leading":
        # Strides from the lowest time.
        highest = [max(start(scheduler, num_inference_steps=n).timesteps) for n in (1, 4)]
        assert highest == [0, 750]
        scheduler = dataclasses.replace(scheduler, timestep_spacing="trailing")
    for n in (1, 4):
        state = start(scheduler, num_inference_steps=n)
        if name == "DDIMInverseScheduler":
            # Upwards; where the last call is given to be, the run ends.
            assert state.num_steps == n
            assert state.timesteps[-1] == HIGHEST[name]
            assert np.all(np.diff(state.sigmas[:-1]) > 0)
            continue
        if name == "PNDMScheduler":
            assert state.num_steps == {1: 1, 4: 13}[n]
            assert state.timesteps[0] == HIGHEST[name]
            continue
        if name in CORRECTED:
            assert state.num_steps == 2 * n
        else:
            assert state.num_steps == (2 * n - 1 if name in TWO_CALLS else n)
        assert state.timesteps[0] == pytest.approx(HIGHEST[name], rel=1e-6)
        assert np.all(np.diff(state.sigmas[:: 2 if name in EVERY_SECOND else 1]) < 0)


@pytest.mark.parametrize("name", FLOW)
def test_flow_levels_never_pass_one_whatever_the_shift(name):
    for shift in np.geomspace(0.01, 100, 8):
        state = start(SCHEDULERS[name](shift=float(shift)), num_inference_steps=4)
        assert state.sigmas[0] == 1
        assert state.alphas[0] == 0
        every = 2 if name in TWO_CALLS else 1
        assert np.all(np.diff(state.sigmas[::every]) < 0)


DYNAMIC = {"use_dynamic_shifting": True}


@pytest.mark.parametrize("name", FLOW_MATCH)
def test_dynamic_shifting_is_the_shift_of_mu_also_when_traced(name):
    dynamic = SCHEDULERS[name](**DYNAMIC)
    assert dynamic.mu_of(256) == pytest.approx(0.5)
    assert dynamic.mu_of(4096) == pytest.approx(1.15)
    mu = dynamic.mu_of(1024)
    fixed = SCHEDULERS[name](shift=math.exp(mu)).set_timesteps(sigmas=[1.0, 0.4])
    state = jax.jit(lambda mu: dynamic.set_timesteps(sigmas=[1.0, 0.4], mu=mu))(mu)
    np.testing.assert_allclose(state.sigmas, fixed.sigmas, rtol=1e-6)
    linear = dataclasses.replace(dynamic, time_shift_type="linear")
    state = linear.set_timesteps(sigmas=[1.0, 0.4], mu=math.exp(mu))
    np.testing.assert_allclose(state.sigmas, fixed.sigmas, rtol=1e-6)


@pytest.mark.parametrize("name", FLOW_MATCH)
@pytest.mark.parametrize(
    ("options", "mu", "message"),
    [
        (DYNAMIC, None, r"use_dynamic_shifting needs mu: .*shift=exp\(mu\)"),
        (DYNAMIC, math.nan, "mu must be a number from -13.8 to 13.8, got nan"),
        (DYNAMIC, [1.0, 2.0], r"mu must be a number .*got \[1.0, 2.0\]"),
        ({**DYNAMIC, "time_shift_type": "linear"}, 0.0, "from 1e-06 to 1e.06, got 0.0"),
        ({}, 1.0, "mu=1.0 has no effect without .*; leave mu out, or set shift"),
    ],
)
def test_a_missing_or_useless_mu_says_what_to_do(name, options, mu, message):
    with pytest.raises(ValueError, match=message) as error:
        SCHEDULERS[name](**options).set_timesteps(2, mu=mu)
    assert_one_line(error)


@pytest.mark.parametrize(
    "levels",
    [
        *({"num_inference_steps": n} for n in (1, 2, 3, 999, 1000)),
        {"timesteps": [math.pi / 2]},
        {"sigmas": [1e18]},
    ],
)
def test_scm_never_passes_pi_over_two(levels):
    # float32's pi / 2 is above pi / 2: there x0 would be in the sample with the wrong sign.
    state = start(SCHEDULERS["SCMScheduler"](), **levels)
    assert np.all(np.float64(state.timesteps) < math.pi / 2)
    assert np.all(state.alphas > 0)


@pytest.mark.parametrize("name", TWO_CALLS + MULTISTEP + LOG_SNR + PSEUDO)
def test_a_solver_that_remembers_asks_for_init(name):
    scheduler = SCHEDULERS[name]()
    x = jnp.ones(SHAPE)
    state = start(scheduler, num_inference_steps=2)
    with pytest.raises(ValueError, match=f"{name} remembers earlier calls"):
        scheduler.step(KEY, state, x, x)
    with pytest.raises(ValueError, match=r"sample \(2, 3\).*memory.* \(1, 3\)"):
        scheduler.step(KEY, scheduler.prepare(state, x[:1]), x, x)
    scheduler.step(KEY, scheduler.prepare(state, x), x, x)


def test_tcd_takes_an_eta_per_step():
    tcd = SCHEDULERS["TCDScheduler"]
    mixed = start(tcd(eta=(0.0, 1, 0.3)), num_inference_steps=3).weights
    for i, eta in enumerate((0.0, 1, 0.3)):
        alone = start(tcd(eta=eta), num_inference_steps=3).weights
        row, row_alone = (
            jax.tree.map(lambda column, i=i: column[i], w) for w in (mixed, alone)
        )
        chex.assert_trees_all_equal(row, row_alone)


OTHER_WORDS = (
    "sample",
    "v_prediction",
    "exp",
    "exponential",
    "linear",
    "trailing",
    "leading",
)
OTHER_WORDS += ("sigma_min", "sde-dpmsolver++", "heun", "nearest")
OTHER_VALUES = ((0.5, 0.25), True, False, 0.5, 2, 1, 3.0, *OTHER_WORDS)


def other_config(cls):
    """A scheduler with as many options as possible other than by default."""
    fields = {field.name: field.default for field in dataclasses.fields(cls)}
    values = {
        "num_train_timesteps": 2,
        "original_inference_steps": 2,
        "trained_betas": (0.1, 0.2),
    }
    values = {name: value for name, value in values.items() if name in fields}
    for name, default in fields.items():
        for value in OTHER_VALUES:
            fits = default is None or isinstance(value, (tuple, type(default)))
            if name in values or value == default or not fits:
                continue
            try:
                values[name] = getattr(cls(**values, **{name: value}), name)
            except ValueError:
                continue
    return cls(**values)


@every_scheduler
def test_configs_of_other_values_than_the_defaults_survive_json(name):
    scheduler = other_config(SCHEDULERS[name])
    fields = [field.name for field in dataclasses.fields(scheduler)]
    default = SCHEDULERS[name]()
    changed = [
        field for field in fields if getattr(scheduler, field) != getattr(default, field)
    ]
    assert len(changed) >= 0.5 * len(fields), changed
    written = json.dumps({**scheduler.to_config(), "_comment": "ignored"})
    again = scheduler_from_config(json.loads(written))
    assert again == scheduler
    assert hash(again) == hash(scheduler)
    with pytest.raises(
        ValueError, match=f"{name} .*'num_train_timestep'.*'num_train_timesteps'"
    ):
        scheduler_from_config({"_class_name": name, "num_train_timestep": 10})
    with pytest.raises(ValueError, match=f"'{name}'"):
        scheduler_from_config({"_class_name": name + "s"})


@every_scheduler
def test_samples_are_finite_at_the_edges_of_what_is_allowed(name):
    cls = SCHEDULERS[name]
    for n in (1, 4):  # as many steps as training times
        options = {"num_train_timesteps": n}
        if name in DISTILLED:
            options["original_inference_steps"] = n
        assert np.all(np.isfinite(draw(cls.from_config(options), num_inference_steps=n)))
    if hasattr(cls, "sigma_max"):
        for low, high, dtype in ((1e-18, 1.1e-18, jnp.float32), (1e-6, 80.0, jnp.float16)):
            samples = draw(cls(sigma_min=low, sigma_max=high), dtype, num_inference_steps=4)
            assert np.all(np.isfinite(samples))


# Upwards, eps keeps its size; steps of the VP SDE are of a length of their own, and end elsewhere.
ENDS_WITHOUT_EPS = set(SCHEDULERS) - {*UPWARDS, "ScoreSdeVpScheduler"}


@pytest.mark.parametrize("name", sorted(ENDS_WITHOUT_EPS))
def test_editing_at_a_low_level_does_not_overflow_float16(name):
    # x0 is not what the network said, and (x - x0) / sigma is beyond float16: NaN, when multiplied
    # by the last weight, 0.
    scheduler = SCHEDULERS[name]()
    x = jnp.ones(SHAPE, jnp.float16)
    state = start(scheduler, num_inference_steps=1)
    sigmas = jnp.full_like(state.sigmas, 1e-6).at[-1].set(0)
    last = state.step_index + state.num_steps - 1
    state = state.replace(sigmas=sigmas, step_index=last)
    _, edited = scheduler.advance(scheduler.prepare(state, x), x, -x, x)
    assert np.all(np.isfinite(edited))


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_thresholding_scales_each_sample_by_its_own_quantile(rank):
    x = 3 * np.random.default_rng(rank).normal(size=(3, 5, 2, 4)[:rank]).astype(np.float32)
    quantiles = np.quantile(np.abs(x).reshape(3, -1), 0.9, axis=1)
    limit = np.clip(quantiles, 1, 2.5).reshape(-1, *[1] * (rank - 1))
    actual = dynamic_threshold(jnp.asarray(x), 0.9, 2.5)
    np.testing.assert_allclose(actual, np.clip(x, -limit, limit) / limit, rtol=1e-6)


@pytest.mark.parametrize("name", [*of_kind(DiscreteScheduler), "TCDScheduler"])
def test_levels_without_signal_make_a_finite_table(name):
    # Nine tenths of the training times have an alpha that float32 does not hold.
    betas = {"beta_start": 0.999, "beta_end": 0.999, "prediction_type": "v_prediction"}
    state = SCHEDULERS[name](**betas).set_timesteps(4)
    assert state.alphas[1] < 1e-14
    chex.assert_tree_all_finite(state)


def test_thresholding_leaves_samples_in_range_as_they_are():
    with jax.enable_x64(True):
        x = jnp.linspace(-0.9, 0.9, 7, dtype=jnp.float64)[None] / 3
        found = dynamic_threshold(x, 0.9, 1.0)
        assert found.dtype == jnp.float64
        np.testing.assert_array_equal(found, x)
