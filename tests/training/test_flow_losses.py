"""Losses of flow matching and of flow maps: closed forms, the authors' figures, derivatives."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.networks import with_classes
from cmjax.parametrization import FlowMatching
from cmjax.training import losses
from cmjax.training.losses.flow_paths import mean_velocity
from cmjax.training.losses.improved_mean_flow import guidance_at
from cmjax.training.losses.mean_flow import draw_time_pairs, time_derivative
from tests.support.flow_maps import (
    CTM,
    FLOW,
    FLOW_MAP,
    gaussian_flow_map,
    gaussian_heads,
    gaussian_trajectory,
    gaussian_velocity,
    tiny,
    tiny_heads,
    tiny_params,
)
from tests.support.training import (
    EDM,
    KEY,
    STD,
    gaussian_batch,
    gaussian_denoiser,
    value,
)

GOLDENS = np.load(Path(__file__).parent.parent / "golden" / "flow_maps.npz")
TRAJECTORY = np.load(Path(__file__).parent.parent / "golden" / "trajectory.npz")
GUIDED = {"null_class": 3}
MeanFlow = partial(losses.MeanFlow, scheduler=FLOW_MAP)
ImprovedMeanFlow = partial(losses.ImprovedMeanFlow, scheduler=FLOW_MAP)
Shortcut = partial(losses.Shortcut, scheduler=FLOW_MAP)
MomentMatching = partial(losses.InductiveMomentMatching, scheduler=FLOW_MAP)


WIDE_FLOW_MAP = cmjax.FlowMapEulerDiscreteScheduler(num_train_timesteps=1, noise_scale=2.0)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class WideFlow(cmjax.FlowMatchEulerDiscreteScheduler):
    """Flow matching from noise of standard deviation 2."""

    num_train_timesteps: int = 1

    @property
    def parametrization(self):
        return FlowMatching(self.num_train_timesteps, noise_scale=2.0)


def exact_pairs(lowest=0.0, count=64):
    """Times from `lowest` on, and data and noise whose velocity is that of all data there."""
    keys = jax.random.split(KEY, 3)
    first, second = jax.random.uniform(keys[0], (2, count), minval=lowest)
    t, r = jnp.maximum(first, second), jnp.minimum(first, second)
    x = jax.random.normal(keys[1], (count, 3))
    velocity = gaussian_velocity(STD, x, t)
    return x - t[:, None] * velocity, x + (1 - t)[:, None] * velocity, t, r


@pytest.mark.parametrize(
    "loss, network",
    [
        (losses.FlowMatching(FLOW), gaussian_velocity),
        (MeanFlow(norm_p=0.0), gaussian_flow_map),
        (MeanFlow(instant_fraction=0.0), gaussian_flow_map),
        (ImprovedMeanFlow(), gaussian_flow_map),
        (ImprovedMeanFlow(second_head=True), gaussian_heads),
        (MomentMatching(), gaussian_flow_map),
    ],
    ids=["flow matching", "mean flow", "mean flow, weighted", "imf", "imf, heads", "imm"],
)
def test_the_gradient_vanishes_at_the_flow_map_of_gaussian_data(loss, network):
    """Each sample's own noise is right on average; samples are 100,000 of three numbers."""

    @jax.jit
    def gradient(std):
        return jax.grad(lambda p: value(loss, network, p, gaussian_batch(100_000)))(std)

    low, exact, high = (float(gradient(jnp.float32(s * STD))) for s in (0.9, 1.0, 1.1))
    # Measured: the slopes on both sides are 9 times as large or more, and point at it.
    assert low < 0 < high and abs(exact) < 0.2 * min(-low, high), (low, exact, high)


@pytest.mark.parametrize(
    "loss, lowest",
    [
        (MeanFlow(norm_p=0.0), 0.0),
        (ImprovedMeanFlow(norm_p=0.0), 0.0),
        (ImprovedMeanFlow(norm_p=0.0, second_head=True), 0.0),
        (ImprovedMeanFlow(norm_p=0.0, second_head=True, shortest_time=0.05), 0.05),
    ],
)
def test_mean_flows_vanish_where_the_velocity_is_that_of_all_data(loss, lowest):
    data, noise, t, r = exact_pairs(lowest)
    network = gaussian_heads

    @jax.jit
    @jax.value_and_grad
    def at(std):
        return loss.at(network, std, data, noise, t, r, {})[0]

    # The rest is float32's rounding, 1e-6 of each number.
    exact, gradient = at(jnp.float32(STD))
    wrong, wrong_gradient = at(jnp.float32(1.1 * STD))
    assert exact < 1e-10 and wrong > 1e-3
    assert abs(gradient) < 1e-4 * abs(wrong_gradient)


