"""What editing costs over plain sampling, and the time of an edited image.

    python benchmarks/editing.py

`cmjax.editing.edit` with each constraint, and `cmjax.sample` with the same levels, network, batch
and key, taken in turn in one process; the ratio of medians. Goal: at most 1.03 for a network of
50 ms a call or more. The last lines are `denoise` and `interpolate`, one network call each, over
the bare call.
"""

import click
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from timing import described, in_turn, machine

import cmjax
from cmjax import editing
from cmjax.models import UNet2D, UNet2DConfig, from_nnx

SCHEDULER = cmjax.CMStochasticIterativeScheduler()
SIZE = 32


def constraints(image):
    """One of each kind for images [B, SIZE, SIZE, 3], by name."""
    gray = image @ np.float32(editing.REC601)
    low = image.reshape(-1, SIZE // 4, 4, SIZE // 4, 4, 3).mean((2, 4))
    known = np.arange(SIZE)[:, None, None] < SIZE // 2
    inpaint = editing.inpaint(image, np.broadcast_to(known, (SIZE, SIZE, 1)))
    colorize = editing.colorize(gray[..., None])
    return {
        "inpaint": inpaint,
        "colorize": colorize,
        "super_resolve": editing.super_resolve(low, 4),
        "compose": editing.compose(colorize, inpaint),
    }


@click.command()
@click.option("--batch", default=16, show_default=True)
@click.option("--steps", default=4, show_default=True)
@click.option(
    "--channels",
    default=64,
    show_default=True,
    help="Width of the network's first stage, a multiple of 64.",
)
@click.option("--repeats", default=15, show_default=True)
def main(batch, steps, channels, repeats):
    jax.config.update("jax_enable_compilation_cache", False)
    config = UNet2DConfig(
        SIZE,
        3,
        3,
        block_out_channels=(channels, 3 * channels // 2),
        norm_num_groups=8,
        patch_size=2,
    )
    apply_fn, params = from_nnx(UNet2D(config, rngs=nnx.Rngs(0)))
    image = (
        np.random.default_rng(0).uniform(-1, 1, (batch, SIZE, SIZE, 3)).astype(np.float32)
    )
    key = jax.random.key(0)
    shape = image.shape
    noise = jnp.asarray(image)
    fractions = jnp.linspace(0, 1, batch)
    sigma = jnp.float32(2)

    @jax.jit
    def plain(params, key):
        return cmjax.sample(
            key, apply_fn, params, SCHEDULER, shape, num_inference_steps=steps
        )

    @jax.jit
    def edited(params, key, constraint):
        return editing.edit(
            key, apply_fn, params, SCHEDULER, constraint, shape, num_inference_steps=steps
        )

    bare = jax.jit(lambda params, x: apply_fn(params, x, jnp.ones(batch)))
    denoise = jax.jit(
        lambda params, x, sigma: editing.denoise(apply_fn, params, SCHEDULER, x, sigma)
    )
    between = jax.jit(
        lambda params, x, fractions: editing.interpolate(
            apply_fn, params, SCHEDULER, x[0], x[-1], fractions
        )
    )
    functions = {
        "network": lambda: bare(params, noise),
        "sample": lambda: plain(params, key),
    }
    made = constraints(image)
    for name, constraint in made.items():
        functions[name] = lambda constraint=constraint: edited(params, key, constraint)
    functions["denoise"] = lambda: denoise(params, noise, sigma)
    functions["interpolate"] = lambda: between(params, noise, fractions)

    waiting = [
        lambda function=function: function().block_until_ready()
        for function in functions.values()
    ]
    seconds = in_turn(*waiting, repeats=repeats)
    medians = dict(zip(functions, seconds, strict=True))
    click.echo(described(machine()))
    click.echo(
        f"batch {batch}, {steps} steps: network {medians['network'] * 1e3:.1f} ms a call, "
        f"sample() {medians['sample'] / batch * 1e3:.1f} ms an image"
    )
    for name in made:
        per_image = medians[name] / batch * 1e3
        ratio = medians[name] / medians["sample"]
        click.echo(
            f"{name:<14} {per_image:8.1f} ms an image, edit() / sample() = {ratio:.3f}"
        )
    for name in ("denoise", "interpolate"):
        per_image = medians[name] / batch * 1e3
        ratio = medians[name] / medians["network"]
        click.echo(
            f"{name:<14} {per_image:8.1f} ms an image, over the network = {ratio:.3f}"
        )


if __name__ == "__main__":
    main()
