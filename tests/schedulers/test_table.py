"""The table: every column against a plain recurrence, and the sampler of docs/protocol.md."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import testing
from cmjax.parametrization import EDM
from cmjax.schedulers import SCHEDULERS, EDMScheduler, Scheduler, Weights, scheduler_like
from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.weights import alternate

SIGMAS = [8.0, 4.0, 2.0, 1.0, 0.5]
SHAPE = (2, 3)


def drawn_weights(rng, num_earlier, columns):
    """Random columns of a run of as many calls as there are levels."""

    def column():
        return jnp.asarray(rng.normal(size=len(SIGMAS)), jnp.float32)

    drawn = {name: column() for name in ("x0", "eps", *columns)}
    earlier_x0 = tuple(column() for _ in range(num_earlier))
    earlier_eps = tuple(column() for _ in range(num_earlier // 2))
    return Weights(**drawn, earlier_x0=earlier_x0, earlier_eps=earlier_eps)


@pytest.mark.parametrize("num_earlier", [0, 1, 2, 3, 5])
@pytest.mark.parametrize(
    "columns", [(), ("noise",), ("last_sample",), ("noise", "last_noise", "last_sample")]
)
def test_a_step_is_the_weighted_sum_of_its_columns(num_earlier, columns):
    rng = np.random.default_rng(num_earlier)
    weights = drawn_weights(rng, num_earlier, columns)
    scheduler = EDMScheduler.__subclasses__()[0]()
    state = scheduler.set_timesteps(sigmas=SIGMAS).replace(weights=weights)
    state, x = scheduler.init(jax.random.key(0), state, SHAPE)

    # The same in float64, from lists of everything that there ever was.
    zeros = np.zeros(SHAPE)
    samples, estimates, noises = [zeros], [zeros] * 5, [zeros]
    directions = [zeros] * 5
    expected = np.float64(x)
    for i, sigma in enumerate(SIGMAS):
        x0, noise = rng.normal(size=(2, *SHAPE)).astype(np.float32)
        state, x = scheduler.advance(state, x, jnp.asarray(x0), jnp.asarray(noise))

        row = jax.tree.map(lambda column, i=i: float(column[i]), weights)
        result = row.x0 * x0 + row.eps * (expected - x0) / sigma
        result += sum(w * e for w, e in zip(row.earlier_x0, estimates[::-1], strict=False))
        result += sum(
            w * e for w, e in zip(row.earlier_eps, directions[::-1], strict=False)
        )
        if "noise" in columns:
            result += row.noise * noise
        if "last_sample" in columns:
            result += row.last_sample * samples[-1]
        if "last_noise" in columns:
            result += row.last_noise * noises[-1]
        samples.append(expected)
        estimates.append(x0)
        directions.append((expected - x0) / sigma)
        noises.append(noise)
        expected = result
        np.testing.assert_allclose(x, expected, rtol=2e-4, atol=2e-4)


def test_absent_columns_are_not_remembered():
    scheduler = cmjax.CMStochasticIterativeScheduler()
    state, _ = scheduler.init(jax.random.key(0), scheduler.set_timesteps(2), SHAPE)
    assert jax.tree.leaves(state.memory) == []


def test_two_calls_a_step_alternate_and_the_last_step_has_one():
    first = Weights(x0=1.0, eps=jnp.array([1.0, 2.0]))
    second = Weights(x0=0.0, eps=3.0, last_sample=jnp.array([4.0, 5.0]))
    weights = alternate(first, second, 2)
    np.testing.assert_array_equal(weights.x0, [1, 0, 1])
    np.testing.assert_array_equal(weights.eps, [1, 3, 2])
    np.testing.assert_array_equal(weights.last_sample, [0, 4, 0])
    assert weights.noise is None and weights.earlier_x0 == ()


def test_a_sampler_that_forgets_a_method_is_told_so_when_it_is_made():
    methods = set(Scheduler.__abstractmethods__) - {"denoise"}
    body = {name: getattr(EDMScheduler, name) for name in methods}
    with pytest.raises(TypeError, match="denoise"):
        type("Forgetful", (Scheduler,), body)()


def test_get_scalings_are_those_of_the_parametrization():
    scheduler = cmjax.CMStochasticIterativeScheduler(sigma_data=0.7)
    sigma = jnp.array([0.002, 0.3, 80.0])
    _, *edm = EDM(0.7).scalings(1.0, sigma)
    np.testing.assert_array_equal(scheduler.get_scalings(sigma), edm)
    _, *boundary = EDM(0.7, 0.002).scalings(1.0, sigma)
    np.testing.assert_array_equal(
        scheduler.get_scalings_for_boundary_condition(sigma), boundary
    )
    np.testing.assert_array_equal(boundary[0][0], 1)


@pytest.fixture(scope="module")
def documented():
    """The class that docs/protocol.md writes."""
    page = Path(__file__).parents[2] / "docs" / "protocol.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    namespace = {"__name__": "documented"}
    exec(code, namespace)
    body = code[code.index("class ") :].strip().splitlines()
    assert len(body) <= 15
    return namespace["AdamsBashforthScheduler"]


def test_the_documented_sampler_keeps_the_contract(documented):
    testing.assert_scheduler_contract(documented(), 3)


def test_the_documented_sampler_is_of_order_two(documented):
    # On Gaussian data the flow is known: (x - mean) / sqrt(std^2 + sigma^2) is constant.
    std, low, high = 0.5, 0.5, 8.0
    scheduler = documented(
        sigma_min=low, sigma_max=high, rho=1.0, final_sigmas_type="sigma_min"
    )
    network = testing.network_of(
        scheduler.parametrization, lambda _, x, sigma: x * std**2 / (std**2 + sigma**2)
    )
    x = jnp.linspace(-8, 8, 6).reshape(2, 3)
    expected = x * ((std**2 + low**2) / (std**2 + high**2)) ** 0.5

    def error(n):
        sigmas = np.linspace(high, low, n + 1)[:-1]
        made = cmjax.sample(
            jax.random.key(0), network, None, scheduler, SHAPE, sigmas=sigmas, init=x
        )
        return float(jnp.abs(made - expected).max())

    orders = [np.log2(error(n) / error(2 * n)) for n in (80, 160)]
    assert all(1.8 < order < 2.3 for order in orders), orders


def test_a_column_of_the_wrong_length_is_named():
    class TooLong(EDMScheduler):
        def weights(self, levels):
            return Weights(x0=1.0, eps=levels.sigmas)

    with pytest.raises(ValueError, match=r"column of weights .* \(3,\), got \(4,\)"):
        TooLong().set_timesteps(3)


def test_file_options_are_inherited():
    class Own(EDMScheduler):
        weights = None
        _file_options = {"mine": FileOption(1, numbers=(0, 2))}

    assert {"mine", "num_train_timesteps"} <= Own().to_config().keys()
    assert Own.from_config({"mine": 2, "num_train_timesteps": 500}) == Own()


def test_scheduler_like_keeps_the_defaults_of_the_class():
    reference = cmjax.EDMHeunScheduler(sigma_max=40.0)
    made = scheduler_like(reference, "CMStochasticIterativeScheduler", clip_denoised=False)
    assert (made.sigma_max, made.timestep_spacing) == (40.0, "linspace")
    assert scheduler_like(reference, cmjax.CTMScheduler).timestep_spacing == "linspace"
    assert scheduler_like(reference, "EDMHeunScheduler", rho=5.0).sigma_max == 40.0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0, 2.0), "must return Weights"),
        (Weights(x0=1.0, eps=None), "weights.x0 and weights.eps must be"),
        (Weights(x0=1.0, eps=0.0, earlier_x0=[0.0]), "weights.earlier_x0 must be a tuple"),
    ],
)
def test_what_is_no_table_is_named(weights, message):
    class Mistaken(EDMScheduler):
        def weights(self, levels):
            return weights

    with pytest.raises(ValueError, match=message):
        Mistaken().set_timesteps(2)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("levels", ["num_inference_steps", "timesteps"])
def test_a_run_begins_by_one_program(name, levels, caplog):
    scheduler = SCHEDULERS[name](beta_end=0.0123)

    def begin(n):
        value = n if levels == "num_inference_steps" else list(range(900, 900 - n, -1))
        caplog.clear()
        with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
            state = scheduler.set_timesteps(**{levels: value})
        compiled = [each for each in caplog.messages if each.startswith("Finished XLA")]
        return state, len(compiled)

    state, programs = begin(11)
    assert programs == 1
    assert begin(11)[1] == 0
    assert state.num_steps == 11 and state.scheduler is scheduler


def test_what_begins_a_run_is_found_by_type_too():
    # 2 == 2.0 and 1 == True, also as keys of a cache.
    scheduler = cmjax.EulerDiscreteScheduler()
    for right, wrong in ((2, 2.0), (1, True)):
        scheduler.set_timesteps(right)
        with pytest.raises(ValueError, match="num_inference_steps must be an integer"):
            scheduler.set_timesteps(wrong)


def test_errors_come_without_notes_of_jax():
    scheduler = cmjax.EulerDiscreteScheduler()
    for levels in ({"num_inference_steps": 1001}, {"timesteps": [5, 6]}):
        with pytest.raises(ValueError) as error:
            scheduler.set_timesteps(**levels)
        assert not getattr(error.value, "__notes__", [])
