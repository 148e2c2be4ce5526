"""The students of `digits_table.py`: their networks, made of one denoiser, and settings."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import cmjax
from cmjax.models import extend, from_nnx
from cmjax.models.registry import architecture, network_name
from cmjax.parametrization import adapt, edm_denoiser

SCHEDULER = cmjax.CMStochasticIterativeScheduler()
HEUN = cmjax.EDMHeunScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
CTM = cmjax.CTMScheduler()
FLOW = cmjax.FlowMatchEulerDiscreteScheduler()
FLOW_MAP = cmjax.FlowMapEulerDiscreteScheduler()

# What differs from the papers' settings, which are for 100 to 1,000 times as many steps. Mean flows
# have uniform times, since a single step starts at t = 1, and fewer samples with r = t, which the
# denoiser can do already. Grids are coarser, and targets follow sooner.
MEAN_FLOW = {"uniform_fraction": 1.0, "instant_fraction": 0.25}
STUDENTS = {
    "cd": {"num_levels": 12, "target_decay": 0.95, "huber_c": 0.03},
    "ct": {"initial_levels": 10, "final_levels": 40, "huber_c": 0.03},
    "ict": {"initial_intervals": 10, "final_intervals": 40, "huber_c": 0.03},
    "ect": {"num_stages": 5.0, "uniform_fraction": 0.5, "huber_c": 0.03},
    "scd": {"tangent_warmup_steps": 100},
    "sct": {"tangent_warmup_steps": 100},
    "ctm": {"num_levels": 12, "target_decay": 0.95, "huber_c": 0.03},
    "dmd": {"fake_steps": 2},
    "dmd for two calls": {
        "fake_steps": 2,
        "sigmas": (80.0, 2.2404397),
    },  # those of two steps
    "flow_matching": {},
    "mean_flow": MEAN_FLOW,
    "imf": MEAN_FLOW,
    "shortcut": {"num_steps": 16, "consistency_fraction": 0.5, "target_decay": 0.95},
    "imm": {"highest_time": 0.987, "decrement": 7},
    "guided": {},
}
FLOW_MAPS = ("mean_flow", "imf", "shortcut", "imm")
LEARNING_RATES = {"scd": 5e-5, "sct": 5e-5}  # tangents have length 1 at every step
LEARNING_RATE = 3e-4
LABEL_DROPOUT = 0.1  # of "guided", which is trained as a denoiser


class Network(NamedTuple):
    """A network, its parameters, and the scheduler that it is trained for."""

    apply_fn: Any
    params: Any
    scheduler: Any


def network_of(name, teacher):
    """Returns the network that a student starts with, which does what the teacher does."""
    if name == "flow_matching":
        velocity = adapt(teacher.apply_fn, SCHEDULER, FLOW, edm_denoiser)
        return Network(velocity, teacher.params, FLOW)
    if name == "ctm":
        apply_fn, params, _ = extend(teacher.config, teacher.params, second_time="span")
        return Network(apply_fn, params, CTM)
    if name in FLOW_MAPS:
        apply_fn, params, _ = extend(teacher.config, teacher.params, second_time="end")
        return Network(mean_velocity_of(apply_fn), params, FLOW_MAP)
    if name == "guided":
        return Network(*with_null_class(teacher), SCHEDULER)
    return Network(teacher.apply_fn, teacher.params, SCHEDULER)


def mean_velocity_of(apply_fn):
    """Returns a denoiser with a second time as a flow map, `(params, x, t, r, **cond) -> u`.

    The first time becomes EDM's, 250 log(t / (1 - t)), and the second, which is new to the network,
    is the length t - r of the step. At first it has no effect, and u is the velocity at t.
    """

    def mean_velocity(params, x, t, r, **cond):
        def denoiser(params, x, time, **cond):
            return apply_fn(params, x, time, t - r, **cond)

        return adapt(denoiser, SCHEDULER, FLOW, edm_denoiser)(params, x, t, **cond)

    return mean_velocity


def with_null_class(teacher):
    """Returns `(apply_fn, params)` of a network with one more class, at first the mean of all."""
    config = dataclasses.replace(teacher.config, null_class=True)
    module_class, _ = architecture(network_name(config))
    apply_fn, _ = from_nnx(module_class(config, rngs=nnx.Rngs(0)))

    def longer(path, leaf):
        if "class_embedding" not in jax.tree_util.keystr(path):
            return leaf
        return jnp.concatenate([leaf, leaf.mean(axis=0, keepdims=True)])

    return apply_fn, jax.tree_util.tree_map_with_path(longer, teacher.params)