def test_shortcuts_are_consistent_at_the_flow_map():
    """Two steps are exactly one; the shortest step learns the velocity at its start, not a mean."""

    def at(std, num_steps):
        loss = Shortcut(num_steps=num_steps, consistency_fraction=0.5, largest=1e3)
        data, noise, t, _ = exact_pairs(lowest=0.5)  # later than the longest step
        compared = jnp.arange(len(t)) < len(t) // 2
        length = jnp.where(compared, 0.5, 1 / num_steps)
        return loss.at(gaussian_flow_map, std, std, data, noise, t, length, {})[1]

    exact = at(jnp.float32(STD), 128)
    assert exact["consistency_loss"] < 1e-10
    # So the loss is not 0 there: the error is half of the step times the velocity's slope.
    finer = at(jnp.float32(STD), 256)
    assert exact["flow_loss"] < 1e-3
    assert float(exact["flow_loss"]) == pytest.approx(
        4 * finer["flow_loss"].item(), rel=0.1
    )


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_flow_map_samples_gaussian_data_in_any_number_of_steps(steps):
    init = jax.random.normal(KEY, (64, 3))
    sigmas = [1 - i / steps for i in range(steps)]
    x0 = cmjax.sample(
        KEY, gaussian_flow_map, STD, FLOW_MAP, init.shape, sigmas=sigmas, init=init
    )
    # The ODE keeps x / s(t): the noise times the data's standard deviation.
    np.testing.assert_allclose(x0, STD * init, atol=2e-6)


CASES = {
    "mean_flow": MeanFlow(),
    "mean_flow_kappa": MeanFlow(omega=1.5, kappa=0.4, guidance_end=0.8, **GUIDED),
    "mean_flow_omega": MeanFlow(omega=2.0, guidance_end=0.8, norm_p=0.5, **GUIDED),
    "imf_guided": ImprovedMeanFlow(largest_scale=8.0, **GUIDED),
    "imf_heads": ImprovedMeanFlow(
        second_head=True, largest_scale=8.0, trains_interval=True, **GUIDED
    ),
    "pmf": losses.ImprovedMeanFlow(
        cmjax.FlowMapEulerDiscreteScheduler(num_train_timesteps=1, noise_scale=2.0),
        second_head=True,
        largest_scale=8.0,
        trains_interval=True,
        shortest_time=0.05,
        **GUIDED,
    ),
    "shortcut": Shortcut(),
    "shortcut_as_printed": Shortcut(),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_equal_those_of_their_authors_code(name):
    given = {key: jnp.asarray(GOLDENS[key]) for key in GOLDENS.files if "/" not in key}
    labels = given["labels"]
    if name in ("mean_flow_kappa", "mean_flow_omega"):
        labels = labels.at[:2].set(3)  # dropped there
    cond = {"class_labels": labels}
    pairs = [given[key] for key in ("data", "noise", "t", "r")]
    guidance = []
    network = tiny
    if name == "imf_guided":
        guidance = [given["scale"]]
    if name in ("imf_heads", "pmf"):
        guidance = [given["scale"], given["interval"]]
        network = tiny_heads
    if name == "pmf":
        pairs[1] = 2 * pairs[1]  # the noise, of the scheduler's scale
    if "shortcut" in name:
        # There the others are the batch's first again.
        again = jnp.concatenate([jnp.arange(8), jnp.arange(56)])
        cond = {"class_labels": labels[again]}
        pairs = [given["data"][again], given["noise"][again]]
        pairs += [given["shortcut_t"], given["shortcut_length"]]

    @jax.jit
    @jax.value_and_grad
    def at(params):
        target = ()
        if "shortcut" in name:
            target = (jax.tree.map(lambda leaf: 0.9 * leaf, tiny_params()),)
        return CASES[name].at(network, params, *target, *pairs, cond, *guidance)[0]

    found, gradient = at(tiny_params())
    # As printed, the authors' path keeps a noise of 1e-5 in the data.
    tolerance = 1e-4 if "printed" in name else 1e-5
    assert found == pytest.approx(float(GOLDENS[f"{name}/loss"]), rel=tolerance)
    expected = {key: GOLDENS[f"{name}/{key}"] for key in gradient}
    chex.assert_trees_all_close(gradient, expected, rtol=tolerance, atol=tolerance)


def test_the_time_derivative_equals_finite_differences():
    keys = jax.random.split(KEY, 3)
    x, velocity = jax.random.normal(keys[0], (2, 4, 2, 2, 2))
    t, r = jnp.array([0.9, 0.5, 0.3, 1.0]), jnp.array([0.2, 0.5, 0.1, 0.0])
    cond = {"class_labels": jnp.array([0, 1, 2, 3])}
    network = mean_velocity(tiny, cmjax.FlowMapEulerDiscreteScheduler())
    found = time_derivative(network, tiny_params(), x, t / 100, r / 100, velocity, cond)

    # The network is given 1,000 times the times.
    wide = partial(np.asarray, dtype=np.float64)
    params = jax.tree.map(wide, tiny_params())

    def u(h):
        t_h = 1000 * (wide(t) / 100 + h)
        moved = wide(x) + h * wide(velocity)
        return tiny(params, moved, t_h, 10 * wide(r), np.arange(4), xp=np)

    expected = (u(1e-6) - u(-1e-6)) / 2e-6
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-2)


