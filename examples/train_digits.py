r"""Train a class-conditional consistency model of 28x28 digits, as the bundled one was.

    python examples/train_digits.py mnist.npz --out runs/denoiser --loss denoising --steps 5000
    python examples/train_digits.py mnist.npz --out runs/digits --loss distillation --init runs/denoiser/model \
        --steps 1700 --learning-rate 3e-4 --scales 12 --target-decay 0.98

The first command trains a denoiser (EDM), the second distils it into a consistency model; `--loss easy`
tunes it into one on the data alone (ECT), and `--loss consistency` needs no denoiser. A trained denoiser
is in `examples/assets/digits_denoiser`. Interrupt any of them and run it again: it goes on from its last
checkpoint. The data is an .npz with `x_train` and
`y_train` (or `images` and `labels`), or an IDX image file with its label file beside it.
"""

from functools import partial
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

import cmjax
from cmjax.images import save_grid, to_uint8
from cmjax.models import UNet2D, UNet2DConfig, from_nnx
from cmjax.training import data, discretization, losses, trainer

LOSSES = {
    "denoising": losses.denoising_loss,
    "consistency": losses.consistency_training_loss,
    "easy": losses.easy_consistency_loss,
    "distillation": losses.consistency_distillation_loss,
}
NETWORK = UNet2DConfig(
    sample_size=28,
    in_channels=1,
    out_channels=1,
    block_out_channels=(64, 96),
    norm_num_groups=16,
    patch_size=2,
    time_scale=0.01,
    num_class_embeds=10,
)
SCHEDULER = cmjax.CMStochasticIterativeScheduler()


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of checkpoints, pictures, model.")
@click.option("--loss", type=click.Choice(list(LOSSES)), default="denoising", show_default=True)
@click.option("--init", help="Model to start from; for distillation also the teacher.")
@click.option("--steps", default=2500, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--learning-rate", default=1e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--save-every", default=250, show_default=True)
@click.option("--uniform-fraction", default=0.5, show_default=True, help="Share of levels uniform on the Karras grid.")
@click.option("--p-mean", default=-1.2, show_default=True, help="Mean of log sigma for the other levels.")
@click.option("--p-std", default=1.2, show_default=True, help="And its standard deviation.")
@click.option("--stages", default=5.0, show_default=True, help="easy: halvings of the gap 1 - r/t over the run.")
@click.option(
    "--scales", default=18, show_default=True, help="consistency, distillation: levels at the end of the run."
)
@click.option("--target-decay", default=0.95, show_default=True, help="distillation: average the loss compares with.")
@click.option("--huber-c", default=0.03, show_default=True, help="Below this error a pixel, the metric is quadratic.")
def main(source, out, loss, init, steps, batch_size, learning_rate, seed, save_every, **loss_options):
    """Train on SOURCE; see the top of this file."""
    images, labels = data.load_images(source)
    config = losses.LossConfig(
        SCHEDULER,
        steps,
        uniform_fraction=loss_options["uniform_fraction"],
        p_mean=loss_options["p_mean"],
        p_std=loss_options["p_std"],
        stages=loss_options["stages"],
        s1=loss_options["scales"],
        huber_c=loss_options["huber_c"],
    )
    apply_fn, params = from_nnx(UNet2D(NETWORK, rngs=nnx.Rngs(seed)))
    if init:
        params = cmjax.load(init).params
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(100, steps // 10), steps)),
    )
    target_decays = {
        "consistency": partial(ema_decay, config=config),
        "distillation": lambda step: jnp.float32(loss_options["target_decay"]),
    }
    train_step = trainer.make_train_step(
        LOSSES[loss],
        apply_fn,
        optimizer,
        config,
        target_decay=target_decays.get(loss),
        teacher=jax.tree.map(jnp.copy, params) if loss == "distillation" else None,
    )
    state = trainer.TrainState.create(jax.random.key(seed), params, optimizer, with_target=loss in target_decays)
    state = trainer.restore(out, state)

    done = int(state.step)
    with tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True, mininterval=5) as bar:
        for step in range(done, steps):
            index = data.batch_indices(seed, step, batch_size, len(images))
            batch = {"data": data.to_float(images[index]), "class_labels": labels[index]}
            state, metrics = train_step(state, batch)
            bar.update()
            if (step + 1) % 50 == 0:
                bar.set_postfix({name: f"{float(value):.4g}" for name, value in metrics.items()})
            if (step + 1) % save_every == 0 or step + 1 == steps:
                trainer.save(out, state)
                picture(apply_fn, state.ema, out / f"samples_{step + 1:06d}.png")
                cmjax.save(out / "model", cmjax.Model(apply_fn, state.ema, SCHEDULER, NETWORK))
    click.echo(f"model in {out / 'model'}: cmjax sample --model {out / 'model'}")


def ema_decay(step, config):
    """Decay of consistency training's target, mu(k)."""
    scales = discretization.consistency_num_scales(step, config.total_steps, config.s0, config.s1)
    return discretization.consistency_ema_decay(scales, config.s0)


def picture(apply_fn, params, path):
    """Rows of digits made in 1, 2 and 4 network calls from the same noise."""
    labels = jnp.arange(10)
    rows = [
        cmjax.sample(
            jax.random.key(0),
            apply_fn,
            params,
            SCHEDULER,
            (10, 28, 28, 1),
            num_inference_steps=n,
            cond={"class_labels": labels},
        )
        for n in (1, 2, 4)
    ]
    save_grid(path, to_uint8(np.concatenate(rows)), columns=10)


if __name__ == "__main__":
    main()
