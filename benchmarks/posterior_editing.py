"""Does editing sample p(x0 | known)? Both methods where the answer is known, and on digits.

    python benchmarks/posterior_editing.py fields
    python benchmarks/posterior_editing.py modes
    python benchmarks/posterior_editing.py digits mnist.npz [--task "lower half"] [--seed 1]
    python benchmarks/posterior_editing.py picture edit_posterior.png

`fields`: Gaussian fields of 4x4 and 8x8 pixels, whose consistency function and conditional
distribution are closed forms. Printed is the divergence of the samples' mean and covariance from
the true ones (Kullback-Leibler, of normal distributions, where the constraint sees nothing), next
to that of as many true samples.

`modes`: a mixture of two normal distributions in the plane, one coordinate of which is known. Its
consistency function is the probability-flow ODE, solved finely. Printed is the share of samples in
the first mode, next to the truth: of projection, and of the posterior by its number of candidates.

`digits`: the first test digits lose their lower half, their left half, or all but 7x7 pixels; the
bundled model is given the class. Printed is the share that the classifier of `digits_quality.py`
recognises, the root mean square distance from the original, the mean square of the noise, and the
time; then how many digits only one method gets right.

`picture`: of three digits, each half erased, five results of each method side by side.

Projection is Algorithm 4 at the paper's levels, 39 network calls. A level of the posterior is 4
calls, another for each candidate, and `iterations` products with the network's Jacobian and as many
with its transpose.
"""

import time
from functools import partial
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np
from digits_quality import evaluate, train_classifier

import cmjax
from cmjax import testing
from cmjax.editing import colorize, edit, inpaint, super_resolve
from cmjax.images import from_uint8, save_grid, to_uint8

SCHEDULER = cmjax.CMStochasticIterativeScheduler(clip_denoised=False)
WEIGHTS = np.array([0.299, 0.587, 0.114])
METHODS = ("projection", "posterior")


@click.group()
def main():
    pass


# Gaussian fields.


def field(size, channels):
    """The covariance of pixels `[size, size, channels]`: std 0.5, fading over 2 pixels."""
    places = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 2)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    colours = 0.5 * np.eye(channels) + 0.5
    return np.kron(0.25 * np.exp(-distances / 2), colours)


def field_network(covariance):
    """The exact consistency model of N(0, covariance)."""
    variances, axes = np.linalg.eigh(covariance)
    variances = variances.astype(np.float32)
    axes = axes.astype(np.float32)

    def consistency(params, x, sigma):
        shrink = jnp.sqrt((variances + SCHEDULER.sigma_min**2) / (variances + sigma**2))
        return ((x.reshape(-1) @ axes * shrink) @ axes.T).reshape(x.shape)

    return testing.network_of(SCHEDULER.parametrization, consistency)