def test_times_and_steps_are_drawn_as_the_papers_have_it():
    seen = []

    def network(params, x, t, r):
        seen.append((t, r))
        return params * x

    batch = {"data": jnp.zeros((4096, 1))}
    value(MeanFlow(), network, jnp.float32(1), batch)
    t, r = np.asarray(seen[0])
    assert (r == t).sum() == 3072 and np.all(r <= t) and t.max() < 1 and r.min() > 0
    # The larger of two logit-normal draws; standard errors of the mean are 0.016.
    logit = np.log(t / (1 - t))
    assert logit.mean() == pytest.approx(-0.4 + 1 / np.pi**0.5, abs=0.1)

    steps = []

    def record(params, x, t, r):
        steps.append((np.asarray(t), np.asarray(t - r)))
        return params * x

    value(Shortcut(num_steps=8), record, jnp.float32(1), batch, target=jnp.float32(1))
    t, length = steps[-1]
    np.testing.assert_array_equal(np.unique(length), [0.125, 0.25, 0.5, 1.0])
    assert [(length == 1 / n).sum() for n in (1, 2, 4)] == pytest.approx([171] * 3, abs=1)
    assert np.all(t % length == 0) and np.all(t >= length) and t.max() == 1
    # The two steps are of half the length, one after the other.
    half = length[:512] / 2
    np.testing.assert_array_equal(steps[0][1], half)
    np.testing.assert_allclose(steps[1][0], t[:512] - half)


def test_moment_matching_is_as_the_paper_has_it():
    """Each kernel of each pair in float64; the authors' training code is not public."""
    loss = MomentMatching(decrement=6, weight_power=2, weight_shift=4.0)
    given = {key: GOLDENS[key][:8] for key in ("data", "noise", "t", "r", "labels")}
    t, s = np.repeat(given["t"][[0, 4]], 4), np.repeat(given["t"][[0, 4]] / 3, 4)
    cond = {"class_labels": jnp.asarray(given["labels"])}
    target = jax.tree.map(lambda leaf: 0.9 * leaf, tiny_params())
    arrays = [jnp.asarray(a) for a in (given["data"], given["noise"], t, s)]
    found = loss.at(tiny, tiny_params(), target, *arrays, cond)[0]

    def wide(tree):
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)

    data, noise, t, s = wide((given["data"], given["noise"], t, s))
    eta = t / (1 - t) - 0.994 / 0.006 / 2**6
    r = np.maximum(s, np.maximum(eta, 0) / (1 + np.maximum(eta, 0)))

    def end(params, time):
        c = time[:, None, None, None]
        x = (1 - c) * data + c * noise
        u = tiny(wide(params), x, time, s, given["labels"], xp=np)
        return x - (c - s[:, None, None, None]) * u

    a, b = end(tiny_params(), t), end(target, r)
    total = 0.0
    for first in (0, 4):
        t0, s0 = t[first], s[first]
        log_snr = 2 * np.log((1 - t0) / t0)
        weight = 0.5 / (1 + np.exp(log_snr - 4)) * 2 / (t0 * (1 - t0))
        weight *= (1 - t0) ** 2 / ((1 - t0) ** 2 + t0**2)

        def kernel(x, y, width=t0 - s0):
            return np.exp(-max(np.linalg.norm(x - y), 1e-4) / x.size / width)

        for j in range(first, first + 4):
            for k in range(first, first + 4):
                part = kernel(a[j], a[k]) + kernel(b[j], b[k]) - 2 * kernel(a[j], b[k])
                total += weight * part / 16 / 2
    assert float(found) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("term", ["jump", "denoising"])
