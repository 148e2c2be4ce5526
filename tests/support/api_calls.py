"""Right calls of the public functions and classes, whose arguments a fuzz replaces one by one."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

import cmjax
from cmjax import conditioning, constraints, editing, evaluation, images, labels, models
from cmjax.generation import Request
from cmjax.guidance import adaptive_projection, autoguidance, classifier_free
from cmjax.models.registry import architecture
from cmjax.registry import scheduler_class
from cmjax.schedulers import SCHEDULERS
from cmjax.training import losses
from tests.support import checkpoints
from tests.support.flow_maps import SCHEDULERS as FLOW_SCHEDULERS

KEY = jax.random.key(0)
X = jnp.linspace(-0.9, 0.9, 6).reshape(2, 3)
PICTURES = np.linspace(-0.9, 0.9, 32, dtype=np.float32).reshape(2, 4, 4, 1)
PIXELS = np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1)
FEATURES = np.random.default_rng(0).normal(size=(6, 2))
CM = cmjax.CMStochasticIterativeScheduler()
TWO_LEVELS = {"sigmas": [0.8, 0.4]}


def network(params, x, t, r=None, *, extra=None):
    return 0.1 * x


def calls():
    """Name -> (function, its right arguments by name), without side effects."""
    return {**scheduler_calls(), **sampling_calls(), **editing_calls(), **other_calls()}


def scheduler_calls():
    found = {}
    for name, cls in SCHEDULERS.items():
        scheduler = cls()
        state = start(name)
        fields = {
            field.name: getattr(scheduler, field.name) for field in dataclasses.fields(cls)
        }
        steps = {"num_inference_steps": 2, "timesteps": None, "sigmas": None}
        noised = {"state": state, "original": X, "noise": X}
        moved = {"state": state, "sample": X, "denoised": X, "noise": X}
        read = {"state": state, "model_output": X, "sample": X}
        found |= {
            f"{name}()": (cls, fields),
            f"{name}.from_config": (by_entry(cls.from_config), scheduler.to_config()),
            f"{name}.set_timesteps": (scheduler.set_timesteps, steps),
            f"{name}.init": (
                scheduler.init,
                {"key": KEY, "state": state, "shape": (2, 3), "dtype": jnp.float32},
            ),
            f"{name}.init_sample": (scheduler.init_sample, {"state": state, "noise": X}),
            f"{name}.prepare": (scheduler.prepare, {"state": state, "sample": X}),
            f"{name}.predict": (
                positional(scheduler.predict, 4),
                {
                    "apply_fn": network,
                    "params": None,
                    "state": state,
                    "sample": X,
                    "extra": X,
                },
            ),
            f"{name}.step": (scheduler.step, {"key": KEY, **read, "constrain": None}),
            f"{name}.scale_input": (scheduler.scale_input, {"state": state, "sample": X}),
            f"{name}.denoise": (scheduler.denoise, read),
            f"{name}.advance": (scheduler.advance, moved),
            f"{name}.add_noise": (scheduler.add_noise, noised),
        }
    for name in ("get_scalings", "get_scalings_for_boundary_condition", "sigma_to_t"):
        found[name] = (getattr(CM, name), {"sigma": jnp.float32(2)})
    lcm = SCHEDULERS["LCMScheduler"]()
    found["LCM's strength"] = (
        lcm.set_timesteps,
        {"num_inference_steps": 2, "strength": 0.5, "timesteps": None},
    )
    found["scheduler_from_config"] = (
        cmjax.scheduler_from_config,
        {"config": CM.to_config()},
    )
    return found


@functools.cache
def start(name):
    """The state of a run of two steps, made by one program."""
    scheduler = SCHEDULERS[name]()
    state = jax.jit(lambda: scheduler.set_timesteps(2))()
    return scheduler.prepare(state, X)


def sampling_calls():
    run = {"key": KEY, "apply_fn": network, "params": {"w": jnp.ones(2)}, "scheduler": CM}
    options = {
        "shape": (2, 3),
        "num_inference_steps": None,
        "timesteps": None,
        "sigmas": None,
        "state": None,
        "cond": {"extra": X},
        "init": X,
        "constrain": None,
        "first_index": 0,
        "return_trajectory": False,
        "callback": None,
        "dtype": jnp.float32,
    }
    model = checkpoints.model()
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    drawn = {"key": KEY, "num": 2, "labels": [0, 1], "num_inference_steps": 1, "cond": None}
    return {
        "sample": (cmjax.sample, {**run, **options}),
        "sample, labels": (
            labelled,
            {"class_labels": np.array([0, 1]), "first_index": np.uint32(7)},
        ),
        "Model": (cmjax.Model, fields),
        "Model.sample": (model.sample, drawn),
        "Model.class_indices": (model.class_indices, {"labels": [1]}),
        "Model.class_name": (model.class_name, {"index": 1}),
        "Model.with_scheduler": (
            model.with_scheduler,
            {"scheduler": SCHEDULERS["SCMScheduler"]()},
        ),
        "class_indices": (
            labels.class_indices,
            {"labels": ["b"], "num_classes": 2, "class_names": ("a", "b")},
        ),
        "check_class_names": (
            labels.check_class_names,
            {"names": ("a", "b"), "num_classes": 2},
        ),
        "autoguidance": (
            guided,
            {"apply_fn": network, "scale": 2.0, "params": ({}, {}), "x": X},
        ),
        "classifier_free": (
            guided_by_null,
            {
                "apply_fn": labels_of,
                "scale": 2.0,
                "null": {"class_labels": 1},
                "interval": (0.1, 2.0),
                "parametrization": CM.parametrization,
                "rescale": 0.5,
                "doubled": True,
            },
        ),
        "adaptive_projection": (
            projected,
            {"scale": 2.0, "eta": 0.5, "norm_threshold": 1.0},
        ),
        "compute_in": (models.compute_in, {"apply_fn": network, "dtype": jnp.bfloat16}),
    }


def labelled(class_labels, first_index):
    """Samples of a network that knows its classes."""
    model = checkpoints.model()
    return cmjax.sample(
        KEY,
        model.apply_fn,
        model.params,
        CM,
        (2, 4, 4, 1),
        cond={"class_labels": class_labels},
        first_index=first_index,
    )


def guided(apply_fn, scale, params, x):
    return autoguidance(apply_fn, scale)(params, x, jnp.ones(2))


def labels_of(params, x, t, class_labels):
    return x + class_labels.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)


def guided_by_null(apply_fn, scale, **options):
    made = classifier_free(apply_fn, scale, **options)
    return made(None, jnp.asarray(X), jnp.ones(2), class_labels=jnp.zeros(2, jnp.int32))


def projected(scale, eta, norm_threshold):
    made = adaptive_projection(
        labels_of,
        scale,
        null={"class_labels": 1},
        parametrization=CM.parametrization,
        eta=eta,
        norm_threshold=norm_threshold,
    )
    return made(None, jnp.asarray(X), jnp.ones(2), class_labels=jnp.zeros(2, jnp.int32))


def editing_calls():
    run = {"apply_fn": network, "params": None, "scheduler": CM}
    known = np.ones((2, 4, 4, 1), bool)
    return {
        "edit": (
            editing.edit,
            {
                "key": KEY,
                **run,
                "constraint": constraints.inpaint(PICTURES, known),
                "shape": PICTURES.shape,
                **TWO_LEVELS,
                "first_index": 0,
                "dtype": jnp.float32,
                "cond": None,
            },
        ),
        "edit posterior": (
            functools.partial(
                editing.edit, KEY, network, None, CM, shape=PICTURES.shape, **TWO_LEVELS
            ),
            {
                "constraint": constraints.inpaint(PICTURES, known),
                "method": "posterior",
                "sigma_y": 0.1,
                "iterations": 1,
            },
        ),
        "stroke_to_image": (
            editing.stroke_to_image,
            {"key": KEY, **run, "image": PICTURES, **TWO_LEVELS, "first_index": 0},
        ),
        "restore": (editing.restore, {"key": KEY, **run, "noisy": PICTURES, **TWO_LEVELS}),
        "denoise": (editing.denoise, {**run, "noisy": X, "sigma": 1.0, "cond": None}),
        "interpolate": (
            editing.interpolate,
            {**run, "first": X[0], "second": X[1], "fractions": [0.0, 0.5], "cond": None},
        ),
        "slerp": (editing.slerp, {"first": X[0], "second": X[1], "fraction": 0.5}),
        "editing_timesteps": (editing.editing_timesteps, {"num_train_timesteps": 40}),
        "inpaint": (
            applied(constraints.inpaint),
            {"image": PICTURES, "mask": known, "x0": PICTURES},
        ),
        "inpaint vectors": (
            applied(constraints.inpaint),
            {"image": X, "mask": np.ones((2, 3), bool), "x0": X},
        ),
        "observe": (
            applied(constraints.observe),
            {"forward": identity, "pseudo_inverse": identity, "measurement": X, "x0": X},
        ),
        "colorize": (
            applied(constraints.colorize),
            {"gray": PICTURES, "weights": (1.0,), "x0": PICTURES},
        ),
        "super_resolve": (
            applied(constraints.super_resolve),
            {"low": PICTURES[:, :2, :2], "factor": 2, "x0": PICTURES},
        ),
        "compose": (composed, {"constraints": identity, "x0": X}),
    }


def identity(x):
    return x


def applied(make):
    """The constraint that `make` returns, applied."""

    def call(x0, **arguments):
        return make(**arguments)(x0)

    return call


def composed(constraints, x0):
    return cmjax.constraints.compose(identity, constraints)(x0)


def other_calls():
    real = {"real": FEATURES, "generated": FEATURES + 0.1, "k": 2}
    gaussian = evaluation.Gaussian(np.zeros(2), np.eye(2))
    unet = dataclasses.asdict(checkpoints.CONFIG)
    dit = dataclasses.asdict(models.DiTConfig())
    request = {
        field.name: getattr(Request(), field.name) for field in dataclasses.fields(Request)
    }
    found = {
        "to_uint8": (images.to_uint8, {"samples": PICTURES}),
        "from_uint8": (images.from_uint8, {"pixels": PIXELS}),
        "to_pil": (images.to_pil, {"samples": PICTURES}),
        "center_crop_resize": (images.center_crop_resize, {"image": PIXELS[0], "size": 2}),
        "image_grid": (
            images.image_grid,
            {"images": PIXELS, "columns": 2, "labels": ["a", "b"], "scale": 1},
        ),
        "tidy_columns": (images.tidy_columns, {"count": 9, "period": 3}),
        "read_image": (images.read_image, {"path": "none.png", "channels": 1}),
        "save_grid": (images.save_grid, {"path": "a.png", "images": PIXELS, "columns": 2}),
        "save_npz": (
            images.save_npz,
            {"path": "a.npz", "images": PIXELS, "labels": [0, 1]},
        ),
        "save_png_folder": (images.save_png_folder, {"folder": "a", "images": PIXELS}),
        "features": (
            evaluation.features,
            {"feature_fn": flat, "images": PIXELS, "batch_size": 2},
        ),
        "fit_gaussian": (evaluation.fit_gaussian, {"batches": [FEATURES]}),
        "frechet_distance": (evaluation.frechet_distance, {"a": FEATURES, "b": gaussian}),
        "a Gaussian": (from_statistics, {"mean": np.zeros(2), "cov": np.eye(2)}),
        "precision_recall": (evaluation.precision_recall, real),
        "search_sigmas": (
            evaluation.search_sigmas,
            {
                "objective": sum,
                "sigmas": (80.0, 2.0),
                "num_trials": 3,
                "lowest": 0.002,
                "tolerance": 0.02,
                "trials": (),
            },
        ),
        "with_null": (with_null_of, {"value": 2}),
        "UNet2DConfig": (models.UNet2DConfig, unet),
        "DiTConfig": (models.DiTConfig, dit),
        "Request": (Request, request),
        "register": (cmjax.register, {"cls": None, "config": None, "name": None}),
        "register a network": (
            cmjax.register,
            {"cls": models.UNet2D, "config": None, "name": "mine"},
        ),
        "scheduler_class": (scheduler_class, {"name": "DDIMScheduler"}),
        "architecture": (architecture, {"name": "DiT"}),
        "from_nnx": (cmjax.from_nnx, {"module": None}),
        "from_linen": (
            cmjax.from_linen,
            {"module": linen.Dense(3), "variables": {"params": {}}},
        ),
    }
    for name, cls in losses.LOSSES.items():
        found[f"losses.{name}"] = (cls, loss_arguments(name, cls))
    return found


def with_null_of(value):
    """Conditioning of 8 bits in which a value takes the place of the labels."""
    return conditioning.with_null({"value": jnp.zeros(2, jnp.uint8)}, {"value": value})


def flat(pictures):
    return np.asarray(pictures, np.float64).reshape(len(pictures), -1)


def from_statistics(mean, cov):
    return evaluation.frechet_distance(evaluation.Gaussian(mean, cov), FEATURES)


def loss_arguments(name, cls):
    """The default of every field of a loss, and right values of those without."""
    own = {
        "scheduler": FLOW_SCHEDULERS.get(name, CM),
        "total_steps": 10,
        "discriminator_fn": identity,
        "teacher_fn": network,
    }
    return {
        field: own.get(field, parameter.default)
        for field, parameter in inspect.signature(cls).parameters.items()
    }


def by_entry(function):
    """A function of a mapping, as one of its entries."""

    def call(**config):
        return function(config)

    return call


def positional(function, count):
    """A function whose first arguments have no names."""

    def call(**arguments):
        values = list(arguments.values())
        names = list(arguments)[count:]
        return function(*values[:count], **{name: arguments[name] for name in names})

    return call