def field_task(name, image):
    """The constraint by an image of a field, and the matrix A of what it keeps."""
    size, _, channels = image.shape
    basis = np.eye(image.size).reshape(-1, *image.shape)
    if name == "inpaint":
        known = np.arange(size)[:, None, None] < size // 2
        seen = basis[:, : size // 2]
        constraint = inpaint(image, known)
    elif name == "colorize":
        seen = basis @ WEIGHTS
        constraint = colorize((image @ WEIGHTS).astype(np.float32)[..., None])
    else:
        half = size // 2
        seen = basis.reshape(-1, half, 2, half, 2, channels).mean((2, 4))
        low = image.reshape(half, 2, half, 2, channels).mean((1, 3))
        constraint = super_resolve(low, 2)
    return constraint, seen.reshape(image.size, -1).T


def divergence(samples, mean, covariance):
    """Of the normal distribution of samples `[n, d]` from N(mean, covariance)."""
    inverse = np.linalg.inv(covariance)
    off = samples.mean(0) - mean
    ratio = inverse @ np.cov(samples.T)
    return 0.5 * (
        np.trace(ratio) + off @ inverse @ off - len(off) - np.linalg.slogdet(ratio)[1]
    )


@main.command()
@click.option("--num", default=6000, show_default=True)
def fields(num):
    """Measure both methods on Gaussian fields."""
    click.echo(f"{'field':<24}{'true sample':>12}{'projection':>12}{'posterior':>12}")
    cases = [(4, 1, "inpaint"), (4, 1, "super_resolve"), (4, 3, "colorize")]
    cases += [(8, 1, "inpaint"), (8, 1, "super_resolve"), (8, 3, "colorize")]
    for size, channels, name in cases:
        rng = np.random.default_rng(0)
        covariance = field(size, channels)
        values = np.linalg.cholesky(covariance) @ rng.standard_normal(len(covariance))
        image = values.reshape(size, size, channels).astype(np.float32)
        constraint, seen = field_task(name, image)

        # What is true given A x0 = y, where A sees nothing.
        unseen = np.linalg.svd(seen)[2][len(seen) :].T
        gain = covariance @ seen.T @ np.linalg.inv(seen @ covariance @ seen.T)
        mean = unseen.T @ gain @ seen @ image.reshape(-1)
        left = unseen.T @ (covariance - gain @ seen @ covariance) @ unseen
        measured = [divergence(rng.multivariate_normal(mean, left, num), mean, left)]
        network = field_network(covariance)
        for method in METHODS:
            shape = (num, *image.shape)
            key = jax.random.key(1)
            made = edit(key, network, None, SCHEDULER, constraint, shape, method=method)
            flat = np.asarray(made, np.float64).reshape(num, -1)
            measured.append(divergence(flat @ unseen, mean, left))
        row = "".join(f"{value:>12.4f}" for value in measured)
        click.echo(f"{f'{size}x{size}x{channels} {name}':<24}{row}")


# Two modes.

MEANS = np.array([[-0.6, -0.4], [0.6, 0.4]], np.float32)
STD = 0.25
SHARES = np.array([0.3, 0.7], np.float32)


def mixture_denoised(x, sigma):
    """E[x0 | x] of the mixture for one sample x `[2]` at a noise level."""
    variance = STD**2 + sigma**2
    logits = jnp.log(SHARES) - jnp.sum(jnp.square(x - MEANS), -1) / (2 * variance)
    each = MEANS + STD**2 / variance * (x - MEANS)
    return jax.nn.softmax(logits) @ each


def mixture_consistency(params, x, sigma):
    """The end of the probability-flow ODE, by Heun's method in 80 steps of equal ratios."""
    ratio = jnp.log(SCHEDULER.sigma_min / sigma) / 80

    def slope(x, level):
        # d x / d log(sigma).
        return x - mixture_denoised(x, level)

    def step(i, x):
        low = sigma * jnp.exp((i + 1) * ratio)
        first = slope(x, sigma * jnp.exp(i * ratio))
        second = slope(x + ratio * first, low)
        return x + ratio * (first + second) / 2

    return jax.lax.fori_loop(0, 80, step, x)


@main.command()
@click.option("--num", default=6000, show_default=True)
def modes(num):
    """Measure both methods on a mixture of two modes."""
    network = testing.network_of(SCHEDULER.parametrization, mixture_consistency)
    sides = {"projection": {"method": "projection"}}
    for candidates in (1, 4, 16, 64):
        sides[f"posterior {candidates}"] = {"method": "posterior", "candidates": candidates}

    def run(image, options):
        known = jnp.array([[1.0, 0.0]])
        constraint = inpaint(image, known)
        shape = (num, 2)
        key = jax.random.key(0)
        return edit(key, network, None, SCHEDULER, constraint, shape, **options)

    runs = {name: jax.jit(partial(run, options=side)) for name, side in sides.items()}
    click.echo(f"{'known':>6}{'truth':>8}" + "".join(f"{name:>14}" for name in runs))
    for known in (-0.3, -0.1, 0.0, 0.1, 0.3):
        # Given the first coordinate, by Bayes.
        likelihood = np.exp(-((known - MEANS[:, 0]) ** 2) / (2 * STD**2))
        truth = SHARES * likelihood / np.sum(SHARES * likelihood)
        row = f"{known:>6}{truth[0]:>8.3f}"
        for made in runs.values():
            # A sample is in the mode that it more likely comes from.
            x0 = np.asarray(made(jnp.array([[known, 0.0]])))
            squares = np.sum((x0[:, None] - MEANS) ** 2, -1) / (2 * STD**2)
            first = np.log(SHARES[0]) - squares[:, 0] > np.log(SHARES[1]) - squares[:, 1]
            row += f"{np.mean(first):>14.3f}"
        click.echo(row)


# Digits.


def digit_tasks(images):
    """The constraints by images `[N, 28, 28, 1]`, by name."""
    rows = np.arange(28)[:, None, None]
    columns = np.arange(28)[None, :, None]
    low = images.reshape(-1, 7, 4, 7, 4, 1).mean((2, 4))
    return {
        "lower half": inpaint(images, np.broadcast_to(rows < 14, (28, 28, 1))),
        "left half": inpaint(images, np.broadcast_to(columns >= 14, (28, 28, 1))),
        "7x7 pixels": super_resolve(low, 4),
    }


def rows_of(constraint, num, at):
    """The constraint on the samples from `at` on, of those that it has data for."""
    return jax.tree.map(
        lambda leaf: leaf[at] if leaf.ndim == 4 and len(leaf) == num else leaf, constraint
    )


@partial(jax.jit, static_argnums=(1, 3, 7))
def edit_digits(key, apply_fn, params, scheduler, constraint, labels, first, method):
    """The edited digits of a batch, and what each level arrived at."""
    return edit(
        key,
        apply_fn,
        params,
        scheduler,
        constraint,
        (len(labels), 28, 28, 1),
        method=method,
        cond={"class_labels": labels},
        first_index=first,
        return_trajectory=True,
    )


def measure_digits(key, model, classifier, constraint, images, labels, method, batch):
    """Edits all digits; returns which are recognised, bool[N], and a row of figures."""
    num = len(labels)
    made, noise, seconds = [], [], []
    for start in range(0, num, batch):
        at = slice(start, start + batch)
        began = time.perf_counter()
        part = rows_of(constraint, num, at)
        network = (model.apply_fn, model.params, model.scheduler)
        found, steps = edit_digits(key, *network, part, labels[at], start, method)
        made.append(np.asarray(found))
        seconds.append(time.perf_counter() - began)
        if method == "posterior":
            noise.append(np.asarray(steps.noise))
    made = np.concatenate(made)
    recognised = evaluate(classifier, to_uint8(made))[0] == labels
    distance = np.sqrt(np.mean(np.square(made - images)))

    # The mean square of the noise: over all levels, and at the level where it is highest.
    levels = np.concatenate(noise, 1).mean(1) if noise else np.full(1, np.nan)
    row = (
        f"{np.mean(recognised):>10.1%}{distance:>8.3f}{levels.mean():>8.3f}"
        f"{levels.max():>9.3f}{min(seconds) / batch:>12.2f}"
    )
    return recognised, row


@main.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--num", default=500, show_default=True)
@click.option("--batch", default=50, show_default=True)
@click.option("--task", "tasks", multiple=True, help="One task or more; all if left out.")
@click.option("--seed", default=0, show_default=True, help="Of the edits.")
def digits(data, num, batch, tasks, seed):
    """Measure both methods on the first test digits of the MNIST file DATA."""
    with np.load(data) as arrays:
        classifier = train_classifier(
            arrays["x_train"][..., None], arrays["y_train"].astype(np.int32)
        )
        images = from_uint8(arrays["x_test"][:num, ..., None])
        labels = arrays["y_test"][:num].astype(np.int32)
    model = cmjax.load()
    click.echo(
        f"{'task':<12}{'method':<12}{'recognised':>10}{'rms':>8}{'noise':>8}{'highest':>9}"
        f"{'s an image':>12}"
    )
    constraints = digit_tasks(images)
    for task in tasks or constraints:
        recognised = {}
        for method in METHODS:
            recognised[method], row = measure_digits(
                jax.random.key(seed),
                model,
                classifier,
                constraints[task],
                images,
                labels,
                method,
                batch,
            )
            click.echo(f"{task:<12}{method:<12}{row}")

        # Both methods see the same digits, so only those matter that they differ in. If either is
        # as likely to be right there, the difference has the standard error sqrt(n) / N.
        gained = np.sum(recognised["posterior"] & ~recognised["projection"])
        lost = np.sum(recognised["projection"] & ~recognised["posterior"])
        click.echo(
            f"{task:<12}only posterior {gained}, only projection {lost}: difference "
            f"{(gained - lost) / num:+.1%}, standard error {np.sqrt(gained + lost) / num:.1%}"
        )


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--num", default=5, show_default=True)
def picture(out, num):
    """Draw NUM results of each method side by side into the file OUT."""
    model = cmjax.load()
    classes = np.array([7, 3, 8])
    given = np.asarray(model.sample(jax.random.key(6), len(classes), labels=classes))

    # Known are an upper half, a right half and an upper half.
    known = np.zeros((len(classes), 28, 28, 1), np.float32)
    known[::2, :14] = 1
    known[1, :, 14:] = 1
    labels = classes.repeat(num)
    constraint = inpaint(given.repeat(num, 0), known.repeat(num, 0))
    results = {}
    for method in METHODS:
        run = jax.jit(
            partial(
                edit,
                apply_fn=model.apply_fn,
                scheduler=model.scheduler,
                shape=(len(labels), 28, 28, 1),
                method=method,
            )
        )
        made = run(
            jax.random.key(0),
            params=model.params,
            constraint=constraint,
            cond={"class_labels": labels},
        )
        results[method] = np.asarray(made).reshape(len(classes), num, 28, 28, 1)

    # A row for each digit: what was given, what is known, and the results of both.
    left = np.stack([given, np.where(known == 1, given, 0)], 1)
    rows = np.concatenate([left, *results.values()], 1)
    tiles = to_uint8(rows.reshape(-1, 28, 28, 1))
    captions = ["given", "known", *["proj."] * num, *["post."] * num] * len(classes)
    save_grid(out, tiles, columns=rows.shape[1], labels=captions, scale=2)


if __name__ == "__main__":
    main()
