"""What the loop and the scheduler cost on top of the network.

    python benchmarks/loop_overhead.py          (the second part needs torch and diffusers)

1. `cmjax.sample` at N steps over N calls of the bare jitted network, taken in turn; the ratio of
   medians.
2. One step of the scheduler, `scale_input` and `step` with its noise, jitted, against diffusers'
   `scale_model_input` and `step`, on the same arrays in turn; large arrays (arithmetic) and tiny
   ones (Python overhead). Above 1, cmjax is faster.
3. `cmjax.sample` called bare, outside of `jax.jit`, over the same call in the caller's own `jit`,
   in turn, after both have compiled; ratio of medians.
4. Number of traces and compile time against N.
5. `set_timesteps` with a number of steps that is new, once as it is, by one program, and once with
   each operation compiled on its own; and again with the same number, in turn with diffusers'.
"""

import time

import click
import jax
import jax.numpy as jnp
import numpy as np
from diffusers_steps import class_in_diffusers
from flax import nnx
from timing import described, in_turn, machine

import cmjax
from cmjax.models import UNet2D, UNet2DConfig, from_nnx
from cmjax.schedulers import SCHEDULERS

SCHEDULER = cmjax.CMStochasticIterativeScheduler()


def loop_over_network(batch, steps, repeats):
    config = UNet2DConfig(
        28,
        1,
        1,
        block_out_channels=(64, 96),
        norm_num_groups=16,
        patch_size=2,
        num_class_embeds=10,
    )
    apply_fn, params = from_nnx(UNet2D(config, rngs=nnx.Rngs(0)))
    labels = jnp.zeros(batch, jnp.int32)
    x = jnp.ones((batch, 28, 28, 1))
    t = jnp.ones(batch)
    network = jax.jit(lambda params, x: apply_fn(params, x, t, class_labels=labels))
    sampler = jax.jit(
        lambda params, key: cmjax.sample(
            key,
            apply_fn,
            params,
            SCHEDULER,
            x.shape,
            num_inference_steps=steps,
            cond={"class_labels": labels},
        )
    )

    def bare():
        for _ in range(steps):
            network(params, x).block_until_ready()

    key = jax.random.key(0)
    bare_time, loop_time = in_turn(
        bare, lambda: sampler(params, key).block_until_ready(), repeats=repeats
    )
    click.echo(
        f"batch {batch:>3}, {steps} steps: network {bare_time / steps * 1e3:7.1f} ms a call, "
        f"sample() / N calls = {loop_time / bare_time:.3f}"
    )


def step_against_diffusers(shape, repeats):
    import torch
    from diffusers import CMStochasticIterativeScheduler

    reference = CMStochasticIterativeScheduler()
    generator = torch.Generator().manual_seed(0)
    x = jnp.ones(shape)
    key = jax.random.key(0)
    x_torch = torch.ones(shape)
    step = jax.jit(SCHEDULER.step)
    scale = jax.jit(SCHEDULER.scale_input)
    state = SCHEDULER.set_timesteps(2)
    reference.set_timesteps(2)

    def ours():
        scale(state, x).block_until_ready()
        step(key, state, x, x)[1].prev_sample.block_until_ready()

    def theirs():
        reference._step_index = None  # it counts; this is always the first step
        reference.scale_model_input(x_torch, reference.timesteps[0])
        reference.step(x_torch, reference.timesteps[0], x_torch, generator=generator)

    noise = jnp.ones(shape)
    given = jax.jit(
        lambda state, x, noise: SCHEDULER.advance(
            state, x, SCHEDULER.denoise(state, x, x), noise
        )
    )

    def ours_given():
        given(state, x, noise)[1].block_until_ready()

    mine, peer, mine_given = in_turn(ours, theirs, ours_given, repeats=repeats)
    click.echo(
        f"{str(shape):<18} cmjax step {mine * 1e6:9.0f} us, diffusers {peer * 1e6:9.0f} us, "
        f"diffusers / cmjax {peer / mine:.2f}; "
        f"cmjax `step` with the noise given {mine_given * 1e6:.0f} us"
    )


