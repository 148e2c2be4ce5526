"""Whatever is passed: success, or a ValueError or TypeError of one line that names an argument.

`CMJAX_FUZZ_CALLS=200 pytest tests/test_fuzz_api.py` makes that many calls with each seed.
"""

import os
import random
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.api_calls import calls
from tests.support.draws import draws
from tests.support.hostile import HOSTILE, Tracer

# What says as well which argument it was: of configurations and registries, and of files.
ALSO_NAMED = {
    *("_class_name", "config", "option", "options", "name", "network", "scheduler", "read"),
    *("sigmas", "num_train_timesteps"),
}
SEEDS = (3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26)
CALLS = int(os.environ.get("CMJAX_FUZZ_CALLS", "100"))


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", SEEDS[: draws(len(SEEDS))])
def test_hostile_arguments_end_in_success_or_a_named_error(seed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(seed)
    table = calls()
    faults = []
    for _ in range(CALLS):
        name = rng.choice(list(table))
        function, arguments = table[name]
        replaced = {key: rng.choice(list(HOSTILE)) for key in chosen(rng, arguments)}
        if fault := fault_of(function, arguments, replaced):
            faults.append(f"{name}({replaced}): {fault}")
    assert not faults, "\n".join(faults)


def chosen(rng, arguments):
    """One argument or, every fourth time, two."""
    count = min(len(arguments), 1 + (rng.random() < 0.25))
    return rng.sample(list(arguments), count)


def fault_of(function, arguments, replaced):
    """What is wrong with the outcome of a call, or None."""
    values = {name: HOSTILE[kind]() for name, kind in replaced.items()}
    traced = {
        name: value.value for name, value in values.items() if isinstance(value, Tracer)
    }

    # Checked values of a trace are not known; what such a call returns has none either.
    def traced_call(**arrays):
        function(**{**arguments, **values, **arrays})

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # numbers that are too large
            warnings.simplefilter("ignore", DeprecationWarning)  # generators as pytrees
            if traced:
                jax.eval_shape(traced_call, **traced)
                return None
            result = function(**{**arguments, **values})
            jax.block_until_ready(result)
            fault = fault_of_result(result)
    except (ValueError, TypeError) as error:
        return fault_of_message(str(error), arguments)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None if is_infinite(values.values()) else fault


def fault_of_message(message, arguments):
    if len(message.splitlines()) != 1 or not message.isprintable():
        return f"not one line: {message[:200]!r}"
    words = set(re.findall(r"\w+", message))
    if not words & {*arguments, *ALSO_NAMED}:
        return f"names no argument: {message[:200]}"
    if len(message) > 2000:
        return f"{len(message)} characters: {message[:200]}"
    return None


def fault_of_result(result):
    """Numbers that are not finite, though all arguments were."""
    for leaf in jax.tree.leaves(result):
        if isinstance(leaf, jax.Array | np.ndarray | float):
            array = np.asarray(leaf) if not is_key(leaf) else np.zeros(1)
            if jnp.issubdtype(array.dtype, jnp.floating) and not is_finite(array):
                return f"not finite: {leaf}"
    return None


def is_key(leaf):
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def is_finite(array):
    return np.isfinite(array.astype(np.float64)).all()


def is_infinite(values):
    """Whether an argument is not finite, or its square is not in float32."""
    for value in values:
        try:
            array = np.asarray(value, np.float64)
        except Exception:
            continue
        if not (np.abs(array) < 1e15).all():
            return True
    return False
