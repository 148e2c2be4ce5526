"""Every sampler: what a step costs against diffusers, and how good its digits are.

    python benchmarks/samplers.py cost                       (needs torch and diffusers)
    python benchmarks/samplers.py quality mnist.npz --out figures.png
                                                             (the plot needs matplotlib)
    python benchmarks/samplers.py picture samplers.png

`cost`: one step of each scheduler with its noise, against diffusers' class of the same name, on the
same arrays, the two in turn; tiny arrays (overhead of Python) and large ones (arithmetic). Beside
it the time that compiling the step takes, and the number of arrays that the sampler keeps.

`quality`: share of the digits that an independent classifier recognises as the class asked for, and
the Fréchet distance of its features as a share of that of noise (see digits_quality.py), against
network calls. Few-step samplers run the bundled consistency model, the others the denoiser it was
distilled from. Multistep solvers have a row for each order.

`picture`: the same samplers, one seed, columns of 1, 2, 4, 8 and 18 network calls.

Samplers are found through the registry; `--only` takes some of them.
"""

import functools
import time
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np
from diffusers_steps import class_in_diffusers, their_step
from digits_quality import evaluate, frechet_distance, train_classifier
from loop_overhead import in_turn

import cmjax
from cmjax import generation
from cmjax.generation import Request
from cmjax.images import save_grid, to_uint8
from cmjax.schedulers import SCHEDULERS, TableScheduler, scheduler_like

CALLS = (1, 2, 4, 8, 18)
SHAPES = ((1, 4), (64, 28, 28, 1))
DENOISER = Path(__file__).parents[1] / "examples" / "assets" / "digits_denoiser"
SHORT = {"CMStochasticIterativeScheduler": "CM"}

# Betas of which the last time is nearly EDM's sigma_max, and times that begin there.
OF_DISCRETE_TIMES = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "timestep_spacing": "trailing",
}


def can_sample_digits(name):
    """Whether a sampler is part of the comparison, in which one network serves all.

    A network that is told two times is one of its own (CTM, flow maps), as is one of categories;
    steps upwards make noise of images.
    """
    cls = SCHEDULERS[name]
    return (
        issubclass(cls, TableScheduler)
        and cls.num_times == 1
        and not cls.facts.levels.endswith("upwards")
    )


def rows():
    """Label, sampler and options of each row: of solvers of several orders one for each order."""
    for name in filter(can_sample_digits, SCHEDULERS):
        label = SHORT.get(name, name.removesuffix("Scheduler"))
        orders = SCHEDULERS[name].facts.order
        option = next(
            (o for o in ("solver_order", "order") if hasattr(SCHEDULERS[name], o)), None
        )
        if option is None:
            yield label, name, {}
            continue
        for order in range(2, 1 + int(orders.split(",")[0].split(" to ")[-1])):
            yield f"{label} {order}", name, {option: order}


def chosen(only):
    """The rows whose label contains one of some words, separated by commas; all for none."""
    words = only.split(",")
    return [row for row in rows() if any(word in row[0] for word in words)]


only_option = click.option(
    "--only", default="", help="Words that labels contain, by commas."
)


@click.group()
def main():
    pass


@main.command()
@click.option("--repeats", default=30, show_default=True)
@click.option("--only", default="", help="Words that names contain, separated by commas.")
def cost(repeats, only):
    """Time a step of each scheduler against diffusers' class of the same name."""
    click.echo(
        f"{'one step':<36}{'arrays':<18}{'cmjax':>10}{'diffusers':>12}{'ratio':>8}"
        f"{'compile':>11}{'memory':>8}"
    )
    for name, cls in SCHEDULERS.items():
        if not any(word in name for word in only.split(",")):
            continue
        for shape in SHAPES:
            ours, compile_time, memory = our_step(cls(), shape)
            start = f"{name:<36}{shape!s:<18}"
            end = f"{compile_time * 1e3:8.0f} ms{memory:>8}"

            # Some are here only, or need packages that diffusers does without.
            peer_class = class_in_diffusers(name)
            try:
                theirs = their_step(peer_class(), shape) if peer_class else None
            except ImportError as error:
                theirs = None
                end += f"   {str(error).splitlines()[0]}"
            if theirs is None:
                (mine,) = in_turn(ours, repeats=repeats)
                click.echo(f"{start}{mine * 1e6:7.0f} us{'':>20}{end}")
                continue
            mine, peer = in_turn(ours, theirs, repeats=repeats)
            times = f"{mine * 1e6:7.0f} us{peer * 1e6:9.0f} us{mine / peer:8.2f}"
            click.echo(f"{start}{times}{end}")


def our_step(scheduler, shape):
    """The second step of four as a function, the seconds to compile it, and the arrays it keeps."""
    key = jax.random.key(0)
    state, x = scheduler.init(key, scheduler.set_timesteps(4), shape)
    state = state.replace(step_index=jnp.int32(1))
    output = jnp.ones(scheduler.output_shape(shape))

    @jax.jit
    def step(key, state, output, x):
        return scheduler.scale_input(state, x), scheduler.step(key, state, output, x)

    start = time.perf_counter()
    compiled = step.lower(key, state, output, x).compile()
    seconds = time.perf_counter() - start
    del compiled
    memory = len(jax.tree.leaves(state.memory))
    return lambda: jax.block_until_ready(step(key, state, output, x)), seconds, memory