def bare_over_jitted(batch, steps, channels, repeats):
    config = UNet2DConfig(
        28,
        1,
        1,
        block_out_channels=channels,
        norm_num_groups=16,
        patch_size=2,
        layers_per_block=1,
    )
    apply_fn, params = from_nnx(UNet2D(config, rngs=nnx.Rngs(0)))
    key = jax.random.key(0)

    def bare():
        return cmjax.sample(
            key, apply_fn, params, SCHEDULER, (batch, 28, 28, 1), num_inference_steps=steps
        )

    jitted = jax.jit(
        lambda key, params: cmjax.sample(
            key, apply_fn, params, SCHEDULER, (batch, 28, 28, 1), num_inference_steps=steps
        )
    )
    bare_time, jitted_time = in_turn(
        lambda: bare().block_until_ready(),
        lambda: jitted(key, params).block_until_ready(),
        repeats=repeats,
    )
    click.echo(
        f"batch {batch:>3}, {steps} steps: bare {bare_time * 1e3:7.2f} ms, in jit "
        f"{jitted_time * 1e3:7.2f} ms, ratio {bare_time / jitted_time:.3f}"
    )


def traces_and_compile_time(steps):
    traces = []
    key = jax.random.key(0)

    @jax.jit
    def run(sigmas):
        traces.append(1)
        return cmjax.sample(
            key, lambda p, x, t: jnp.tanh(x), None, SCHEDULER, (8, 32), sigmas=sigmas
        )

    start = time.perf_counter()
    run.lower(jnp.linspace(80.0, 1.0, steps)).compile()
    seconds = time.perf_counter() - start
    for high in (80.0, 60.0, 40.0):
        run(jnp.linspace(high, 1.0, steps))
    click.echo(
        f"N = {steps:>3}: compile {seconds * 1e3:5.0f} ms, "
        f"{len(traces)} trace(s) for three sets of levels"
    )


def start_of_a_run(name, repeats):
    scheduler = SCHEDULERS[name]()

    def begin(steps):
        start = time.perf_counter()
        jax.block_until_ready(scheduler.set_timesteps(steps))
        return time.perf_counter() - start

    # Operations that other schedulers had in common are compiled again.
    jax.clear_caches()
    with jax.disable_jit():
        one_by_one = begin(7)
    jax.clear_caches()
    first = begin(7)
    text = f"{name:<33}new: {first:5.2f} s, one by one {one_by_one:5.2f} s; again: cmjax "
    try:
        reference = class_in_diffusers(name)()
    except ImportError:
        (again,) = in_turn(lambda: begin(7), repeats=repeats)
        click.echo(f"{text}{again * 1e3:.3f} ms")
        return
    again, peer = in_turn(
        lambda: begin(7), lambda: reference.set_timesteps(7), repeats=repeats
    )
    click.echo(f"{text}{again * 1e3:.3f} ms, diffusers {peer * 1e3:.3f} ms")


@click.command()
@click.option("--repeats", default=15, show_default=True)
def main(repeats):
    jax.config.update("jax_enable_compilation_cache", False)
    click.echo(described(machine()))
    click.echo("\nloop over network")
    for batch, steps in ((32, 1), (32, 4), (64, 1), (64, 4)):
        loop_over_network(batch, steps, repeats)
    click.echo("\none step of the scheduler")
    try:
        for shape in ((1, 4), (64, 28, 28, 1), (64, 64, 64, 3)):
            step_against_diffusers(shape, 20 * repeats if np.prod(shape) < 1e5 else repeats)
    except ImportError as error:
        click.echo(f"skipped: {error}")
    click.echo("\nsample() called bare, over the same in the caller's own jit")
    bare_over_jitted(1, 1, (32, 32), 10 * repeats)
    bare_over_jitted(64, 1, (64, 96), repeats)
    bare_over_jitted(64, 4, (64, 96), repeats)
    click.echo("\ntraces and compile time")
    for steps in (1, 2, 8, 32):
        traces_and_compile_time(steps)
    click.echo("\nthe start of a run of 7 steps")
    for name in (
        "CMStochasticIterativeScheduler",
        "DDIMScheduler",
        "EulerDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "FlowMatchEulerDiscreteScheduler",
    ):
        start_of_a_run(name, repeats)


if __name__ == "__main__":
    main()
