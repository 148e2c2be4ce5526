"""Every sampler: what a step costs against diffusers, and how good its digits are.

    python benchmarks/samplers.py cost                       (needs torch and diffusers)
    python benchmarks/samplers.py quality mnist.npz --out figures
                                                             (the plot needs matplotlib)
    python benchmarks/samplers.py picture samplers.png

`cost`: one step of each scheduler with its noise, against diffusers' class of the same name, on the
same arrays, the two in turn; tiny arrays (overhead of Python) and large ones (arithmetic).

`quality`: share of the digits that an independent classifier recognises as the class asked for, and
the Fréchet distance of its features as a share of that of noise (see digits_quality.py), against
network calls. Few-step samplers run the bundled consistency model, solvers of the probability-flow
ODE the denoiser it was distilled from.

`picture`: the same samplers, one seed, columns of 1, 2, 4, 8 and 18 network calls.
"""

from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np
from digits_quality import evaluate, frechet_distance, train_classifier
from loop_overhead import in_turn

import cmjax
from cmjax import generation
from cmjax.generation import Request
from cmjax.images import save_grid, to_uint8
from cmjax.schedulers import SCHEDULERS

CALLS = (1, 2, 4, 8, 18)
DENOISER = Path(__file__).parents[1] / "examples" / "assets" / "digits_denoiser"
SHORT = {
    "CMStochasticIterativeScheduler": "CM",
    "EDMDPMSolverMultistepScheduler": "DPM-Solver++ 2M",
}
TWO_CALLS_A_STEP = ("EDMHeunScheduler", "EDMDPM2Scheduler")
DDIM_OPTIONS = {
    "beta_schedule": "scaled_linear",
    "beta_end": 0.02,
    "timestep_spacing": "trailing",
}


def can_sample_digits(name):
    """Whether a sampler is part of the comparison: one network serves all of these.

    A network that is told two times is one of its own (CTM, flow maps). Of the solvers, those on
    training times repeat what those on EDM's levels do; DDIM stands for them.
    """
    cls = SCHEDULERS[name]
    if cls.num_times > 1:
        return False
    return not cls.solves_ode or name.startswith("EDM") or name == "DDIMScheduler"


SAMPLED = [name for name in SCHEDULERS if can_sample_digits(name)]


@click.group()
def main():
    pass


@main.command()
@click.option("--repeats", default=30, show_default=True)
def cost(repeats):
    """Time a step of each scheduler against diffusers' class of the same name."""
    import diffusers

    click.echo(f"{'one step':<32}{'arrays':<18}{'cmjax':>10}{'diffusers':>12}{'ratio':>8}")
    for name, cls in SCHEDULERS.items():
        if not hasattr(diffusers, name):
            continue
        try:
            getattr(diffusers, name)()
        except ImportError:
            click.echo(f"{name:<32}skipped: diffusers needs torchsde for it")
            continue
        for shape in ((1, 4), (64, 28, 28, 1)):
            ours = our_step(cls(), shape)
            theirs = their_step(getattr(diffusers, name)(), shape)
            mine, peer = in_turn(ours, theirs, repeats=repeats)
            times = f"{mine * 1e6:7.0f} us{peer * 1e6:9.0f} us{mine / peer:8.2f}"
            click.echo(f"{name:<32}{str(shape):<18}{times}")


def our_step(scheduler, shape):
    """One step, the second of four, as a function without arguments."""
    key = jax.random.key(0)
    state, x = scheduler.init(key, scheduler.set_timesteps(4), shape)
    state = state.replace(step_index=jnp.int32(1))

    @jax.jit
    def step(key, state, x):
        return scheduler.scale_input(state, x), scheduler.step(key, state, x, x)

    return lambda: jax.block_until_ready(step(key, state, x))


def their_step(scheduler, shape):
    """The same of diffusers, which counts its steps: it is set back."""
    import torch

    x = torch.ones(shape)
    options = {}
    if type(scheduler).__name__ == "SCMScheduler":
        options["intermediate_timesteps"] = None  # its default allows two steps only
    scheduler.set_timesteps(4, **options)
    t = scheduler.timesteps[1]
    scale = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)

    def step():
        scheduler._step_index = 1
        if hasattr(
            scheduler, "model_outputs"
        ):  # what a multistep solver has after its first step
            scheduler.model_outputs = [None, x]
            scheduler.lower_order_nums = 1
        scale(x, t)
        scheduler.step(x, t, x)

    return step