@functools.cache
def loaded(path):
    """The model at a path, read once."""
    return cmjax.load(path)


def with_scheduler(name, options):
    """The model that a sampler runs, under that sampler."""
    cls = SCHEDULERS[name]
    model = loaded(DENOISER if cls.solves_ode else None)
    if isinstance(model.scheduler, cls) and not options:
        return model

    # The network's own levels, or training times that have nearly these.
    fields = cls.__dataclass_fields__
    if "beta_start" in fields:
        known = {key: value for key, value in OF_DISCRETE_TIMES.items() if key in fields}
        return model.with_scheduler(cls(**known, **options))
    return model.with_scheduler(scheduler_like(model.scheduler, name, **options))


def steps_within(scheduler, calls):
    """The most steps that make at most so many network calls, or None."""
    for steps in range(calls, 0, -1):
        try:
            if scheduler.set_timesteps(steps).num_steps <= calls:
                return steps
        except ValueError:
            continue  # too few steps for this sampler
    return None


def generate(model, calls, labels):
    """Returns u8 images made in at most that many network calls, and how many they were."""
    steps = steps_within(model.scheduler, calls)
    if steps is None:
        return None, None
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
@only_option
@click.option("--plotless", is_flag=True, help="Print the table only.")
def quality(data, num, out, only, plotless):
    """Measure every sampler against the MNIST file DATA; write a plot."""
    with np.load(data) as arrays:
        train = arrays["x_train"][..., None]
        train_labels = arrays["y_train"].astype(np.int32)
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
    for label, name, options in chosen(only):
        model = with_scheduler(name, options)
        cells = []
        for calls in CALLS:
            images, made = generate(model, calls, labels)
            if images is None:
                cells.append(f"{'-':>16}")
                continue
            predicted, features = evaluate(classifier, images)
            accuracy = np.mean(predicted == labels)
            distance = frechet_distance(features, reference) / noise_distance
            curves.setdefault((label, name), []).append((made, accuracy, distance))
            cells.append(f"{accuracy:>8.1%}{distance:>8.1%}")
        click.echo(f"{label:<32}{''.join(cells)}")
    if not plotless:
        plot(curves, out)


def panel_of(label, name):
    """Which panel of the plot a row is in."""
    cls = SCHEDULERS[name]
    if not cls.solves_ode:
        return "consistency model"
    if cls.facts.noise == "yes":
        return "with fresh noise"
    last = label.split()[-1]
    order = last if last.isdigit() else cls.facts.order
    return {"1": "order 1", "2": "order 2"}.get(order, "order 3 and 4")


def plot(curves, path):
    """Writes accuracy and distance against network calls, a column of panels for each kind."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    panels = (
        "consistency model",
        "order 1",
        "order 2",
        "order 3 and 4",
        "with fresh noise",
    )
    figure, axes = pyplot.subplots(
        2, len(panels), figsize=(20, 8), sharey="row", constrained_layout=True
    )
    for (label, name), points in curves.items():
        calls, accuracy, distance = zip(*points, strict=True)
        column = panels.index(panel_of(label, name))
        style = {"marker": "o", "markersize": 3, "label": label}
        axes[0, column].plot(calls, accuracy, **style)
        axes[1, column].plot(calls, distance, **style)

        # Euler's method in every panel of solvers, to compare with.
        if label == "EDMEuler":
            for other in range(1, len(panels)):
                if other != column:
                    for axis, values in zip(
                        axes[:, other], (accuracy, distance), strict=True
                    ):
                        axis.plot(
                            calls, values, color="gray", linestyle=":", label="EDMEuler"
                        )
    for column, title in enumerate(panels):
        axes[0, column].set_title(title)
        for axis in axes[:, column]:
            axis.set(xscale="log", xlabel="network calls", xticks=CALLS, xticklabels=CALLS)
            axis.minorticks_off()
        axes[1, column].set_yscale("log")
        axes[1, column].legend(fontsize=7)
    axes[0, 0].set_ylabel("recognised as the digit asked for")
    axes[1, 0].set_ylabel("Fréchet distance, of that of noise")
    figure.savefig(path, dpi=80)
    click.echo(f"plot in {path}")


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--digits", default="0,2,3,8", show_default=True)
@only_option
def picture(out, digits, only):
    """Draw rows of samplers, columns of network calls."""
    labels = [int(digit) for digit in digits.split(",")]
    blank = np.zeros((28, 28 * len(labels), 1), np.uint8)
    images = []
    captions = []
    for label, name, options in chosen(only):
        model = with_scheduler(name, options)
        for calls in CALLS:
            digits_made, made = generate(model, calls, labels)
            if digits_made is None:
                images.append(blank)
                captions.append(f"{label}, -")
                continue
            images.append(np.concatenate(digits_made, axis=1))
            captions.append(f"{label}, {made}")
    save_grid(out, np.stack(images), columns=len(CALLS), labels=captions, scale=2)
    click.echo(f"{len(images) // len(CALLS)} samplers in {out}")


if __name__ == "__main__":
    main()
