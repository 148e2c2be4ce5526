"""Every form of a 3x3 convolution, in GFLOP/s: which is the fastest for which map?

    python benchmarks/convolutions.py [--batch 1] [--repeats 25]
    python benchmarks/convolutions.py --gradients

It needs the parity extra. A figure is the arithmetic of the direct form, 18 C O operations for each
pixel, over the seconds, whatever the form computes in truth: higher is faster.

Forward: XLA's convolution, without and with the compiler's option of training steps, Winograd's
F(2x2, 3x3) and F(4x4, 3x3), one product of all neighbourhoods (im2col), and PyTorch's convolution,
channels last. The form that `cmjax.models.conv` takes on CPUs is marked.

`--gradients`: as in a training step, XLA's convolution and its gradients by the input and the
kernel, with the option, and PyTorch's. The last column of both is the faster of cmjax's over
PyTorch's.

The shapes are those of the ImageNet-64 network, and, with batches of 64, those of the UNet of
`train_step.py`.
"""

from functools import partial

import click
import jax
import numpy as np
from timing import Report, in_turn, json_option, keep_memory_option

import cmjax
from cmjax.models import conv
from cmjax.training.compiling import options_for_gradients

# Size of the map, channels in and out.
IMAGENET_64 = [
    (64, 192, 192),
    (32, 384, 384),
    (16, 576, 576),
    (8, 768, 768),
    (8, 1536, 768),
]
SMALL_UNET = [(14, 64, 64), (14, 128, 64), (14, 160, 64), (7, 96, 96), (7, 192, 96)]


def forward_forms(x, kernel, option):
    """The forms of the forward pass, by name; each waits for its result."""
    forms = {name: compiled(form, None, x, kernel) for name, form in conv.FORMS.items()}
    return {**forms, "option": compiled(conv.FORMS["XLA"], option, x, kernel)}


def gradient_forms(x, kernel, g, option):
    """XLA's convolution and its gradients, as a training step compiles them, by name."""
    by_xla = conv.FORMS["XLA"]

    def by_input(x, kernel, g):
        return jax.linear_transpose(lambda x: by_xla(x, kernel), x)(g)[0]

    def by_kernel(x, kernel, g):
        return jax.linear_transpose(lambda kernel: by_xla(x, kernel), kernel)(g)[0]

    return {
        "forward": compiled(by_xla, option, x, kernel),
        "by input": compiled(by_input, option, x, kernel, g),
        "by kernel": compiled(by_kernel, option, x, kernel, g),
    }


def compiled(function, options, *arrays):
    """A function without arguments that computes it, and waits for the result."""
    program = jax.jit(function).lower(*arrays).compile(compiler_options=options)
    on_device = [jax.device_put(array) for array in arrays]
    return lambda: program(*on_device).block_until_ready()


def torch_forms(x, kernel, g):
    """PyTorch's convolution and its gradients, channels last, by name."""
    import torch

    x = torch.from_numpy(x).permute(0, 3, 1, 2)
    g = torch.from_numpy(g).permute(0, 3, 1, 2)
    kernel = torch.from_numpy(kernel).permute(3, 2, 0, 1)
    kernel = kernel.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward():
        torch.nn.functional.conv2d(x, kernel, padding=1)

    @torch.inference_mode()
    def backward(*wanted):
        ones, zeros = [1, 1], [0, 0]
        torch.ops.aten.convolution_backward(
            g, x, kernel, None, ones, ones, ones, False, zeros, 1, [*wanted, False]
        )

    return {
        "forward": forward,
        "by input": partial(backward, True, False),
        "by kernel": partial(backward, False, True),
    }


@click.command()
@click.option(
    "--batch", "batches", multiple=True, type=int, default=(1, 4), show_default=True
)
@click.option(
    "--gradients", is_flag=True, help="The small UNet's convolutions in training."
)
@keep_memory_option(default=True)
@click.option("--repeats", default=25, show_default=True)
@json_option
def main(batches, gradients, keep_memory, repeats, as_json):
    if keep_memory:
        cmjax.system.keep_memory()
    report = Report(as_json)
    option = options_for_gradients("cpu")
    cases = [(batch, *shape) for batch in batches for shape in IMAGENET_64]
    if gradients:
        cases = [(64, *shape) for shape in SMALL_UNET]
    for batch, size, channels_in, channels_out in cases:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((batch, size, size, channels_in), np.float32)
        kernel = rng.standard_normal((3, 3, channels_in, channels_out), np.float32)
        g = rng.standard_normal((batch, size, size, channels_out), np.float32)
        gflop = 18e-9 * batch * size**2 * channels_in * channels_out
        peers = torch_forms(x, kernel, g)
        case = f"{batch} x {size} x {size} x {channels_in} to {channels_out}"
        row = {"batch": batch, "size": size, "channels": [channels_in, channels_out]}

        if gradients:
            ours = gradient_forms(x, kernel, g, option)
            seconds = in_turn(*ours.values(), *peers.values(), repeats=repeats)
            speeds = [gflop / taken for taken in seconds]
            mine = dict(zip(ours, speeds[: len(ours)], strict=True))
            theirs = dict(zip(peers, speeds[len(ours) :], strict=True))
            text = ", ".join(
                f"{name} {mine[name]:.0f} of {theirs[name]:.0f} ({mine[name] / theirs[name]:.2f})"
                for name in ours
            )
            report(f"{case:<26} {text}", **row, speeds=mine, peer_speeds=theirs)
            continue

        ours = forward_forms(x, kernel, option)
        seconds = in_turn(*ours.values(), peers["forward"], repeats=repeats)
        speeds = [gflop / taken for taken in seconds]
        mine = dict(zip(ours, speeds, strict=False))
        taken = conv.form_on_cpus(size**2, min(channels_in, channels_out))
        text = ", ".join(
            f"{name}{'*' if name == taken else ''} {speed:.0f}"
            for name, speed in mine.items()
        )
        ratio = mine[taken] / speeds[-1]
        text = f"{case:<26} {text}, PyTorch {speeds[-1]:.0f} (*/PyTorch {ratio:.2f})"
        report(text, **row, speeds=mine, taken=taken, peer_speed=speeds[-1], ratio=ratio)


if __name__ == "__main__":
    main()