def test_trajectory_losses_equal_those_of_their_authors_code(term):
    """With the moving average in all jumps of the target; see make_trajectory_goldens.py."""

    def network(params, x, t, s=None, class_labels=None):
        return tiny(params, x, t / 250, (t if s is None else s) / 250, class_labels)

    names = ("data", "noise", "denoising_noise", "sigma", "start", "end", "labels")
    given = {name: jnp.asarray(TRAJECTORY[name]) for name in names}
    cond = {"class_labels": given["labels"]}
    target, teacher = (
        jax.tree.map(lambda leaf, f=f: f * leaf, tiny_params()) for f in (0.9, 0.8)
    )
    loss = losses.ConsistencyTrajectory(CTM, 12, solver_steps=2, metric=losses.L2())

    @jax.jit
    @jax.value_and_grad
    def at(params):
        if term == "jump":
            frozen = losses.Frozen(target, teacher)
            draws = [given[name] for name in ("data", "noise", "start", "end")]
            return loss.jump_loss(network, params, frozen, *draws, cond)
        draws = [given[name] for name in ("data", "denoising_noise", "sigma")]
        return loss.denoising_loss(network, params, *draws, cond)

    found, gradient = at(tiny_params())
    assert found == pytest.approx(float(TRAJECTORY[f"{term}/loss"]), rel=1e-5)
    expected = {key: TRAJECTORY[f"{term}/{key}"] for key in gradient}
    chex.assert_trees_all_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_trajectories_are_at_their_fixed_point_for_gaussian_data():
    """Heun's error is left: of order 3 a step, and of order 2 over the grid."""

    @partial(jax.jit, static_argnums=0)
    def at(num_levels, std, solver_steps=1):
        loss = losses.ConsistencyTrajectory(
            CTM,
            num_levels,
            solver_steps,
            denoising_weight=0.0,
            metric=losses.PseudoHuber(0.0),
            teacher_fn=gaussian_denoiser,
        )
        exact = jnp.float32(STD)
        batch = gaussian_batch(1024)
        return value(loss, gaussian_trajectory, std, batch, target=exact, teacher=exact**2)

    coarse, middle, fine = (float(at(n, jnp.float32(STD))) for n in (10, 20, 40))
    assert coarse / middle > 3 and middle / fine > 3 and fine < 2e-3
    assert at(40, jnp.float32(1.2 * STD)) > 20 * fine


def test_the_gradient_vanishes_at_the_trajectory_of_gaussian_data():
    """Both terms together; with the exact teacher and target."""
    loss = losses.ConsistencyTrajectory(CTM, 80, teacher_fn=gaussian_denoiser)
    exact_std = jnp.float32(STD)

    @jax.jit
    def gradient(std):
        at = partial(value, loss, gaussian_trajectory, batch=gaussian_batch(20_000))
        return jax.grad(lambda p: at(p, target=exact_std, teacher=exact_std**2))(std)

    low, exact, high = (float(gradient(s * exact_std)) for s in (0.9, 1.0, 1.1))
    assert low < 0 < high and abs(exact) < 0.2 * min(-low, high), (low, exact, high)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_trajectory_samples_gaussian_data_in_any_number_of_steps(steps):
    x0 = cmjax.sample(
        KEY, gaussian_trajectory, STD, CTM, (64, 3), num_inference_steps=steps
    )
    start = CTM.init(KEY, CTM.set_timesteps(steps), (64, 3))[1]
    shrunk = np.sqrt((STD**2 + 0.002**2) / (STD**2 + 80.0**2))
    np.testing.assert_allclose(x0, shrunk * start, rtol=1e-4, atol=1e-5)


