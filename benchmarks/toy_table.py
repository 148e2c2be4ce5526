"""Every way to make a consistency model, on a mixture in the plane, in one and two steps.

    python benchmarks/toy_table.py [--seeds 5] [--steps 4000]

Data: eight Gaussians of standard deviation 0.05 on a circle of radius 0.8. A denoiser, a small MLP,
is trained first; it is the teacher of the distillations, and every student starts from its weights
and gets the same number of steps. The distance is the sliced Wasserstein-2 distance, over 200
directions, between 10,000 samples and 10,000 fresh data; its floor is that between two sets of
data. The teacher's row is Heun's method in 40 steps.

Flow maps start in the same way from a network of flow matching, which its own row samples by
Euler's method in 40 steps. So does `reflow`, which trains it further on 200,000 pairs of noise and
sample, and is sampled by Euler's method.
"""

import time

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import cmjax
from cmjax.models import from_nnx, layers
from cmjax.models.embeddings import TimestepEmbedding, sinusoidal_embedding
from cmjax.parametrization import adapt, edm_denoiser
from cmjax.schedulers import EDMHeunScheduler
from cmjax.training import losses, trainer
from cmjax.training.pairs import reflow_pairs

SCHEDULER = cmjax.CMStochasticIterativeScheduler(clip_denoised=False, sigma_max=20.0)
SIMPLIFIED = {
    "tangent_warmup_steps": 500,
    "uniform_fraction": 0.5,
    "p_std": 1.4,
}
STUDENTS = {  # what differs from the papers' settings, which are for 800,000 steps on CIFAR-10
    "cd": {"num_levels": 40, "target_decay": 0.95, "metric": "l2"},
    "ct": {
        "initial_levels": 10,
        "final_levels": 80,
        "initial_target_decay": 0.95,
        "metric": "l2",
    },
    "ict": {"initial_intervals": 10, "final_intervals": 160},
    "ect": {},
    "ect, authors' code": {
        "whole_stages": True,
        "least_sigma": 0.0,
        "edm_scalings": True,
    },
    "scd": SIMPLIFIED,
    "sct": SIMPLIFIED,
    "ctm": {"num_levels": 40, "target_decay": 0.95, "metric": "l2"},
    "dmd": {},
    "dmd, for two calls": {"sigmas": (20.0, 0.743), "fake_steps": 2},
}
CTM = cmjax.CTMScheduler(clip_denoised=False, sigma_max=20.0)

# Networks that take two times. In two dimensions an adaptive weight of samples would learn where
# velocities are most frequent, in place of their mean.
FLOW = cmjax.FlowMatchEulerDiscreteScheduler()
FLOW_MAP = cmjax.FlowMapEulerDiscreteScheduler()
UNIFORM = {"uniform_fraction": 1.0, "norm_p": 0.0, "instant_fraction": 0.25}
FLOW_MAPS = {
    "mean_flow": UNIFORM,
    "imf": UNIFORM,
    "shortcut": {"consistency_fraction": 0.5},
    "imm": {"decrement": 7, "group_size": 16},
}


PAIRS = 200_000  # of noise and sample, for reflow


class MLP(nnx.Module):
    """Three residual layers on points of the plane; time is embedded as in the digits' network."""

    def __init__(self, width=128, *, rngs):
        self.width = width
        self.enter = layers.linear(2, width, rngs=rngs)
        self.time = TimestepEmbedding(32, width, rngs=rngs)
        self.blocks = nnx.List([layers.linear(width, width, rngs=rngs) for _ in range(3)])
        self.leave = layers.linear(width, 2, kernel_init=nnx.initializers.zeros, rngs=rngs)

        # For flow maps, the length of a step; at first it has no effect.
        self.span = TimestepEmbedding(32, width, rngs=rngs)
        self.gate = layers.linear(
            width, width, kernel_init=nnx.initializers.zeros, rngs=rngs
        )

    def __call__(self, x, t, r=None):
        h = self.enter(x) + self.time(sinusoidal_embedding(0.01 * t, 32))
        if r is not None:
            span = sinusoidal_embedding(0.01 * (t - r), 32)
            h = h + self.gate(jax.nn.silu(self.span(span)))
        for block in self.blocks:
            h = h + block(jax.nn.silu(h))
        return self.leave(jax.nn.silu(h))


def draw(key, count):
    """Returns f32[count, 2] of the mixture."""
    which, noise = jax.random.split(key)
    angle = 2 * jnp.pi * jax.random.randint(which, (count,), 0, 8) / 8
    return 0.8 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1) + 0.05 * jax.random.normal(
        noise, (count, 2)
    )


def train(
    name,
    apply_fn,
    params,
    steps,
    seed,
    options,
    teacher=None,
    batch_size=512,
    scheduler=SCHEDULER,
    draw_batch=None,
):
    """Returns the moving average of the parameters after training with a loss."""

    def fresh(key):
        return {"data": draw(key, batch_size)}

    draw_batch = fresh if draw_batch is None else draw_batch
    loss = losses.make(name.split(",")[0], scheduler, total_steps=steps, **options)

    def adam(num_steps):
        schedule = optax.cosine_decay_schedule(1e-3, num_steps)
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    step = trainer.make_train_step(
        loss,
        apply_fn,
        loss.make_optimizer(adam, steps),
        ema_decays=(0.995,),
        teacher=teacher if loss.needs_teacher else None,
    )
    state = step.init(jax.random.key(seed), params)

    @jax.jit
    def many(state):
        def body(state, _):
            key = jax.random.fold_in(jax.random.key(seed + 1000), state.step)
            return step(state, draw_batch(key))

        return jax.lax.scan(body, state, None, length=steps)

    state, metrics = jax.block_until_ready(many(state))
    return loss.network_params(state.ema[0]), metrics


