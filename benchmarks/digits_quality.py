"""How good are the digits? Accuracy of the class asked for, and Fréchet distance.

    python benchmarks/digits_quality.py mnist.npz [--model FOLDER] [--guidance SCALE]

Trains a small convolutional classifier on the training set (it has never seen a generated digit,
and shares nothing with the generator), then prints for each number of steps

* the share of samples that it recognises as the class that was asked for;
* the share of samples with a speck: at most six touching pixels brighter than 60 of 255, apart from
  a larger spot;
* the Fréchet distance between Gaussian fits to its 128 features of the samples and of the 10,000
  test images, absolute and as a share of the distance of pure noise (standard normal, clipped to
  [-1, 1]).

The reference row is 10,000 training images. Everything is seeded; numbers repeat on the same
machine.
"""

from functools import partial
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy import ndimage
from tqdm import tqdm

import cmjax
from cmjax.evaluation import frechet_distance
from cmjax.images import from_uint8, to_uint8
from cmjax.models import from_nnx, layers, resampling


class Classifier(nnx.Module):
    """Three convolutions and two dense layers; returns (logits, features)."""

    def __init__(self, rngs):
        self.conv1 = layers.conv(4, 32, rngs=rngs)
        self.conv2 = layers.conv(32, 64, rngs=rngs)
        self.conv3 = layers.conv(64, 64, rngs=rngs)
        self.hidden = layers.linear(7 * 7 * 64, 128, rngs=rngs)
        self.logits = layers.linear(128, 10, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.conv1(resampling.space_to_depth(x, 2)))
        x = nnx.max_pool(jax.nn.relu(self.conv2(x)), (2, 2), (2, 2))
        x = jax.nn.relu(self.conv3(x))
        features = jax.nn.relu(self.hidden(x.reshape(len(x), -1)))
        return self.logits(features), features


def batch_indices(seed, step, batch_size, count):
    """Returns the rows of a step, a function of seed and step: epochs without replacement."""
    epoch, position = divmod(step, count // batch_size)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return order[position * batch_size : (position + 1) * batch_size]


def train_classifier(images, labels, epochs=3, batch_size=128, seed=1):
    """Returns a jitted `images f32 -> (logits, features)`."""
    apply_fn, params = from_nnx(Classifier(nnx.Rngs(seed)))
    steps = epochs * (len(images) // batch_size)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, x, y):
        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(
                apply_fn(params, x)[0], y
            ).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    for i in tqdm(range(steps), desc="classifier", leave=False):
        index = batch_indices(seed, i, batch_size, len(images))
        params, opt_state = step(
            params, opt_state, from_uint8(images[index]), labels[index]
        )
    return jax.jit(partial(apply_fn, params))


def evaluate(classifier, images, batch_size=500):
    """Returns (predicted classes i64[N], features f64[N, 128]) of u8 images."""
    parts = [
        classifier(from_uint8(images[i : i + batch_size]))
        for i in range(0, len(images), batch_size)
    ]
    logits, features = (np.concatenate(x) for x in zip(*parts, strict=True))
    return logits.argmax(-1), features.astype(np.float64)


def has_speck(image, brightness=60, size=6):
    """Whether an image u8[H, W] has a small spot apart from a larger one."""
    spots, count = ndimage.label(image > brightness, structure=np.ones((3, 3)))
    sizes = np.bincount(spots.ravel())[1:]
    return count > 1 and sizes.min() <= size < sizes.max()


def generate(model, labels, steps, guidance=None, batch_size=100, seed=0):
    """Returns u8 images of the labels, made in `steps` steps each."""
    apply_fn = model.guided(guidance)

    @jax.jit
    def batch(params, labels, first):
        return cmjax.sample(
            jax.random.key(seed),
            apply_fn,
            params,
            model.scheduler,
            (batch_size, *model.sample_shape),
            num_inference_steps=steps,
            cond={"class_labels": labels},
            first_index=first,
        )

    starts = tqdm(range(0, len(labels), batch_size), desc=f"{steps} steps", leave=False)
    return np.concatenate(
        [to_uint8(batch(model.params, labels[i : i + batch_size], i)) for i in starts]
    )


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--model", help="Folder or hub id; the bundled digits if left out.")
@click.option("--num", default=10_000, show_default=True)
@click.option("--steps", default="1,2,4", show_default=True)
@click.option("--guidance", type=float, help="Scale of guidance; the model's if left out.")
def main(data, model, num, steps, guidance):
    """Measure a digits model against the MNIST file DATA."""
    with np.load(data) as arrays:
        train, train_labels = (
            arrays["x_train"][..., None],
            arrays["y_train"].astype(np.int32),
        )
        test, test_labels = arrays["x_test"][..., None], arrays["y_test"].astype(np.int32)
    model = cmjax.load(model)
    classifier = train_classifier(train, train_labels)
    predicted, reference = evaluate(classifier, test)
    click.echo(f"classifier: {np.mean(predicted == test_labels):.2%} on the test set\n")

    noise = to_uint8(jax.random.normal(jax.random.key(0), (num, *model.sample_shape)))
    noise_distance = frechet_distance(evaluate(classifier, noise)[1], reference)
    click.echo(
        f"{'samples':<18}{'accuracy':>10}{'specks':>10}{'Fréchet':>12}{'of noise':>10}"
    )

    def row(name, images, labels):
        predicted, features = evaluate(classifier, images)
        distance = frechet_distance(features, reference)
        accuracy = "" if labels is None else f"{np.mean(predicted == labels):.2%}"
        specks = np.mean([has_speck(image[..., 0]) for image in images])
        share = distance / noise_distance
        click.echo(
            f"{name:<18}{accuracy:>10}{specks:>10.2%}{distance:>12.3f}{share:>10.2%}"
        )

    row("noise", noise, None)
    pick = np.random.default_rng(0).permutation(len(train))[:10_000]
    row("training images", train[pick], train_labels[pick])
    labels = jnp.arange(num, dtype=jnp.int32) % model.num_classes
    for n in map(int, steps.split(",")):
        images = generate(model, labels, n, guidance)
        row(f"{n} step{'s' * (n > 1)}", images, np.asarray(labels))


if __name__ == "__main__":
    main()
