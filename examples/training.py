"""The training loop that the `train_*` scripts share: resumable, with pictures on the way."""

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
from cmjax.images import from_uint8, save_grid, to_uint8
from cmjax.models import UNet2D, from_nnx
from cmjax.parametrization import guided
from cmjax.training import data, discretization, losses, trainer

LOSSES = {
    "denoising": losses.denoising_loss,
    "consistency": losses.consistency_training_loss,
    "easy": losses.easy_consistency_loss,
    "distillation": losses.consistency_distillation_loss,
}
SCHEDULER = cmjax.CMStochasticIterativeScheduler()
FOLDER = click.Path(path_type=Path)
OPTIONS = [
    click.argument("source", type=click.Path(exists=True, path_type=Path)),
    click.option("--out", type=FOLDER, required=True, help="Folder of checkpoints, pictures, model."),
    click.option("--loss", type=click.Choice(list(LOSSES)), default="denoising", show_default=True),
    click.option("--init", help="Model to start from."),
    click.option("--teacher", help="distillation: denoiser to learn from.  [default: the model to start from]"),
    click.option("--weak-teacher", help="distillation: a worse denoiser, to guide the teacher away from."),
    click.option("--guidance", default=2.0, show_default=True, help="How far, with --weak-teacher; 1 is not at all."),
    click.option("--steps", default=2500, show_default=True),
    click.option("--batch-size", default=64, show_default=True),
    click.option("--learning-rate", default=1e-3, show_default=True),
    click.option("--seed", default=0, show_default=True),
    click.option("--save-every", default=250, show_default=True),
    click.option("--uniform-fraction", default=0.5, show_default=True, help="Share of levels uniform on the grid."),
    click.option("--p-mean", default=-1.2, show_default=True, help="Mean of log sigma for the other levels."),
    click.option("--p-std", default=1.2, show_default=True, help="And its standard deviation."),
    click.option("--stages", default=5.0, show_default=True, help="easy: halvings of the gap 1 - r/t over the run."),
    click.option("--scales", default=18, show_default=True, help="consistency, distillation: levels at the end."),
    click.option("--target-decay", default=0.95, show_default=True, help="distillation: of the target's average."),
    click.option("--huber-c", default=0.03, show_default=True, help="Below this error a pixel, it is quadratic."),
]


def command(network):
    """The command line of a script that trains `network`, a `UNet2DConfig`."""

    @click.command(help="Train on SOURCE; see the top of this file.")
    def main(**options):
        train(network, **options)

    for option in reversed(OPTIONS):
        main = option(main)
    return main


def train(
    network,
    source,
    out,
    loss,
    init,
    teacher,
    weak_teacher,
    guidance,
    steps,
    batch_size,
    learning_rate,
    seed,
    save_every,
    target_decay,
    scales,
    **levels,
):
    images, labels = data.load_images(source, network.sample_size)
    apply_fn, params = from_nnx(UNet2D(network, rngs=nnx.Rngs(seed)))
    if init:
        params = cmjax.load(init).params
    teachers = None
    if loss == "distillation":
        teachers = cmjax.load(teacher).params if teacher else jax.tree.map(jnp.copy, params)
    if weak_teacher:
        teachers = (teachers, cmjax.load(weak_teacher).params)
    teacher_fn = guided(apply_fn, guidance) if weak_teacher else None
    config = losses.LossConfig(SCHEDULER, steps, s1=scales, teacher_fn=teacher_fn, **levels)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(100, steps // 10), steps)),
    )
    decays = {"consistency": partial(ema_decay, config=config), "distillation": lambda step: jnp.float32(target_decay)}
    train_step = trainer.make_train_step(
        LOSSES[loss], apply_fn, optimizer, config, target_decay=decays.get(loss), teacher=teachers
    )
    state = trainer.TrainState.create(jax.random.key(seed), params, optimizer, with_target=loss in decays)
    state = trainer.restore(out, state)

    done = int(state.step)
    with tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True, mininterval=5) as bar:
        for step in range(done, steps):
            index = data.batch_indices(seed, step, batch_size, len(images))
            batch = {"data": from_uint8(images[index])}
            if network.num_class_embeds:
                batch["class_labels"] = labels[index]
            state, metrics = train_step(state, batch)
            bar.update()
            if (step + 1) % 50 == 0:
                bar.set_postfix({name: f"{float(value):.4g}" for name, value in metrics.items()})
            if (step + 1) % save_every == 0 or step + 1 == steps:
                model = cmjax.Model(apply_fn, state.ema, SCHEDULER, network)
                trainer.save(out, state)
                picture(model, out / f"samples_{step + 1:06d}.png")
                cmjax.save(out / "model", model)
    click.echo(f"model in {out / 'model'}: cmjax sample --model {out / 'model'}")


def ema_decay(step, config):
    """Decay of consistency training's target, mu(k)."""
    scales = discretization.consistency_num_scales(step, config.total_steps, config.s0, config.s1)
    return discretization.consistency_ema_decay(scales, config.s0)


def picture(model, path):
    """Rows of samples made in 1, 2 and 4 network calls from the same noise."""
    classes = model.num_classes
    cond = {"class_labels": jnp.arange(10) % classes} if classes else {}
    shape = (10, *model.sample_shape)
    rows = [
        cmjax.sample(
            jax.random.key(0), model.apply_fn, model.params, SCHEDULER, shape, num_inference_steps=n, cond=cond
        )
        for n in (1, 2, 4)
    ]
    save_grid(path, to_uint8(np.concatenate(rows)), columns=10)
