"""Every sampler: what a step costs against diffusers, and how good its digits are.

    python benchmarks/samplers.py cost                       (needs torch and diffusers)
    python benchmarks/samplers.py quality mnist.npz          (long: resumes where it stopped)
    python benchmarks/samplers.py table --into docs/benchmarks.md
    python benchmarks/samplers.py plot samplers_quality.png  (needs matplotlib)
    python benchmarks/samplers.py picture samplers.png

`cost`: one step of each scheduler with its noise, against diffusers' class of the same name, on the
same arrays, the two in turn; tiny arrays (overhead of Python) and large ones (arithmetic). Beside
it the time that compiling the step takes, and the number of arrays that the sampler keeps. A ratio
above 1 means that cmjax is faster.

`quality`: share of the digits that an independent classifier recognises as the class asked for, and
the Fréchet distance of its features as a share of that of noise (see digits_quality.py), against
network calls. Few-step samplers run the bundled consistency model, the others the denoiser it was
distilled from. Multistep solvers have a row for each order. Every figure is written to a file,
samplers_quality.csv next to this script, as soon as it is there; `table` and `plot` read this file.

`picture`: samplers as rows, network calls as columns, one seed.

Samplers are found through the registry; `--only` takes some of them.
"""

import time
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np
from diffusers_steps import class_in_diffusers, their_step
from digits_quality import evaluate, frechet_distance, train_classifier
from samplers_figures import (
    CALLS,
    Figure,
    read_figures,
    tables,
    with_tables,
    write_figures,
)
from samplers_pictures import draw_picture, draw_plot
from samplers_rows import chosen, generate, steps_within, with_scheduler
from timing import described, in_turn, machine

from cmjax.images import to_uint8
from cmjax.schedulers import SCHEDULERS

SHAPES = ((1, 4), (64, 28, 28, 1))
FIGURES = Path(__file__).with_name("samplers_quality.csv")
FIRST = (8, 18, 4, 2, 1)  # those that tell most are measured first

only_option = click.option(
    "--only", default="", help="Words that labels begin with, by commas."
)
figures_option = click.option(
    "--figures",
    type=click.Path(path_type=Path),
    default=FIGURES,
    show_default="next to this script",
    help="The file of figures.",
)


@click.group()
def main():
    pass


@main.command()
@click.option("--repeats", default=30, show_default=True)
@click.option("--only", default="", help="Words that names contain, separated by commas.")
def cost(repeats, only):
    """Time a step of each scheduler against diffusers' class of the same name."""
    click.echo(described(machine()))
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
            times = f"{mine * 1e6:7.0f} us{peer * 1e6:9.0f} us{peer / mine:8.2f}"
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


def judge(data, num):
    """Returns a function from u8 images of classes i % 10 to their share recognised and distance.

    The distance is a share of that of noise.
    """
    with np.load(data) as arrays:
        train = arrays["x_train"][..., None]
        train_labels = arrays["y_train"].astype(np.int32)
        test = arrays["x_test"][..., None]
    classifier = train_classifier(train, train_labels)
    reference = evaluate(classifier, test)[1]
    noise = to_uint8(jax.random.normal(jax.random.key(0), (num, 28, 28, 1)))
    of_noise = frechet_distance(evaluate(classifier, noise)[1], reference)

    def judged(images):
        predicted, features = evaluate(classifier, images)
        recognised = np.mean(predicted == np.arange(num) % 10)
        return recognised, frechet_distance(features, reference) / of_noise

    return judged


@main.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--num", default=500, show_default=True)
@figures_option
@only_option
def quality(data, num, figures, only):
    """Measure every sampler against the MNIST file DATA, but for what is measured already."""
    known = read_figures(figures)
    if any(figure.num != num for figure in known.values()):
        raise click.UsageError(f"{figures} has figures of another --num; use another file")
    judged = judge(data, num)
    for calls in FIRST:
        for row in chosen(only):
            model = with_scheduler(row)
            found = steps_within(model.scheduler, calls)
            if found is None or (row.label, found[1]) in known:
                continue
            steps, made = found
            recognised, distance = judged(generate(model, steps, np.arange(num) % 10))
            known[row.label, made] = Figure(row.label, made, num, recognised, distance)
            write_figures(figures, known)
            click.echo(f"{row.label:<28}{made:>4} calls{recognised:>8.1%}{distance:>9.2%}")


@main.command()
@figures_option
@click.option("--into", type=click.Path(path_type=Path), help="A page to write them into.")
def table(figures, into):
    """Print the figures, and how they compare with Euler's method, as tables in Markdown."""
    text = tables(read_figures(figures))
    if into is None:
        click.echo(text, nl=False)
        return
    into.write_text(with_tables(into.read_text(), text))


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@figures_option
def plot(out, figures):
    """Draw the figures against network calls."""
    draw_plot(read_figures(figures), out)


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--digits", default="2,3,8", show_default=True)
@click.option("--calls", default=",".join(map(str, CALLS)), show_default=True)
@only_option
def picture(out, digits, calls, only):
    """Draw digits of samplers (rows) in exactly so many network calls (columns)."""
    labels = [int(digit) for digit in digits.split(",")]
    columns = [int(number) for number in calls.split(",")]
    cells = {}
    for row in chosen(only):
        model = with_scheduler(row)
        for number in columns:
            found = steps_within(model.scheduler, number)
            if found is not None and found[1] == number:
                images = generate(model, found[0], labels)[..., 0]
                cells[row.label, number] = np.concatenate(images, axis=1)
    draw_picture(cells, [row.label for row in chosen(only)], columns, out)


if __name__ == "__main__":
    main()
