"""Does a search find better noise levels than the paper's for the digits in a few steps?

    python benchmarks/search_levels.py mnist.npz [--steps 2] [--trials 20] [--num 2000]

`cmjax.evaluation.search_sigmas` by the Fréchet distance between the features of samples and of
the MNIST test images (the classifier of benchmarks/digits_quality.py). The search uses one set of
noise; the levels of the scheduler and those that were found are then compared by other noise, on
five sets of as many samples. With `--state FILE` an interrupted search continues where it stopped.
"""

import json
import time
from functools import partial
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np
from digits_quality import evaluate, train_classifier

import cmjax
from cmjax.evaluation import as_gaussian, frechet_distance, search_sigmas
from cmjax.images import to_uint8
from cmjax.level_search import Trial

BATCH = 100
HELD_OUT = range(1, 6)  # seeds; that of the search is 0


def sampler(model, num):
    """Returns a function from levels and a seed to u8 images, all classes in turn."""
    labels = jnp.arange(num, dtype=jnp.int32) % model.num_classes

    @jax.jit
    def batch(params, sigmas, seed, labels, first):
        return cmjax.sample(
            jax.random.key(seed),
            model.apply_fn,
            params,
            model.scheduler,
            (BATCH, *model.sample_shape),
            sigmas=sigmas,
            cond={"class_labels": labels},
            first_index=first,
        )

    def samples(sigmas, seed):
        levels = jnp.asarray(sigmas, jnp.float32)
        parts = [
            to_uint8(batch(model.params, levels, seed, labels[i : i + BATCH], i))
            for i in range(0, num, BATCH)
        ]
        return np.concatenate(parts)

    return samples


def shown(sigmas):
    return ", ".join(f"{sigma:.3g}" for sigma in sigmas)


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--model", help="Folder or hub id; the bundled digits if left out.")
@click.option("--steps", default=2, show_default=True)
@click.option("--trials", default=20, show_default=True)
@click.option("--num", default=2000, show_default=True, help="A multiple of 100.")
@click.option("--state", type=click.Path(path_type=Path), help="Where to keep trials.")
def main(data, model, steps, trials, num, state):
    """Search levels for a digits model, judged against the MNIST file DATA."""
    with np.load(data) as arrays:
        train = arrays["x_train"][..., None]
        train_labels = arrays["y_train"].astype(np.int32)
        test = arrays["x_test"][..., None]
    model = cmjax.load(model)
    classifier = train_classifier(train, train_labels)
    reference = as_gaussian(evaluate(classifier, test)[1], "test images")
    samples = sampler(model, num)

    def distance(sigmas, seed):
        return frechet_distance(evaluate(classifier, samples(sigmas, seed))[1], reference)

    # The trials so far, which are written after each one.
    made = []
    if state is not None and state.exists():
        made = [
            Trial(tuple(sigmas), score) for sigmas, score in json.loads(state.read_text())
        ]

    def objective(sigmas):
        score = distance(sigmas, 0)
        click.echo(f"  {shown(sigmas):<24}{score:10.3f}")
        made.append(Trial(sigmas, score))
        if state is not None:
            state.write_text(json.dumps(made))
        return score

    start = tuple(np.asarray(model.scheduler.set_timesteps(steps).sigmas[:-1]).tolist())
    lowest = model.scheduler.sigma_range[0]
    clock = time.perf_counter()
    click.echo(f"search by {num} samples:")
    search = partial(search_sigmas, objective, start, lowest=lowest, num_trials=trials)
    found = search(trials=tuple(made))
    seconds = time.perf_counter() - clock
    click.echo(f"{len(found.trials)} trials, {seconds:.0f} s\n")

    click.echo(f"held-out noise, {len(HELD_OUT)} sets of {num} samples:")
    for name, sigmas in (("scheduler", start), ("found", found.sigmas)):
        distances = [distance(sigmas, seed) for seed in HELD_OUT]
        error = np.std(distances, ddof=1) / len(distances) ** 0.5
        click.echo(
            f"  {name:<10}{shown(sigmas):<24}{np.mean(distances):8.3f} +- {error:.3f}"
        )


if __name__ == "__main__":
    main()
