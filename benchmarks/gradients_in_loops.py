"""Gradients of convolutions within loops: cmjax's against those of `jax.lax`.

    python benchmarks/gradients_in_loops.py [--batch 16] [--repeats 7]

On CPUs XLA's convolutions are slow within `jax.lax.scan`, `while_loop` and `cond` where their
layout is not `[B, H, W, C]` with `[h, w, C, O]`, as that of every gradient of a convolution.
`cmjax.models.conv_in_loops` transposes them to this layout.

Both sides compute a 3x3 convolution or one of its gradients four times in a `lax.scan`. Beside them
stands cmjax's, four times without a loop. The last line is a training step of the UNet of
`train_step.py`, four times in a `lax.scan` and in four calls. A ratio above 1 means that cmjax in a
loop is faster than what it is compared with.
"""

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from timing import Report, in_turn, json_option, repeats_option
from train_step import UNET

import cmjax
from cmjax.models import UNet2D, from_nnx
from cmjax.models.conv import PADDED
from cmjax.models.conv_in_loops import CHANNELS_LAST, convolve
from cmjax.training import losses, trainer
from cmjax.training.compiling import options_for_gradients

TIMES = 4

# Size of the map, channels in and out.
SHAPES = [(28, 32, 32), (14, 64, 64), (7, 96, 96)]


def by_cmjax(x, kernel):
    return convolve(x, kernel, PADDED)


def by_jax(x, kernel):
    ones = (1, 1)
    return jax.lax.conv_general_dilated(
        x, kernel, ones, (ones, ones), dimension_numbers=CHANNELS_LAST
    )


def forms(convolution):
    """The convolution and its gradients, of a map, a kernel and a cotangent, by name."""

    def by_input(x, kernel, g):
        return jax.vjp(lambda x: convolution(x, kernel), x)[1](g)[0]

    def by_kernel(x, kernel, g):
        return jax.vjp(lambda kernel: convolution(x, kernel), kernel)[1](g)[0]

    return {
        "forward": lambda x, kernel, g: convolution(x, kernel),
        "by input": by_input,
        "by kernel": by_kernel,
    }


def repeated(function, arrays, in_loop):
    """A function without arguments: `function` of each of several maps, kernels and cotangents."""

    def loop(arrays):
        return jax.lax.map(lambda each: function(*each), arrays)

    def unrolled(arrays):
        return [function(*(array[i] for array in arrays)) for i in range(TIMES)]

    program = jax.jit(loop if in_loop else unrolled).lower(arrays).compile()
    return lambda: jax.block_until_ready(program(arrays))


def training(batch):
    """The seconds of steps of the UNet in a scan and one by one, as functions."""
    apply_fn, params = from_nnx(UNet2D(UNET, rngs=nnx.Rngs(0)))
    loss = losses.Denoising(cmjax.CMStochasticIterativeScheduler())
    train_step = trainer.make_train_step(loss, apply_fn, optax.adam(1e-4))

    def initial():
        return train_step.init(jax.random.key(0), jax.tree.map(jnp.copy, params))

    # A program of the caller's own takes the compiler's option from the caller.
    options = options_for_gradients(jax.default_backend())

    def scanned(state, batch):
        return jax.lax.scan(lambda state, _: train_step(state, batch), state, length=TIMES)

    program = jax.jit(scanned, donate_argnums=0, compiler_options=options)
    in_scan = {"state": initial()}
    in_calls = {"state": initial()}

    def scan():
        in_scan["state"], metrics = program(in_scan["state"], batch)
        jax.block_until_ready(metrics)

    def calls():
        for _ in range(TIMES):
            in_calls["state"], metrics = train_step(in_calls["state"], batch)
        jax.block_until_ready(metrics)

    return scan, calls


@click.command()
@click.option("--batch", default=16, show_default=True)
@repeats_option
@json_option
def main(batch, repeats, as_json):
    report = Report(as_json)
    rng = np.random.default_rng(0)
    for size, channels_in, channels_out in SHAPES:
        x = rng.standard_normal((TIMES, batch, size, size, channels_in), np.float32)
        kernel = rng.standard_normal((TIMES, 3, 3, channels_in, channels_out), np.float32)
        g = rng.standard_normal((TIMES, batch, size, size, channels_out), np.float32)
        arrays = [jnp.asarray(array) for array in (x, kernel, g)]
        for name in forms(by_jax):
            sides = {
                "cmjax": repeated(forms(by_cmjax)[name], arrays, in_loop=True),
                "jax.lax": repeated(forms(by_jax)[name], arrays, in_loop=True),
                "without a loop": repeated(forms(by_cmjax)[name], arrays, in_loop=False),
            }
            seconds = dict(
                zip(sides, in_turn(*sides.values(), repeats=repeats), strict=True)
            )
            ms = {side: 1e3 * value / TIMES for side, value in seconds.items()}
            report(
                f"{batch} x {size} x {size} x {channels_in} to {channels_out}, {name:<9} "
                f"cmjax {ms['cmjax']:.2f} ms, jax.lax {ms['jax.lax']:.2f} ms "
                f"(jax.lax / cmjax {ms['jax.lax'] / ms['cmjax']:.1f}), "
                f"without a loop {ms['without a loop']:.2f} ms",
                batch=batch,
                size=size,
                channels=[channels_in, channels_out],
                form=name,
                milliseconds=ms,
            )

    images = rng.uniform(-1, 1, (batch, 28, 28, 1)).astype(np.float32)
    scan, calls = in_turn(*training({"data": images}), repeats=repeats)
    report(
        f"UNet, {TIMES} training steps of {batch}: in a scan {scan:.2f} s, in calls {calls:.2f} s "
        f"(calls / scan {calls / scan:.2f})",
        batch=batch,
        scan=scan,
        calls=calls,
    )


if __name__ == "__main__":
    main()
