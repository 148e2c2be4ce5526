"""How the bundled digits got crisp: a judge learns to tell one-step samples from data, and the network to deceive it.

    python examples/adversarial_digits.py mnist.npz --out runs/finished

It is a training run of one's own: two networks in one state, their learning rates, a loss of `cmjax.training`. Ctrl-C
saves; the same command goes on. `runs/finished/model` is for `cmjax sample --model`.
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
from cmjax.models import from_nnx, layers
from cmjax.training import data, losses, trainer
from cmjax.training.checkpointing import Checkpoints

BATCH_SIZE = 64


class Judge(nnx.Module):
    """`(x f32[B, 28, 28, 1], class_labels i32[B]) -> f32[B]`: a small convolutional network, told the class."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1, self.conv2 = layers.conv(4, 64, rngs=rngs), layers.conv(64, 64, rngs=rngs)
        self.conv3, self.conv4 = layers.conv(256, 128, rngs=rngs), layers.conv(128, 128, rngs=rngs)
        self.hidden, self.out = (
            layers.linear(7 * 7 * 128, 128, rngs=rngs),
            layers.linear(128, 1, rngs=rngs),
        )
        self.of_class = nnx.Embed(10, 128, rngs=rngs)

    def __call__(self, x: jax.Array, class_labels: jax.Array) -> jax.Array:
        """Higher for data; the class enters by a projection (Miyato and Koyama 2018, arXiv 1802.05637)."""
        act = partial(jax.nn.leaky_relu, negative_slope=0.2)
        x = act(self.conv1(layers.space_to_depth(x, 2)))
        x = x + act(self.conv2(x))
        x = act(self.conv3(layers.space_to_depth(x, 2)))
        x = x + act(self.conv4(x))
        x = act(self.hidden(x.reshape(len(x), -1)))
        return self.out(x)[:, 0] + jnp.sum(x * self.of_class(class_labels), axis=-1)


def training_only(apply_fn, parts):
    """The same network with no gradient outside `parts`, names such as "up_blocks" or "up_blocks/1"."""

    def hold(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return (
            leaf
            if any(f"{name}/".startswith(f"{part}/") for part in parts)
            else jax.lax.stop_gradient(leaf)
        )

    return lambda params, *args, **cond: apply_fn(
        jax.tree_util.tree_map_with_path(hold, params), *args, **cond
    )


@click.command(help=__doc__.split("\n")[0])
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--init", help="Model to begin with; the bundled digits if left out.")
@click.option("--steps", default=2000, show_default=True, help=f"By {BATCH_SIZE} images.")
@click.option(
    "--parts",
    default="mid_block,up_blocks,conv_norm_out,conv_out",
    show_default=True,
    help="To train.",
)
@click.option("--learning-rate", default=1e-4, show_default=True)
@click.option("--judge-learning-rate", default=4e-4, show_default=True)
@click.option("--penalty", default=0.02, show_default=True, help="Of the judge's slope.")
@click.option("--save-every", default=200, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    source, out, init, steps, parts, learning_rate, judge_learning_rate, penalty, save_every, seed
):
    model = cmjax.load(init, dtype=jnp.float32)
    judge_fn, judge = from_nnx(Judge(nnx.Rngs(seed)))
    falling = optax.warmup_cosine_decay_schedule(
        0, learning_rate, min(100, steps // 2), steps, learning_rate / 20
    )
    optimizers = {
        "network": optax.adam(falling, b1=0.5, b2=0.99),
        "judge": optax.adam(judge_learning_rate, b1=0.0, b2=0.99),
    }
    train_step = trainer.make_train_step(
        losses.adversarial_loss(judge_fn, penalty=penalty),
        training_only(model.apply_fn, parts.split(",")),
        optax.multi_transform(optimizers, losses.Judged("network", "judge")),
        losses.LossConfig(model.scheduler, total_steps=steps),
        ema_decays=(0.995,),
    )
    with Checkpoints(out) as checkpoints, interruptible() as interrupted:
        state = checkpoints.restore(
            train_step.init(jax.random.key(seed), losses.Judged(model.params, judge))
        )
        done = int(state.step)
        images = data.open_source(source, *model.sample_shape[1:])
        batches = data.batches(
            images, BATCH_SIZE, seed=seed, start=done, num_classes=model.num_classes
        )
        bar = tqdm(range(done + 1, steps + 1), initial=done, total=steps, unit="step")
        for step in bar:
            batch = next(batches)
            state, metrics = train_step(
                state, {name: batch[name] for name in ("data", "class_labels")}
            )
            if step % 20 == 0:
                bar.set_postfix({name: f"{float(value):.3g}" for name, value in metrics.items()})
            if step % save_every == 0 or step == steps or interrupted:
                checkpoints.save(state)
                finished = dataclasses.replace(model, params=jax.device_get(state.ema[0].network))
                cmjax.save(out / "model", finished)
            if interrupted:
                break
    click.echo(f"Step {int(state.step)} of {steps}: {out / 'model'}")


if __name__ == "__main__":
    main()