def distance(a, b, directions=200):
    """Sliced Wasserstein-2 distance between f32[N, 2] and f32[N, 2]."""
    angle = np.linspace(0, np.pi, directions, endpoint=False)
    axes = np.stack([np.cos(angle), np.sin(angle)])
    gaps = np.sort(np.asarray(a, np.float64) @ axes, 0) - np.sort(
        np.asarray(b, np.float64) @ axes, 0
    )
    return float(np.sqrt(np.mean(gaps**2)))


def generate(apply_fn, params, scheduler, steps, count=10_000):
    run = jax.jit(
        lambda p: cmjax.sample(
            jax.random.key(7), apply_fn, p, scheduler, (count, 2), num_inference_steps=steps
        )
    )
    return run(params)


def consistency_models(seed, steps, only, data):
    """Yields rows (name, distances in one and two steps, seconds): a denoiser and its students."""
    apply_fn, params = from_nnx(MLP(rngs=nnx.Rngs(seed)))
    start = time.perf_counter()
    teacher, _ = train(
        "denoising", apply_fn, params, steps, seed, {"uniform_fraction": 0.5}
    )
    heun = EDMHeunScheduler(sigma_min=0.002, sigma_max=20.0, sigma_data=0.5)
    samples = generate(adapt(apply_fn, SCHEDULER, heun, edm_denoiser), teacher, heun, 40)
    yield (
        "teacher, Heun 40",
        [distance(samples, data), np.nan],
        time.perf_counter() - start,
    )
    for name, options in STUDENTS.items():
        if only in (None, name):
            scheduler = CTM if name == "ctm" else SCHEDULER
            yield student_row(
                name, apply_fn, teacher, scheduler, steps, seed, options, data
            )


def flow_maps(seed, steps, only, data):
    """Yields such rows of a network of flow matching, and of the flow maps that start from it."""
    apply_fn, params = from_nnx(MLP(rngs=nnx.Rngs(seed)))
    start = time.perf_counter()
    teacher, _ = train("flow_matching", apply_fn, params, steps, seed, {}, scheduler=FLOW)
    samples = generate(apply_fn, teacher, FLOW, 40)
    yield (
        "flow, Euler 40",
        [distance(samples, data), np.nan],
        time.perf_counter() - start,
    )
    for name, options in FLOW_MAPS.items():
        if only in (None, name):
            yield student_row(name, apply_fn, teacher, FLOW_MAP, steps, seed, options, data)
    if only in (None, "reflow"):
        yield reflow_row(apply_fn, teacher, steps, seed, data)


def reflow_row(apply_fn, teacher, steps, seed, data):
    """Returns the row of flow matching on pairs of noise and the teacher's sample."""
    start = time.perf_counter()
    found = reflow_pairs(
        jax.random.key(seed + 2000),
        apply_fn,
        teacher,
        FLOW,
        (PAIRS, 2),
        num_inference_steps=40,
        batch_size=PAIRS,
    )

    def draw_batch(key):
        rows = jax.random.randint(key, (512,), 0, PAIRS)
        return {
            "data": jnp.asarray(found["images"])[rows],
            "noise": jnp.asarray(found["noise"])[rows],
        }

    # With uniform times, since a single step starts at t = 1.
    student, _ = train(
        "flow_matching",
        apply_fn,
        jax.tree.map(jnp.copy, teacher),
        steps,
        seed,
        {"uniform_fraction": 1.0},
        scheduler=FLOW,
        draw_batch=draw_batch,
    )
    seconds = time.perf_counter() - start
    found_distances = [distance(generate(apply_fn, student, FLOW, n), data) for n in (1, 2)]
    return "reflow", found_distances, seconds


def student_row(name, apply_fn, teacher, scheduler, steps, seed, options, data):
    """Returns the row of a student that starts from the teacher's parameters."""
    start = time.perf_counter()
    begin = jax.tree.map(jnp.copy, teacher)
    student, metrics = train(
        name, apply_fn, begin, steps, seed, options, teacher, scheduler=scheduler
    )
    seconds = time.perf_counter() - start
    if not all(np.isfinite(value).all() for value in metrics.values()):
        raise SystemExit(f"{name} with seed {seed}: the loss was not finite")
    found = [distance(generate(apply_fn, student, scheduler, n), data) for n in (1, 2)]
    return name, found, seconds


@click.command()
@click.option("--seeds", default=5, show_default=True)
@click.option(
    "--steps", default=4000, show_default=True, help="Of each training run, by 512 points."
)
@click.option("--only", help="One student, such as sct.")
def main(seeds, steps, only):
    """Train every student from `seeds` teachers and print a table."""
    data = draw(jax.random.key(100), 10_000)
    click.echo(f"floor: {distance(draw(jax.random.key(101), 10_000), data):.4f}\n")
    click.echo(f"{'':<16}{'1 step':>18}{'2 steps':>18}{'seconds':>10}")
    families = [
        family
        for family, students in (
            (consistency_models, STUDENTS),
            (flow_maps, [*FLOW_MAPS, "reflow"]),
        )
        if only is None or only in students
    ]
    rows = {}
    for seed in range(seeds):
        for family in families:
            for name, found, seconds in family(seed, steps, only, data):
                rows.setdefault(name, []).append((*found, seconds))
    for name, values in rows.items():
        values = np.array(values)
        means, worst = values.mean(0), values.max(0)
        cells = (
            f"{m:.4f} (max {w:.4f})" if np.isfinite(m) else ""
            for m, w in zip(means[:2], worst[:2], strict=True)
        )
        click.echo(
            f"{name:<16}" + "".join(f"{cell:>24}" for cell in cells) + f"{means[2]:>10.1f}"
        )


if __name__ == "__main__":
    main()