def with_scheduler(name):
    """The model that a sampler runs, under that sampler."""
    cls = SCHEDULERS[name]
    model = cmjax.load(DENOISER if cls.solves_ode else None)
    if isinstance(model.scheduler, cls):
        return model
    options = {}
    if name.startswith("EDM"):
        options = {"sigma_min": 0.002}
    elif name == "DDIMScheduler":
        options = DDIM_OPTIONS
    return model.with_scheduler(cls(**options))


def generate(name, calls, labels):
    """Returns u8 images made in at most that many network calls, and how many they were."""
    model = with_scheduler(name)
    steps = (calls + 1) // 2 if name in TWO_CALLS_A_STEP else calls
    request = Request(num_inference_steps=steps, labels=labels)
    images = generation.generate(
        model, request, len(labels), batch_size=100, progress=True
    ).images
    return images, request.set_timesteps(model.scheduler).num_steps


@main.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--num", default=1000, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="samplers_quality.png",
    show_default=True,
)
def quality(data, num, out):
    """Measure every sampler against the MNIST file DATA; write a plot."""
    with np.load(data) as arrays:
        train, train_labels = (
            arrays["x_train"][..., None],
            arrays["y_train"].astype(np.int32),
        )
        test = arrays["x_test"][..., None]
    classifier = train_classifier(train, train_labels)
    reference = evaluate(classifier, test)[1]
    noise = to_uint8(jax.random.normal(jax.random.key(0), (num, 28, 28, 1)))
    noise_distance = frechet_distance(evaluate(classifier, noise)[1], reference)
    labels = np.arange(num) % 10
    click.echo(
        f"{'':<32}" + "".join(f"{calls:>16}" for calls in CALLS) + "   network calls"
    )
    curves = {}
    for name in SAMPLED:
        for calls in CALLS:
            images, made = generate(name, calls, labels)
            predicted, features = evaluate(classifier, images)
            accuracy = np.mean(predicted == labels)
            distance = frechet_distance(features, reference) / noise_distance
            curves.setdefault(name, []).append((made, accuracy, distance))
        points = curves[name]
        cells = [f"{accuracy:>8.1%}{distance:>8.1%}" for _, accuracy, distance in points]
        click.echo(f"{name:<32}{''.join(cells)}")
    plot(curves, out)


def plot(curves, path):
    """Writes accuracy against network calls, a line per sampler."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), constrained_layout=True)
    for name, points in curves.items():
        calls, accuracy, distance = zip(*points, strict=True)
        style = {
            "linestyle": "--" if SCHEDULERS[name].solves_ode else "-",
            "marker": "o",
            "markersize": 3,
            "label": name.removesuffix("Scheduler"),
        }
        axes[0].plot(calls, accuracy, **style)
        axes[1].plot(calls, distance, **style)
    axes[0].set_title("recognised as the digit asked for")
    axes[1].set_title("Fréchet distance, of that of noise")
    for axis in axes:
        axis.set(xscale="log", xlabel="network calls", xticks=CALLS, xticklabels=CALLS)
        axis.minorticks_off()
    axes[1].set_yscale("log")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=80)
    click.echo(f"plot in {path}")


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--digits", default="0,2,3,8", show_default=True)
def picture(out, digits):
    """Draw rows of samplers, columns of network calls."""
    labels = [int(digit) for digit in digits.split(",")]
    rows = []
    captions = []
    for name in SAMPLED:
        for calls in CALLS:
            images, made = generate(name, calls, labels)
            rows.append(np.concatenate(images, axis=1))
            short = SHORT.get(name, name.removesuffix("Scheduler").removeprefix("EDM"))
            captions.append(f"{short}, {made}")
    save_grid(out, np.stack(rows), columns=len(CALLS), labels=captions, scale=2)
    click.echo(f"{', '.join(SAMPLED)} in {out}")


if __name__ == "__main__":
    main()
