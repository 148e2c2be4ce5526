"""Every way to make a few-step model, on MNIST, at one budget: a table of quality and of time.

    python benchmarks/digits_table.py mnist.npz --out runs/table [--steps 600]

Every student starts from the denoiser in `examples/assets/digits_denoiser`, which is also the
teacher of the distillations, and gets the same number of steps by 64 images and the same optimizer;
what else differs is in `digits_students.py`. Flow matching is also sampled by Euler's method in 18
steps, and "guided" is the denoiser trained with label dropout, sampled with Heun's method and
classifier-free guidance. Measured as in `digits_quality.py`: share of the samples that a classifier
recognises as the class asked for, and the Fréchet distance of its features to the test images'. Run
it again after an interruption: finished students are not trained again, the others resume from
their last checkpoint.
"""

import json
import time
from pathlib import Path

import click
import digits_quality
import digits_students as students
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import cmjax
from cmjax.guidance import classifier_free
from cmjax.images import from_uint8
from cmjax.parametrization import adapt, edm_denoiser
from cmjax.training import losses, trainer
from cmjax.training.checkpointing import Checkpoints

DENOISER = Path(__file__).parents[1] / "examples/assets/digits_denoiser"
BATCH_SIZE = 64
GUIDANCE = (1.0, 2.0, 3.0)


def make_step(name, network, teacher, steps):
    """Returns the loss of a student and its training step."""
    # The guided network is a denoiser; it alone is trained without some of the labels.
    is_guided = name == "guided"
    loss = losses.make(
        "denoising" if is_guided else name.split()[0],
        network.scheduler,
        total_steps=steps,
        teacher_fn=teacher.apply_fn,
        **students.STUDENTS[name],
    )
    rate = students.LEARNING_RATES.get(name, students.LEARNING_RATE)

    def adam(num_steps):
        schedule = optax.warmup_cosine_decay_schedule(0.0, rate, num_steps // 10, num_steps)
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    step = trainer.make_train_step(
        loss,
        network.apply_fn,
        loss.make_optimizer(adam, steps),
        ema_decays=(0.99,),
        teacher=teacher.params if loss.needs_teacher else None,
        label_dropout=students.LABEL_DROPOUT if is_guided else 0.0,
        null={"class_labels": teacher.num_classes} if is_guided else None,
    )
    return loss, step


def train(name, network, teacher, images, labels, steps, folder):
    """Returns a student's parameters (a moving average), and CPU seconds per 1,000 images."""
    loss, step = make_step(name, network, teacher, steps)
    timing = folder / "seconds.json"
    with Checkpoints(folder) as checkpoints:
        state = checkpoints.restore(step.init(jax.random.key(0), network.params))
        durations = json.loads(timing.read_text()) if timing.exists() else []
        for i in tqdm(range(int(state.step), steps), desc=name, mininterval=5):
            start = time.process_time()
            index = digits_quality.batch_indices(0, i, BATCH_SIZE, len(images))

            # IMM compares the samples of a group with each other, which should be of one class.
            if name == "imm":
                index = index[np.argsort(labels[index], kind="stable")]
            state, metrics = step(
                state, {"data": from_uint8(images[index]), "class_labels": labels[index]}
            )
            if not np.isfinite(metrics["loss"]):
                raise SystemExit(f"{name}: the loss of step {i} is {metrics['loss']}")
            durations.append(time.process_time() - start)
            if (i + 1) % 100 == 0 or i + 1 == steps:
                checkpoints.save(state)
                checkpoints.wait()
                timing.write_text(json.dumps(durations))
    seconds = float(np.median(durations)) / BATCH_SIZE * 1000
    return loss.network_params(state.ema[0]), seconds


def judge(images, labels, test, num):
    """Returns a function from a model and a number of calls to accuracy and distance, as text."""
    classifier = digits_quality.train_classifier(images, labels)
    reference = digits_quality.evaluate(classifier, test)[1]
    wanted = jnp.arange(num, dtype=jnp.int32) % 10

    def quality(model, calls):
        samples = digits_quality.generate(model, wanted, calls)
        predicted, features = digits_quality.evaluate(classifier, samples)
        distance = digits_quality.frechet_distance(features, reference)
        return f"{np.mean(predicted == np.asarray(wanted)):>12.2%}{distance:>10.3f}"

    return quality


def under_heun(apply_fn, params, config):
    """Returns a denoiser as a model that Heun's method samples."""
    network = adapt(apply_fn, students.SCHEDULER, students.HEUN, edm_denoiser)
    return cmjax.Model(network, params, students.HEUN, config)


def rows_of(name, network, params, seconds, config, quality):
    """Yields the rows of a student as text: in one step and in two, and in many."""
    if name == "guided":
        null = {"class_labels": config.num_class_embeds}
        for scale in GUIDANCE:
            guided = classifier_free(network.apply_fn, scale, null=null)
            row = quality(under_heun(guided, params, config), 18)
            calls = 35 if scale == 1 else 70
            yield f"{f'guided by {scale:g}, Heun 18':<22}{row}   ({calls} network calls)"
        return

    model = cmjax.Model(network.apply_fn, params, network.scheduler, config)
    yield f"{name:<22}{quality(model, 1)}{quality(model, 2)}{seconds:>16.1f}"
    if name == "flow_matching":
        yield f"{'flow, Euler 18':<22}{quality(model, 18)}   (18 network calls)"


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
    quality = judge(images, labels, test, num)

    columns = f"{'accuracy':>12}{'Fréchet':>10}"
    click.echo(f"{'':<22}{columns}{columns}{'CPU s/1,000':>16}")
    click.echo(f"{'':<22}{'1 step':>22}{'2 steps':>22}")
    for name in only.split(",") if only else students.STUDENTS:
        network = students.network_of(name, teacher)
        params, seconds = train(name, network, teacher, images, labels, steps, out / name)
        for row in rows_of(name, network, params, seconds, teacher.config, quality):
            click.echo(row)
    if not only:
        model = under_heun(teacher.apply_fn, teacher.params, teacher.config)
        click.echo(f"{'teacher, Heun 18':<22}{quality(model, 18)}   (35 network calls)")


if __name__ == "__main__":
    main()
