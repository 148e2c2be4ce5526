"""Guidance of models with a null class: sampled, generated, edited, by Python and command line."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from flax import nnx

import cmjax
from cmjax import cli, models
from cmjax.generation import Request
from cmjax.generation.settings import RunSettings
from cmjax.guidance import classifier_free
from cmjax.models.registry import architecture
from cmjax.networks import num_classes
from tests.support import networks
from tests.support.cli import assert_one_line, succeeded
from tests.support.generation import assert_nearly_equal
from tests.support.networks import DIT, UNET, tiny_model

KEY = jax.random.key(0)
SOLVER = cmjax.EDMEulerScheduler()


@pytest.fixture(scope="module")
def model():
    return tiny_model(3, null_class=True).with_scheduler(SOLVER)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    """The model, saved with its consistency scheduler."""
    path = tmp_path_factory.mktemp("models") / "model"
    scheduler = cmjax.CMStochasticIterativeScheduler(num_train_timesteps=6)
    cmjax.save(path, model.with_scheduler(scheduler))
    return str(path)


def run(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


@pytest.mark.parametrize("config", [DIT, UNET], ids=["dit", "unet"])
def test_the_null_class_is_one_more_row(config):
    def rows(**options):
        fields = {**vars(config), "num_class_embeds": 3, **options}
        made = type(config)(**fields)
        name = {DIT: "DiT", UNET: "UNet2D"}[config]
        cls, _ = architecture(name)
        module = nnx.eval_shape(lambda: cls(made, rngs=nnx.Rngs(0)))
        apply_fn, params = cmjax.from_nnx(module)
        return params["class_embedding"]["embedding"].shape[0], num_classes(apply_fn)

    assert rows() == (3, 3)
    assert rows(null_class=True) == (4, 4)
    with pytest.raises(ValueError, match="null_class needs classes"):
        rows(num_class_embeds=None, null_class=True)


def test_a_model_samples_its_classes_and_the_null_class_when_asked(model, folder):
    assert (model.num_classes, model.null_class) == (3, 3)
    assert cmjax.load().null_class is None
    assert model.class_indices(None) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"classes are 0\.\.2, got 3"):
        model.sample(KEY, 2, labels=3)
    asked = model.sample(KEY, 2, cond={"class_labels": [3, 1]}, num_inference_steps=1)
    assert asked.shape == (2, 8, 8, 1)
    assert cmjax.load(folder).null_class == 3


def test_guided_samples_of_a_model(model):
    scales = jnp.array([1.0, 2.0, 3.0])
    options = {"num_inference_steps": 2, "labels": [0, 1, 2]}
    made = model.sample(KEY, 3, guidance=scales, guidance_interval=(0.0, 90.0), **options)
    guided = classifier_free(model.apply_fn, scales, null={"class_labels": 3})
    wanted = cmjax.sample(
        KEY,
        guided,
        model.params,
        SOLVER,
        (3, 8, 8, 1),
        num_inference_steps=2,
        cond={"class_labels": jnp.arange(3)},
    )
    np.testing.assert_allclose(made, wanted, atol=1e-4)

    # Without guidance it is the network itself.
    plain = model.sample(KEY, 3, **options)
    assert model.guided(1) is model.apply_fn
    np.testing.assert_array_equal(model.sample(KEY, 3, guidance=1.0, **options), plain)
    assert abs(plain - made).max() > 1e-3


def test_models_that_cannot_be_guided(model):
    with pytest.raises(ValueError, match="guidance needs a network with a null class"):
        cmjax.load().sample(KEY, 2, guidance=2.0)
    # Scales of 1 are no guidance, as a number and per sample.
    for scale in (1, np.ones(2), [1.0, 1.0]):
        assert cmjax.load().sample(KEY, 2, guidance=scale).shape == (2, 28, 28, 1)
    consistent = model.with_scheduler(cmjax.CMStochasticIterativeScheduler())
    with pytest.raises(ValueError, match="a single call throws samples far"):
        consistent.sample(KEY, 2, guidance=2.0)
    with pytest.warns(UserWarning, match="only an approximation"):
        consistent.sample(KEY, 2, guidance=2.0, num_inference_steps=2)


def test_a_flow_map_is_guided_in_several_steps():
    config = dataclasses.replace(DIT, second_time="span", null_class=True)
    model = networks.model(config, scheduler=cmjax.FlowMapEulerDiscreteScheduler())
    options = {"num_inference_steps": 3, "labels": [0, 2]}
    with pytest.warns(UserWarning, match="only an approximation"):
        made = model.sample(KEY, 2, guidance=2.0, **options)
    guided = classifier_free(model.apply_fn, 2.0, null={"class_labels": 3})
    cond = {"class_labels": jnp.array([0, 2])}
    run = (KEY, guided, model.params, model.scheduler, made.shape)
    with pytest.warns(UserWarning, match="only an approximation"):
        wanted = cmjax.sample(*run, cond=cond, num_inference_steps=3)
    np.testing.assert_allclose(made, wanted, atol=1e-4)

    # One call is refused, and so is what depends on the level of a network that has two.
    with pytest.raises(ValueError, match="a single call throws samples far"):
        model.sample(KEY, 2, guidance=2.0)
    with pytest.raises(
        ValueError, match="two times and cannot be converted or read at one"
    ):
        model.sample(KEY, 2, guidance=2.0, guidance_interval=(0.1, 1.0), **options)


def test_guidance_is_part_of_a_request(model):
    options = {"labels": [0, 1, 2], "num_inference_steps": 2}
    request = Request(guidance=2.0, guidance_interval=[0.2, 90], **options)
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request
    plain = Request(**options)
    assert request != plain

    # What has no guidance is written as it was before there was any.
    assert set(plain.to_json()) == {"schedule", "labels", "seed", "dtype"}
    settings = RunSettings.of(model, request)
    assert RunSettings.from_json(settings.to_json()) == settings
    for other, now in ((Request(guidance=3.0, **options), "3.0"), (plain, "null")):
        differences = settings.differences(RunSettings.of(model, other))
        assert f"guidance was 2.0, now {now}" in differences


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guidance": np.nan}, "guidance must be a finite number"),
        ({"guidance": True}, "guidance must be a finite number"),
        ({"guidance": "3"}, "guidance must be a finite number"),
        ({"guidance_interval": (2, 1)}, "guidance_interval must be noise levels"),
        ({"guidance_interval": (0, np.inf)}, "guidance_interval must be finite"),
    ],
)
def test_requests_of_no_guidance(fields, message):
    with pytest.raises(ValueError, match=message):
        Request(**fields)


def test_the_command_line_guides(folder, tmp_path):
    solver = ("--model", folder, "--scheduler", "EDMEulerScheduler", "--steps", 2)
    guidance = ("--guidance", 3, "--guidance-interval", "0.2,90")
    out = tmp_path / "guided.npz"
    succeeded(run("sample", *solver, "-n", 4, "--out", out, *guidance))
    plain = tmp_path / "plain.npz"
    succeeded(run("sample", *solver, "-n", 4, "--out", plain))
    assert (np.load(out)["arr_0"] != np.load(plain)["arr_0"]).any()


@pytest.mark.thorough
def test_bulk_generation_guides(folder, tmp_path):
    solver = ("--model", folder, "--scheduler", "EDMEulerScheduler", "--steps", 2)
    guidance = ("--guidance", 3, "--guidance-interval", "0.2,90")
    out = tmp_path / "guided.npz"
    succeeded(run("sample", *solver, "-n", 4, "--out", out, *guidance))
    made = tmp_path / "run"
    generation = ("generate", *solver, "-n", 4, "--compilation-cache", "none", "--quiet")
    succeeded(run(*generation, "--out", made, *guidance))
    settings = json.loads((made / "manifest.json").read_text())["settings"]
    assert settings["guidance"] == 3.0
    assert settings["guidance_interval"] == [0.2, 90.0]
    found = np.load(next(made.glob("*.npz")))["arr_0"]
    assert_nearly_equal(found, np.load(out)["arr_0"])
    assert_one_line(run(*generation, "--out", made), "guidance was 3.0, now null")
    succeeded(run("generate", "--verify", made, "--model", folder, "--quiet"))


def test_the_command_line_edits_with_guidance(folder, tmp_path):
    arguments = ("edit", "inpaint", "--model", folder, "-l", 1, "-n", 2)
    picture = tmp_path / "picture.png"
    cmjax.images.save_grid(picture, np.zeros((1, 8, 8, 1), np.uint8), columns=1)
    arguments = (*arguments[:2], picture, "--mask-box", "0,0,4,8", *arguments[2:])
    out = ("--out", tmp_path / "edited.png")
    done = succeeded(run(*arguments, *out, "--guidance", 2))
    assert (
        "Note: --guidance: CMStochasticIterativeScheduler reads consistency" in done.stderr
    )
    assert len(done.stderr.splitlines()) <= 2
    assert_one_line(
        run(*arguments, *out, "--guidance", 2, "--steps", 1), "single call throws samples"
    )


def test_misuse_of_the_command_line(folder, tmp_path):
    def refused(fragment, *args, model=("--model", folder)):
        out = ("--out", tmp_path / "out.npz")
        assert_one_line(run("sample", *model, "-n", 2, *out, *args), fragment)

    refused("--guidance: guidance needs a network with a null", "--guidance", 2, model=())
    refused("--guidance: CMStochasticIterativeScheduler reads", "--guidance", 2)
    refused("--guidance: scale must be finite", "--guidance", "nan")
    refused("--guidance-interval needs --guidance", "--guidance-interval", "0.2,1")
    refused(
        "--guidance-interval: interval must be noise levels",
        *("--guidance", 2, "--guidance-interval", "2,1"),
    )
    refused("must be numbers separated by commas", "--guidance-interval", "a")


def test_diffusers_has_no_null_class(tmp_path):
    config = models.UNet2DConfig(**{**vars(UNET), "patch_size": 1, "null_class": True})
    from cmjax.checkpoints.unet_config_files import config_to_diffusers

    with pytest.raises(ValueError, match="null_class True is cmjax's own"):
        config_to_diffusers(config)
