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
from cmjax.schedulers import FEW_STEP, SCHEDULERS

CALLS = (1, 2, 4, 8, 18)
DENOISER = Path(__file__).parents[1] / "examples" / "assets" / "digits_denoiser"
SHORT = {
    "CMStochasticIterativeScheduler": "CM",
    "EDMDPMSolverMultistepScheduler": "DPM-Solver++ 2M",
}
TWO_CALLS_A_STEP = ("EDMHeunScheduler", "EDMDPM2Scheduler")
OPTIONS = {
    "DDIMScheduler": {
        "beta_schedule": "scaled_linear",
        "beta_end": 0.02,
        "timestep_spacing": "trailing",
    }
}
MODELS_OF_THEIR_OWN = ("CTMScheduler", "FlowMapEulerDiscreteScheduler")
SAMPLED = [
    name
    for name in SCHEDULERS
    if name not in MODELS_OF_THEIR_OWN and (name in FEW_STEP or name[:3] in ("EDM", "DDI"))
]


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
        for shape in ((1, 4), (64, 28, 28, 1)):
            ours, theirs = our_step(cls(), shape), their_step(getattr(diffusers, name)(), shape)
            mine, peer = in_turn(ours, theirs, repeats=repeats)
            times = f"{mine * 1e6:7.0f} us{peer * 1e6:9.0f} us{mine / peer:8.2f}"
            click.echo(f"{name:<32}{str(shape):<18}{times}")


def our_step(scheduler, shape):
    """One step, the second of four, as a function without arguments."""
    x = jnp.ones(shape)
    key = jax.random.key(0)
    state = scheduler.prepare(scheduler.set_timesteps(4), x).replace(step_index=jnp.int32(1))
    step = jax.jit(
        lambda key, state, x: (scheduler.scale_input(state, x), scheduler.step(key, state, x, x))
    )
    return lambda: jax.block_until_ready(step(key, state, x))


def their_step(scheduler, shape):
    """The same of diffusers, which counts its steps: it is set back."""
    import torch

    x = torch.ones(shape)
    scheduler.set_timesteps(
        4, **({"intermediate_timesteps": None} if "SCM" in type(scheduler).__name__ else {})
    )
    t = scheduler.timesteps[1]
    scale = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)

    def step():
        scheduler._step_index = 1
        if hasattr(scheduler, "model_outputs"):  # what a multistep solver has after its first step
            scheduler.model_outputs, scheduler.lower_order_nums = [None, x], 1
        scale(x, t)
        scheduler.step(x, t, x)

    return step


def with_scheduler(name):
    """The model that a sampler runs, under that sampler."""
    model = cmjax.load() if name in FEW_STEP else cmjax.load(DENOISER)
    if name == "CMStochasticIterativeScheduler":
        return model
    shared = {"sigma_min": 0.002} if name.startswith("EDM") else {}
    return model.with_scheduler(SCHEDULERS[name](**shared, **OPTIONS.get(name, {})))


def generate(name, calls, labels):
    """Returns u8 images made in at most that many network calls, and how many they were."""
    model = with_scheduler(name)
    steps = (calls + 1) // 2 if name in TWO_CALLS_A_STEP else calls
    request = Request(num_inference_steps=steps, labels=labels)
    images = generation.generate(model, request, len(labels), batch_size=100, progress=True).images
    return images, request.set_timesteps(model.scheduler).num_steps


@main.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--num", default=1000, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default="samplers_quality.png", show_default=True
)
def quality(data, num, out):
    """Measure every sampler against the MNIST file DATA; write a plot."""
    with np.load(data) as arrays:
        train, train_labels = arrays["x_train"][..., None], arrays["y_train"].astype(np.int32)
        test = arrays["x_test"][..., None]
    classifier = train_classifier(train, train_labels)
    reference = evaluate(classifier, test)[1]
    noise = to_uint8(jax.random.normal(jax.random.key(0), (num, 28, 28, 1)))
    noise_distance = frechet_distance(evaluate(classifier, noise)[1], reference)
    labels = np.arange(num) % 10
    click.echo(f"{'':<32}" + "".join(f"{calls:>16}" for calls in CALLS) + "   network calls")
    curves = {}
    for name in SAMPLED:
        for calls in CALLS:
            images, made = generate(name, calls, labels)
            predicted, features = evaluate(classifier, images)
            accuracy = np.mean(predicted == labels)
            distance = frechet_distance(features, reference) / noise_distance
            curves.setdefault(name, []).append((made, accuracy, distance))
        cells = "".join(
            f"{accuracy:>8.1%}{distance:>8.1%}" for _, accuracy, distance in curves[name]
        )
        click.echo(f"{name:<32}{cells}")
    plot(curves, out)


def plot(curves, path):
    """Writes accuracy against network calls, a line per sampler."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), constrained_layout=True)
    for name, points in curves.items():
        calls, accuracy, distance = zip(*points, strict=True)
        line = "-" if name in FEW_STEP else "--"
        for axis, values in zip(axes, (accuracy, distance), strict=True):
            axis.plot(
                calls, values, line, marker="o", markersize=3, label=name.removesuffix("Scheduler")
            )
    for axis, title in zip(
        axes,
        ("recognised as the digit asked for", "Fréchet distance, of that of noise"),
        strict=True,
    ):
        axis.set(xscale="log", xlabel="network calls", title=title, xticks=CALLS, xticklabels=CALLS)
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
