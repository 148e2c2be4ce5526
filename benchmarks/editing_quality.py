"""Is an edited digit still the digit? An independent classifier on 500 edited test digits.

    python benchmarks/editing_quality.py mnist.npz [--model FOLDER]

For each task the first 500 test digits lose most of their pixels, and the model, given the class,
fills them in. The accuracy of the classifier of `digits_quality.py` is printed for the digits as
they were, for what was left, for the results, and for as many plain samples of the same classes,
since an edited picture can be no better than what the model samples.
"""

from functools import partial
from pathlib import Path

import click
import jax
import numpy as np
from digits_quality import evaluate, train_classifier

import cmjax
from cmjax import editing
from cmjax.generation import Request, generate
from cmjax.images import from_uint8, to_uint8


def erase_lower_half(images):
    """Returns the constraint, and what is left of the images."""
    known = np.zeros((*images.shape[1:3], 1), np.float32)
    known[: len(known) // 2] = 1
    return editing.inpaint(images, known), np.where(known == 1, images, -1)


def reduce_to_7x7(images):
    low = images.reshape(len(images), 7, 4, 7, 4, 1).mean((2, 4))
    return editing.super_resolve(low, 4), low.repeat(4, 1).repeat(4, 2)


TASKS = {"inpainting, lower half": erase_lower_half, "super-resolution, 7x7": reduce_to_7x7}


@partial(jax.jit, static_argnums=(0, 2, 4))
def edit(apply_fn, params, scheduler, constraint, steps, labels):
    levels = {"num_inference_steps": steps} if steps else {}
    shape = (len(labels), 28, 28, 1)
    key = jax.random.key(0)
    return editing.edit(
        key,
        apply_fn,
        params,
        scheduler,
        constraint,
        shape,
        cond={"class_labels": labels},
        **levels,
    )


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--model", help="Folder or hub id; the bundled digits if left out.")
@click.option("--num", default=500, show_default=True)
def main(data, model, num):
    """Measure editing of the first test digits in the MNIST file DATA."""
    with np.load(data) as arrays:
        classifier = train_classifier(
            arrays["x_train"][..., None], arrays["y_train"].astype(np.int32)
        )
        pixels = arrays["x_test"][:num, ..., None]
        labels = arrays["y_test"][:num].astype(np.int32)
    model = cmjax.load(model)
    images = from_uint8(pixels)

    def accuracy(pixels):
        return float(np.mean(evaluate(classifier, pixels)[0] == labels))

    click.echo(f"{num} test digits: {accuracy(pixels):.1%} recognised")
    requests = [Request(num_inference_steps=steps, labels=labels) for steps in (1, 2)]
    plain = [generate(model, request, num, batch_size=100).images for request in requests]
    click.echo(
        f"plain samples of the same classes: one step {accuracy(plain[0]):.1%}, "
        f"two steps {accuracy(plain[1]):.1%}"
    )
    for name, task in TASKS.items():
        constraint, left = task(images)
        click.echo(f"{name}: {accuracy(to_uint8(left)):.1%} recognised in what was left")
        for steps in (2, 8, None):
            made = edit(
                model.apply_fn, model.params, model.scheduler, constraint, steps, labels
            )
            calls = f"{steps} calls" if steps else "all levels"
            click.echo(f"  edited in {calls}: {accuracy(to_uint8(made)):.1%}")


if __name__ == "__main__":
    main()