def test_moment_matching_needs_whole_groups():
    with pytest.raises(
        ValueError, match="has 6 samples, which group_size=4 does not divide"
    ):
        value(MomentMatching(), tiny, tiny_params(), gaussian_batch(6))


def test_shortcuts_learn_from_batches_of_one():
    loss = value(
        Shortcut(), lambda p, x, t, r: p * x, jnp.float32(1), {"data": jnp.ones((1, 2))}
    )
    assert np.isfinite(loss)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: losses.FlowMatching(EDM),
            "scheduler must be one of flow matching .* got CM",
        ),
        (
            lambda: losses.FlowMatching(type(FLOW)),
            "such as FlowMatchEuler.* got the class FlowMatch",
        ),
        (lambda: losses.FlowMatching(FLOW_MAP), "take 2 times, .* take FlowMatchEuler"),
        (lambda: losses.MeanFlow(FLOW), "take 1 times, .* take FlowMapEuler"),
        (
            lambda: losses.Shortcut(None),
            r"such as FlowMapEulerDiscreteScheduler\(\), got None",
        ),
        (lambda: MeanFlow(omega=2.0), "omega=2.0 and kappa=0.0 .* give null_class"),
        (lambda: MeanFlow(kappa=1.0), "kappa must be a number from 0 to 0.999, got 1.0"),
        (
            lambda: ImprovedMeanFlow(largest_scale=8.0),
            "largest_scale=8.0 .* give null_class",
        ),
        (
            lambda: ImprovedMeanFlow(trains_interval=True),
            "trains_interval=True .* give largest_scale, above 1",
        ),
        (
            lambda: ImprovedMeanFlow(second_head=True, velocity_weight=0.0),
            "velocity_weight=0.0 leaves the second head untrained",
        ),
        (
            lambda: losses.ConsistencyTrajectory(EDM),
            "must be a CTMScheduler .* got CMStoch",
        ),
        (
            lambda: losses.ConsistencyTrajectory(CTM, 1),
            "num_levels must be an integer from 2",
        ),
        (lambda: Shortcut(num_steps=100), "num_steps must be a power of 2, got 100"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_second_head_is_asked_of_networks_that_have_one():
    with pytest.raises(ValueError, match="second_head is for networks that have one"):
        network = gaussian_flow_map
        value(ImprovedMeanFlow(second_head=True), network, STD, gaussian_batch(4))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (jax.jit(gaussian_heads), "second_head must be static for this network"),
        (lambda std, x, t, r, **cond: std * x, "the network returns one velocity"),
    ],
)
def test_networks_that_do_not_return_both_velocities(network, message):
    with pytest.raises(ValueError, match=message):
        value(ImprovedMeanFlow(second_head=True), network, STD, gaussian_batch(4))


@pytest.mark.parametrize("time", [0.5, jnp.full(1, 0.5), jnp.full((4, 1), 0.5)])
def test_times_are_of_each_sample(time):
    x = jnp.ones((4, 2))
    right = jnp.full(4, 0.5)
    flow_map = cmjax.FlowMapEulerDiscreteScheduler()

    def apply_fn(params, x, t, r):
        return params * x

    for loss, targets in (
        (losses.MeanFlow(flow_map), ()),
        (losses.ImprovedMeanFlow(flow_map), ()),
        (losses.Shortcut(flow_map), (1.0,)),
        (losses.InductiveMomentMatching(flow_map), (1.0,)),
    ):
        for times in ((time, right), (right, time)):
            with pytest.raises(
                ValueError, match=r"must be one time per sample, of shape \(4,\)"
            ):
                at: Any = loss.at
                at(apply_fn, 1.0, *targets, x, x, *times, {})


@pytest.mark.parametrize("scale", [0.0, -2.0, 2.0])
def test_scales_of_guidance_are_of_each_sample_and_above_0(scale):
    x = jnp.ones((4, 2))
    t = jnp.full(4, 0.5)
    loss = losses.ImprovedMeanFlow(
        cmjax.FlowMapEulerDiscreteScheduler(), largest_scale=8.0, null_class=2
    )
    scales = jnp.full(4, scale) if scale <= 0 else scale
    with pytest.raises(ValueError, match=r"scale must be one number per sample.*above 0"):
        loss.at(lambda params, x, t, r, **cond: x, 1.0, x, x, t, t, {}, scale=scales)


