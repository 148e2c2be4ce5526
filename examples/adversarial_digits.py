"""Adversarial training of the bundled digits: a discriminator tells one-step samples from data.

    python examples/adversarial_digits.py mnist.npz --out runs/finished

It shows how to write a training run of your own: a loss of `cmjax.training`, two networks in one
training state, each with its own learning rate, and checkpoints. Ctrl-C saves the run, and the same
command resumes it. `cmjax sample --model runs/finished/model` draws samples.
"""

import dataclasses
from functools import partial
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from tqdm import tqdm

import cmjax
from cmjax.interrupts import interruptible
from cmjax.models import from_nnx, layers, resampling
from cmjax.training import data, losses, sources, trainer
from cmjax.training.checkpointing import Checkpoints

BATCH_SIZE = 64


class Discriminator(nnx.Module):
    """`(x f32[B, 28, 28, 1], class_labels i32[B]) -> f32[B]`: a small convolutional network."""

    def __init__(self, rngs: nnx.Rngs):
        # `space_to_depth` halves the size: 28x28x1 to 14x14x4, and then 14x14x64 to 7x7x256.
        self.conv1 = layers.conv(4, 64, rngs=rngs)
        self.conv2 = layers.conv(64, 64, rngs=rngs)
        self.conv3 = layers.conv(256, 128, rngs=rngs)
        self.conv4 = layers.conv(128, 128, rngs=rngs)
        self.hidden = layers.linear(7 * 7 * 128, 128, rngs=rngs)
        self.out = layers.linear(128, 1, rngs=rngs)
        self.embedding = nnx.Embed(10, 128, rngs=rngs)

    def __call__(self, x: jax.Array, class_labels: jax.Array) -> jax.Array:
        """Returns scores, higher for data; conditioned on the class by projection.

        The projection discriminator of Miyato and Koyama 2018, arXiv 1802.05637.
        """
        # Features f32[B, 128]. There is no normalization: with batch statistics, a score would
        # depend on other samples, which the gradient penalty does not allow.
        activation = partial(jax.nn.leaky_relu, negative_slope=0.2)
        x = activation(self.conv1(resampling.space_to_depth(x, 2)))
        x = x + activation(self.conv2(x))
        x = activation(self.conv3(resampling.space_to_depth(x, 2)))
        x = x + activation(self.conv4(x))
        x = activation(self.hidden(x.reshape(len(x), -1)))

        # How well the features fit the class, in addition to how real they look.
        projection = jnp.sum(x * self.embedding(class_labels), axis=-1)
        return self.out(x)[:, 0] + projection


def train_only(apply_fn, parts):
    """Returns the network with gradients for `parts` only, such as "up_blocks" or "up_blocks/1"."""

    # The slash at both ends keeps "up_blocks/1" from also matching "up_blocks/10".
    def freeze(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        is_trained = any(f"{name}/".startswith(f"{part}/") for part in parts)
        return leaf if is_trained else jax.lax.stop_gradient(leaf)

    def partly_frozen(params, *args, **cond):
        return apply_fn(jax.tree_util.tree_map_with_path(freeze, params), *args, **cond)

    return partly_frozen


def make_optimizer(learning_rate, discriminator_learning_rate, steps):
    """Returns Adam for both networks; the model's learning rate decays to a twentieth."""
    # With little momentum, as is usual for networks that train against each other.
    schedule = optax.warmup_cosine_decay_schedule(
        0, learning_rate, min(100, steps // 2), steps, learning_rate / 20
    )
    optimizers = {
        "network": optax.adam(schedule, b1=0.5, b2=0.99),
        "discriminator": optax.adam(discriminator_learning_rate, b1=0.0, b2=0.99),
    }

    # Labels in the form of the parameters: a pair, each half with an optimizer of its own.
    labels = losses.AdversarialParams("network", "discriminator")
    return optax.multi_transform(optimizers, labels)


@click.command(help=__doc__.split("\n")[0])
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the run."
)
@click.option("--init", help="Model to start from; the bundled digits if left out.")
@click.option(
    "--steps",
    default=2000,
    show_default=True,
    help=f"Training steps of {BATCH_SIZE} images.",
)
@click.option(
    "--parts",
    default="mid_block,up_blocks,conv_norm_out,conv_out",
    show_default=True,
    help="Parts of the model to train.",
)
@click.option("--learning-rate", default=1e-4, show_default=True)
@click.option("--discriminator-learning-rate", default=4e-4, show_default=True)
@click.option("--gradient-penalty", default=0.02, show_default=True, help="Weight of R1.")
@click.option("--save-every", default=200, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    source,
    out,
    init,
    steps,
    parts,
    learning_rate,
    discriminator_learning_rate,
    gradient_penalty,
    save_every,
    seed,
):
    # In float32: the model may be stored in less, and training needs all of it.
    model = cmjax.load(init, dtype=jnp.float32)
    discriminator_fn, discriminator = from_nnx(Discriminator(nnx.Rngs(seed)))

    # By default the bottleneck and what follows it are trained: what the layers before have learned
    # of shapes stays.
    loss = losses.Adversarial(
        model.scheduler, discriminator_fn, gradient_penalty=gradient_penalty
    )
    train_step = trainer.make_train_step(
        loss,
        train_only(model.apply_fn, parts.split(",")),
        make_optimizer(learning_rate, discriminator_learning_rate, steps),
        ema_decays=(0.995,),
    )

    # The state of step 0, or that of the newest checkpoint; its step says which batch is next.
    params = losses.AdversarialParams(model.params, discriminator)
    with Checkpoints(out) as checkpoints, interruptible() as interrupted:
        state = checkpoints.restore(train_step.init(jax.random.key(seed), params))
        first = int(state.step)
        images = sources.open_source(source, *model.sample_shape[1:])
        batches = data.batches(
            images, BATCH_SIZE, seed=seed, start=first, num_classes=model.num_classes
        )
        bar = tqdm(range(first + 1, steps + 1), initial=first, total=steps, unit="step")
        for step in bar:
            batch = next(batches)
            state, metrics = train_step(
                state, {name: batch[name] for name in ("data", "class_labels")}
            )

            # Not at every step, as reading metrics waits for the device.
            if step % 20 == 0:
                bar.set_postfix(
                    {name: f"{float(value):.3g}" for name, value in metrics.items()}
                )

            # The moving average is the better model, so it is what is saved for sampling.
            if step % save_every == 0 or step == steps or interrupted:
                checkpoints.save(state)
                trained = jax.device_get(loss.network_params(state.ema[0]))
                cmjax.save(out / "model", dataclasses.replace(model, params=trained))
            if interrupted:
                break
    click.echo(f"Step {int(state.step)} of {steps}: {out / 'model'}")


if __name__ == "__main__":
    main()
