"""The tables of samplers in docs: the facts in the classes, and the times of each network."""

import fnmatch
import importlib.util
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.schedulers import SCHEDULERS, TableState
from tests.support.tiers import every_scheduler
from tests.support.variations import variations

TOOL = Path(__file__).parent.parent / "docs" / "samplers_table.py"
STEPS = 5
OF_CHURN = {"s_noise", "s_min", "s_max", "s_tmin", "s_tmax", "sigma_min"}
CALLS = {"1": STEPS, "2": 2 * STEPS - 1}  # the last of n steps of two calls has one


def tool():
    spec = importlib.util.spec_from_file_location("samplers_table", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_in_the_docs_is_the_one_that_the_tool_makes():
    page = tool().PAGE.read_text()
    assert page == tool().with_table(page), "run python docs/samplers_table.py"


def test_each_sampler_has_one_row_of_the_times_of_its_network():
    page = (TOOL.parent / "protocol.md").read_text()
    _, _, table = page.partition("| scheduler | time input of the network |")
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    for name in SCHEDULERS:
        found = [listed for listed in names if fnmatch.fnmatch(name, listed)]
        assert len(found) == 1, (name, found)


def states(name):
    """The state of a run for each variation that has one, by the option that was changed."""
    cls = SCHEDULERS[name]
    for option, scheduler in [("", cls()), *variations(cls)]:
        try:
            state = scheduler.set_timesteps(STEPS)
        except ValueError:
            continue  # such as dynamic shifts, which need the size of the image
        yield option, scheduler.prepare(state, jnp.zeros((1, 2)))


def adds_noise(state):
    """Whether any step of a run adds fresh noise; None where no table says so."""
    if not isinstance(state, TableState):
        return None
    noise = state.weights.noise
    return noise is not None and bool(np.any(noise))


@every_scheduler
def test_the_facts_that_a_table_shows_are_right(name):
    facts = vars(SCHEDULERS[name])[
        "facts"
    ]  # its own, not those of a sampler it inherits from
    assert all(vars(facts).values())
    runs = list(states(name))

    # Network calls of a run. Where a step has a varying number of them, n counts the calls.
    lengths = {state.num_steps for _, state in runs}
    if facts.calls in CALLS:
        assert lengths == {CALLS[facts.calls]}
    else:
        assert min(lengths) >= STEPS

    # Arrays that are kept.
    kept = sorted({len(jax.tree.leaves(state.memory)) for _, state in runs})
    assert facts.memory == (str(kept[0]) if len(kept) == 1 else f"{kept[0]} to {kept[-1]}")

    # Fresh noise: always, never, or with the options in backticks and no others. That churn has a
    # scale and a range of levels, which may be empty, goes without saying.
    noisy = [(option, adds_noise(state)) for option, state in runs]
    _, usual = noisy[0]
    if usual is not None:
        deciding = {option for option, noise in noisy if noise != usual} - OF_CHURN
        assert deciding == set(re.findall(r"`(\w+)`", facts.noise))
        assert deciding or facts.noise == ("yes" if usual else "no")