def test_intervals_of_guidance_are_of_each_sample():
    t = jnp.ones(4)
    with pytest.raises(ValueError, match=r"interval must have shape \(4, 2\), .* \(2,\)"):
        guidance_at(t, t, jnp.zeros(2))


@pytest.mark.parametrize(
    "loss",
    [
        MeanFlow,
        ImprovedMeanFlow,
        Shortcut,
        MomentMatching,
    ],
)
def test_noise_has_the_scale_of_the_scheduler(loss):
    """The data are 0, so that the samples at time t are t times the noise."""
    seen = []

    def network(params, x, t, r):
        seen.append((x, t))
        return params * x

    wide = cmjax.FlowMapEulerDiscreteScheduler(num_train_timesteps=1, noise_scale=3.0)
    value(loss(scheduler=wide), network, jnp.float32(1), {"data": jnp.zeros((4096, 1))})
    x, t = (np.asarray(array) for array in seen[0])
    # A standard error of 1.1 %.
    assert (x / t[:, None]).std() == pytest.approx(3.0, rel=0.06)


def wide_flow_map(scale, gain, x, t, r):
    """u of data from N(0, STD^2) whose paths end at noise of standard deviation `scale`."""
    return gain * gaussian_flow_map(
        STD / scale, x, t, r
    )  # u is linear, in x and so in the unit


@pytest.mark.parametrize(
    "make, flow_map",
    [
        (losses.FlowMatching, False),
        (losses.MeanFlow, True),
        (losses.InductiveMomentMatching, True),
        (lambda scheduler: losses.Shortcut(scheduler, consistency_fraction=1.0), True),
    ],
    ids=["flow matching", "mean flow", "imm", "shortcut"],
)
def test_the_gradient_vanishes_at_the_flow_map_from_wider_noise(make, flow_map):
    scheduler = WIDE_FLOW_MAP if flow_map else WideFlow()
    batch = {"data": STD * jax.random.normal(jax.random.key(5), (40_000, 2))}

    def network(gain, x, t, r=None):
        return wide_flow_map(2.0, gain, x, t, t if r is None else r)

    @jax.jit
    def gradient(gain):
        at = partial(value, make(scheduler=scheduler), network, batch=batch)
        return jax.grad(lambda g: at(g, target=jnp.float32(1)))(gain)

    low, exact, high = (float(gradient(jnp.float32(gain))) for gain in (0.9, 1.0, 1.1))
    assert low < 0 < high and abs(exact) < 0.2 * min(-low, high), (low, exact, high)


def test_noise_of_pairs_is_scaled_as_samples_begin():
    # The path of a pair ends at twice its noise.
    pair = {"data": jnp.zeros((8, 2)), "noise": jax.random.normal(KEY, (8, 2))}

    def network(params, x, t):
        return params * 2 * pair["noise"]

    loss = losses.FlowMatching(WideFlow())
    assert value(loss, network, jnp.float32(1), pair) == pytest.approx(0, abs=1e-10)


def test_the_weight_of_moment_matching_from_wider_noise():
    # Equation 13 with alpha = 1 - t and sigma = 2 t, in float64.
    t = np.array([0.05, 0.2, 0.5, 0.9])
    alpha, sigma = 1 - t, 2 * t
    slope = 2 / (t * alpha)
    sigmoid = 1 / (1 + np.exp(2 * np.log(alpha / sigma) - 5))
    expected = 0.5 * sigmoid * slope * alpha / (alpha**2 + sigma**2)
    found = losses.InductiveMomentMatching(WIDE_FLOW_MAP)._weight(jnp.float32(t))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_an_improved_mean_flow_is_told_of_guidance():
    seen = []

    def network(params, x, t, r, second_head=False, **given):
        seen.append({"t": t, "r": r, **given})
        return params * jnp.concatenate([x, x], -1) if second_head else params * x

    loss = ImprovedMeanFlow(
        second_head=True, largest_scale=8.0, trains_interval=True, **GUIDED
    )
    labels = jnp.arange(4096) % 4
    batch = {"data": jnp.zeros((4096, 1)), "class_labels": labels}
    value(loss, network, jnp.float32(1), batch)
    given, own, without = (jax.tree.map(np.asarray, call) for call in seen[:3])

    # An instant is given all times; else each end is uniform in its half.
    low, high = given["guidance_interval"].T
    instant = given["t"] == given["r"]
    assert instant.sum() == 2048
    assert np.all(low[instant] == 0) and np.all(high[instant] == 1)
    assert low[~instant].mean() == pytest.approx(0.25, abs=0.02)
    assert high[~instant].mean() == pytest.approx(0.75, abs=0.02)
    assert low.max() <= 0.5 and high[~instant].min() >= 0.5

    # The network's own velocities are of one time: the scale acts there, or is 1.
    acts = (low <= given["t"]) & (given["t"] <= high)
    expected = np.where(acts, given["guidance_scale"], 1)
    np.testing.assert_array_equal(own["guidance_scale"], expected)
    np.testing.assert_array_equal(own["guidance_interval"], [[0, 1]] * 4096)
    assert 0.6 < acts.mean() < 0.99 and np.all(own["t"] == own["r"])
    assert np.all(without["class_labels"] == 3) and np.all(without["guidance_scale"] == 1)


