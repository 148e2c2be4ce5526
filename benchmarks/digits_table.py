"""Every way to make a consistency model, on MNIST, at one budget: a table of quality and of time.

    python benchmarks/digits_table.py mnist.npz --out runs/table [--steps 600]

Every student starts from the denoiser in `examples/assets/digits_denoiser`, which is also the
teacher of the distillations, and gets the same number of steps by 64 images and the same optimizer;
what else differs is in STUDENTS and LEARNING_RATES. Measured as in
`digits_quality.py`: share of 10,000 samples that a classifier recognises as the class asked for and
the Fréchet distance of its features to the test images'. Run it again after an interruption:
finished students are not trained again, the others resume from their last checkpoint.
"""

import json
import time
from pathlib import Path

import click
import digits_quality
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import cmjax
from cmjax.images import from_uint8
from cmjax.parametrization import adapt, edm_denoiser
from cmjax.schedulers import EDMHeunScheduler
from cmjax.training import losses, trainer
from cmjax.training.checkpointing import Checkpoints

DENOISER = Path(__file__).parents[1] / "examples/assets/digits_denoiser"
SCHEDULER = cmjax.CMStochasticIterativeScheduler()
STUDENTS = {  # what differs from the papers' settings, which are for 800,000 steps on CIFAR-10
    "cd": {"num_levels": 12, "target_decay": 0.95, "huber_c": 0.03},
    "ct": {"initial_levels": 10, "final_levels": 40, "huber_c": 0.03},
    "ict": {"initial_intervals": 10, "final_intervals": 40, "huber_c": 0.03},
    "ect": {"num_stages": 5.0, "uniform_fraction": 0.5, "huber_c": 0.03},
    "scd": {"tangent_warmup_steps": 100},
    "sct": {"tangent_warmup_steps": 100},
}
BATCH_SIZE = 64
LEARNING_RATE = 3e-4
LEARNING_RATES = {"scd": 5e-5, "sct": 5e-5}  # tangents have length 1 at every step


def train(name, teacher, images, labels, steps, folder):
    """Returns a student's parameters (a moving average), and seconds per 1,000 training images."""
    loss = losses.make(name, SCHEDULER, total_steps=steps, **STUDENTS[name])
    rate = LEARNING_RATES.get(name, LEARNING_RATE)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 10, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    step = trainer.make_train_step(
        loss,
        teacher.apply_fn,
        optimizer,
        ema_decays=(0.99,),
        teacher=teacher.params if loss.needs_teacher else None,
    )
    timing = folder / "seconds.json"
    with Checkpoints(folder) as checkpoints:
        state = checkpoints.restore(step.init(jax.random.key(0), teacher.params))
        durations = json.loads(timing.read_text()) if timing.exists() else []
        for i in tqdm(range(int(state.step), steps), desc=name, mininterval=5):
            start = time.perf_counter()
            index = digits_quality.batch_indices(0, i, BATCH_SIZE, len(images))
            state, metrics = step(
                state, {"data": from_uint8(images[index]), "class_labels": labels[index]}
            )
            if not np.isfinite(metrics["loss"]):
                raise SystemExit(f"{name}: the loss of step {i} is {metrics['loss']}")
            durations.append(time.perf_counter() - start)
            if (i + 1) % 100 == 0 or i + 1 == steps:
                checkpoints.save(state)
                checkpoints.wait()
                timing.write_text(json.dumps(durations))
    seconds = float(np.median(durations)) / BATCH_SIZE * 1000
    return loss.network_params(state.ema[0]), seconds


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder of checkpoints."
)
@click.option(
    "--steps", default=600, show_default=True, help="Of every student, by 64 images."
)
@click.option("--num", default=10_000, show_default=True, help="Samples to judge by.")
@click.option("--only", help="Names of students, separated by commas.")
def main(data, out, steps, num, only):
    """Train the students on the MNIST file DATA, and print a table."""
    with np.load(data) as arrays:
        images, labels = arrays["x_train"][..., None], arrays["y_train"].astype(np.int32)
        test = arrays["x_test"][..., None]
    teacher = cmjax.load(DENOISER, dtype=jnp.float32)
    names = only.split(",") if only else list(STUDENTS)
    trained = {
        name: train(name, teacher, images, labels, steps, out / name) for name in names
    }

    classifier = digits_quality.train_classifier(images, labels)
    reference = digits_quality.evaluate(classifier, test)[1]
    wanted = jnp.arange(num, dtype=jnp.int32) % 10

    def quality(model, calls):
        samples = digits_quality.generate(model, wanted, calls)
        predicted, features = digits_quality.evaluate(classifier, samples)
        distance = digits_quality.frechet_distance(features, reference)
        return f"{np.mean(predicted == np.asarray(wanted)):>12.2%}{distance:>10.3f}"

    columns = f"{'accuracy':>12}{'Fréchet':>10}"
    click.echo(f"{'':<22}{columns}{columns}{'s/1,000 images':>16}")
    click.echo(f"{'':<22}{'1 step':>22}{'2 steps':>22}")
    solver = EDMHeunScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    heun = cmjax.Model(
        adapt(teacher.apply_fn, SCHEDULER, solver, edm_denoiser),
        teacher.params,
        solver,
        teacher.config,
    )
    click.echo(f"{'teacher, Heun 18':<22}{quality(heun, 18)}   (35 network calls)")
    for name, (params, seconds) in trained.items():
        model = cmjax.Model(teacher.apply_fn, params, SCHEDULER, teacher.config)
        cmjax.save(out / name / "model", model)
        click.echo(f"{name:<22}{quality(model, 1)}{quality(model, 2)}{seconds:>16.1f}")


if __name__ == "__main__":
    main()