@pytest.mark.parametrize(
    "loss", [MeanFlow(omega=2.0, **GUIDED), ImprovedMeanFlow(largest_scale=8.0, **GUIDED)]
)
def test_guidance_needs_labels(loss):
    with pytest.raises(ValueError, match="the batch needs class_labels"):
        value(loss, lambda p, x, t, r, **c: p * x, jnp.float32(1), gaussian_batch(4))


def test_a_null_class_that_the_network_lacks_is_named():
    network = with_classes(lambda p, x, t, r, class_labels: p * x, 3)
    batch = {**gaussian_batch(4), "class_labels": jnp.zeros(4, jnp.int32)}
    with pytest.raises(ValueError, match="null_class=3 is not a class of the network"):
        value(MeanFlow(omega=2.0, **GUIDED), network, jnp.float32(1), batch)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 100])
def test_shares_hold_on_average_however_few_samples_there_are(count):
    keys = jax.random.split(KEY, 4000)

    # Steps longer than the shortest one compare steps.
    shortcut = Shortcut(num_steps=8, consistency_fraction=0.07)
    _, length = jax.vmap(lambda key: shortcut._draw_steps(key, count))(keys)
    assert np.mean(length > 1.5 / 8) == pytest.approx(0.07, abs=0.015)

    mean_flow = MeanFlow(instant_fraction=0.29)
    t, r = jax.vmap(lambda key: draw_time_pairs(key, count, mean_flow))(keys)
    assert np.mean(t == r) == pytest.approx(0.29, abs=0.025)

    # A whole number of samples is not rounded.
    if count == 100:
        assert np.all(np.sum(length > 1.5 / 8, axis=1) == 7)
        assert np.sum(t == r, axis=1).min() == 29


def test_a_single_sample_learns_a_velocity():
    def network(params, x, t, r):
        return params * x

    def flow_loss(key):
        batch = {"data": jnp.full((1, 2), 2.0)}
        params = jnp.float32(0.1)
        _, metrics = Shortcut()(key, network, params, losses.Frozen(params), batch, 0)
        return metrics["flow_loss"]

    # Of its keys, 1 - `consistency_fraction` learn the velocity.
    found = jax.vmap(flow_loss)(jax.random.split(KEY, 4000))
    assert np.mean(found > 0) == pytest.approx(7 / 8, abs=0.02)

    # Its mean is right all the same: that of (u - v)^2, where u = 0.1 x at all times.
    keys = jax.random.split(jax.random.key(1), 4000)
    z = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    t = np.asarray(jax.random.randint(KEY, (4000, 1), 1, 129)) / 128
    error = 0.1 * ((1 - t) * 2 + t * z) - (z - 2)
    assert float(np.mean(found)) == pytest.approx(float(np.mean(error**2)), rel=0.08)


def test_labels_in_a_column_are_refused():
    batch = {"data": jnp.ones((3, 3)), "class_labels": jnp.zeros((3, 1), int)}
    loss = MeanFlow(omega=2.0, guidance_end=0.6, **GUIDED)
    with pytest.raises(
        ValueError, match=r"must be one class per sample, \[B\], got \(3, 1"
    ):
        loss(KEY, lambda p, x, t, r, class_labels: p * x, 1.0, losses.Frozen(1.0), batch, 0)
