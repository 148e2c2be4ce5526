"""Editing of latent models: constraints on pictures, kept in latents or through the decoder."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from flax import nnx
from PIL import Image

import cmjax
from cmjax import cli, testing
from cmjax.editing import colorize, compose, edit, inpaint, super_resolve
from cmjax.editing.latents import on_latents
from tests.support.autoencoders import TINY, autoencoder
from tests.support.checkpoints import CONFIG
from tests.support.cli import assert_one_line, succeeded

SCHEDULER = cmjax.CMStochasticIterativeScheduler(clip_denoised=False)
KEY = jax.random.key(0)
SIZE = (8, 8, 3)  # of the pictures of TINY, whose stride is 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear:
    """An autoencoder of pictures of 4x4x1 whose decoder is linear: latents of 2x2x2 times W."""

    weights: jax.Array  # [8, 16]
    stride = 2
    config = types.SimpleNamespace(out_channels=1, latent_channels=2)

    def decode(self, latents, *, batch_size=None):
        del batch_size
        flat = latents.reshape(len(latents), 8) @ self.weights
        return flat.reshape(-1, 4, 4, 1)


def gaussian(variance):
    """The exact consistency model of N(0, variance)."""

    def consistency(params, x, sigma):
        del params
        return x * jnp.sqrt((variance + SCHEDULER.sigma_min**2) / (variance + sigma**2))

    return testing.network_of(SCHEDULER.parametrization, consistency)


def edited(constraint, num=2, vae=None, **options):
    vae = vae or autoencoder(TINY)
    shape = (num, *SIZE)
    options = {"sigmas": [80.0, 1.0], **options}
    apply_fn = gaussian(0.25)
    return edit(
        KEY, apply_fn, None, SCHEDULER, constraint, shape, autoencoder=vae, **options
    )


def picture(seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.9, 0.9, SIZE).astype(np.float32)


def test_known_pixels_are_exact_and_a_latent_is_free_if_any_of_its_pixels_is():
    mask = np.ones((8, 8, 1), np.float32)
    mask[3:6, 4:8] = (
        0  # all of the latents of row 2 at columns 2 and 3, and a row of those above
    )
    image = picture()
    vae = autoencoder(TINY)
    constraint = inpaint(image, mask)
    own = on_latents(vae, constraint, (2, *SIZE), "projection")
    kept = np.ones((4, 4))
    kept[1:3, 2:] = 0
    np.testing.assert_array_equal(own.mask[0, :, :, 0], kept)

    # What is known is bit for bit that of the picture; the latents that are kept make the rest.
    results, trajectory = edited(constraint, return_trajectory=True)
    assert results.shape == (2, *SIZE)
    known = np.broadcast_to(mask == 1, SIZE)
    np.testing.assert_array_equal(results[:, known], np.tile(image[known], (2, 1)))
    latents = trajectory.prev_sample[-1]
    np.testing.assert_array_equal(
        latents[:, kept == 1], np.tile(own.image[0, kept == 1], (2, 1, 1))
    )
    assert np.abs(latents[0] - latents[1])[kept == 0].min() > 0
    hole = ~known
    np.testing.assert_allclose(results[:, hole], vae.decode(latents)[:, hole], atol=1e-5)


def test_what_is_in_the_hole_has_no_part_in_the_result():
    mask = np.zeros((8, 8, 1), np.float32)
    mask[:4] = 1
    image = picture()
    other = np.where(mask == 1, image, np.nan)
    np.testing.assert_array_equal(
        edited(inpaint(image, mask)), edited(inpaint(other, mask))
    )


@pytest.mark.thorough
def test_masks_and_pictures_of_each_sample_and_half_precision_and_jit():
    images = np.stack([picture(0), picture(1)])
    masks = np.zeros((2, 8, 8, 1), np.float32)
    masks[0, :4] = 1
    masks[1, 4:] = 1
    both = edited(inpaint(images, masks))
    np.testing.assert_allclose(both[0], edited(inpaint(images[0], masks[0]))[0], atol=1e-5)
    compiled = jax.jit(lambda constraint: edited(constraint))(inpaint(images, masks))
    np.testing.assert_allclose(compiled, both, atol=1e-4)

    half = edited(inpaint(images, masks), dtype=jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half[0, :4], jnp.asarray(images[0, :4], jnp.bfloat16))


def test_the_posterior_through_a_linear_decoder_is_exact():
    """Latents N(0, s^2), pictures W z, six pixels known: a normal distribution in closed form."""
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 8**-0.5, (8, 16)).astype(np.float32)
    variance = 0.25
    image = (0.5 * rng.standard_normal(8) @ weights).astype(np.float32).reshape(4, 4, 1)
    mask = np.zeros((4, 4, 1), np.float32)
    mask[0], mask[1, :2] = 1, 1
    known = mask.reshape(-1) == 1
    vae = Linear(jnp.asarray(weights))
    num = 4000
    results, steps = edit(
        KEY,
        gaussian(variance),
        None,
        SCHEDULER,
        inpaint(image, mask),
        (num, 4, 4, 1),
        method="posterior",
        autoencoder=vae,
        iterations=6,
        return_trajectory=True,
    )
    assert steps.denoised.shape == (10, num, 2, 2, 2)
    latents = np.asarray(steps.denoised[-1], np.float64).reshape(num, 8)

    # E[z | y] = W_k (W_k^T W_k)^-1 y, with covariance s^2 (1 - W_k (W_k^T W_k)^-1 W_k^T).
    seen = weights.astype(np.float64)[:, known]
    gain = seen @ np.linalg.inv(seen.T @ seen)
    mean = gain @ image.reshape(-1)[known]
    covariance = variance * (np.eye(8) - gain @ seen.T)

    # Six standard errors of each mean, and of each entry of the covariance.
    np.testing.assert_allclose(latents.mean(0), mean, atol=6 * 0.5 / num**0.5)
    found = np.cov(latents.T)
    np.testing.assert_allclose(found, covariance, atol=6 * variance * (2 / num) ** 0.5)

    # The pictures are those of the latents, with the known pixels put back.
    np.testing.assert_array_equal(
        results.reshape(num, 16)[:, known], np.tile(image.reshape(-1)[known], (num, 1))
    )
    np.testing.assert_allclose(
        results.reshape(num, 16)[:, ~known], latents @ weights[:, ~known], atol=1e-4
    )
    assert float(steps.residual[-1].mean()) < 2e-2


def test_enlarged_and_coloured_pictures_hold_what_was_given():
    low = picture().reshape(4, 2, 4, 2, 3).mean((1, 3))
    gray = (picture() @ np.array(cmjax.constraints.REC601, np.float32))[..., None]
    options = {"method": "posterior", "sigmas": [80.0, 0.5], "iterations": 2}
    results = edited(compose(super_resolve(low, 2)), **options)
    averages = results.reshape(2, 4, 2, 4, 2, 3).mean((2, 4))
    np.testing.assert_allclose(averages, np.stack([low, low]), atol=1e-5)
    results, steps = edited(colorize(gray), return_trajectory=True, **options)
    weights = np.array(cmjax.constraints.REC601, np.float32)
    np.testing.assert_allclose(
        results @ weights, np.tile(gray[..., 0], (2, 1, 1)), atol=1e-5
    )
    assert steps.denoised.shape == (2, 2, 4, 4, 4)

    # With noise in what is known, nothing is put back.
    noisy = edited(super_resolve(low, 2), sigma_y=0.3, **options)
    averages = noisy.reshape(2, 4, 2, 4, 2, 3).mean((2, 4))
    assert np.abs(averages - np.stack([low, low])).max() > 1e-3


def test_soft_edges_are_blended_beside_values_with_noise():
    mask = np.zeros((8, 8, 1), np.float32)
    mask[:, :3] = 1
    mask[:, 3] = 0.5
    options = {"method": "posterior", "sigmas": [80.0, 0.5], "sigma_y": 1e-3}
    soft = edited(inpaint(picture(), mask), **options)
    hard = edited(inpaint(picture(), np.floor(mask)), **options)
    expected = np.where(mask == 0.5, (np.asarray(hard) + picture()) / 2, hard)
    np.testing.assert_allclose(soft, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"constraint": super_resolve(np.zeros((4, 4, 3), np.float32), 2)},
            r"constraint must be what inpaint\(image, mask\) returns.* use method='posterior'",
        ),
        ({"constraint": lambda x: x}, r"constraint must be what inpaint\(image, mask\)"),
        ({"shape": (2, 4, 4, 4)}, r"shape must be that of pictures, \(B, H, W, 3\)"),
        ({"shape": (2, 7, 8, 3)}, "with multiples of 2 for H and W, got"),
        ({"autoencoder": TINY}, "autoencoder must be a cmjax.Autoencoder or None"),
    ],
)
def test_mistakes(change, message):
    arguments = {
        "constraint": inpaint(picture(), np.ones((8, 8, 1))),
        "shape": (2, *SIZE),
        "autoencoder": autoencoder(TINY),
        "sigmas": [80.0],
    } | change
    with pytest.raises(ValueError, match=message):
        edit(KEY, gaussian(0.25), None, SCHEDULER, **arguments)


def test_a_plain_function_of_pictures_is_kept_by_the_posterior():
    constraint = inpaint(picture(), np.tile([[1.0], [0.0]], (4, 8))[..., None])
    options = {"method": "posterior", "sigmas": [80.0]}
    expected = edited(constraint, **options)
    np.testing.assert_array_equal(edited(lambda x: constraint(x), **options), expected)


def test_constraints_on_latents_are_those_without_an_autoencoder():
    latents = np.zeros((4, 4, 4), np.float32)
    constraint = super_resolve(latents.reshape(2, 2, 2, 2, 4).mean((1, 3)), 2)
    found = edit(
        KEY, gaussian(0.25), None, SCHEDULER, constraint, (1, 4, 4, 4), sigmas=[80.0, 1.0]
    )
    np.testing.assert_allclose(found.reshape(2, 2, 2, 2, 4).mean((1, 3)), 0, atol=1e-6)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A latent consistency model, a picture of 16x16 and a mask of its middle."""
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(
        CONFIG, in_channels=4, out_channels=4, num_class_embeds=None
    )
    apply_fn, params = cmjax.from_nnx(cmjax.models.UNet2D(config, rngs=nnx.Rngs(0)))
    model = cmjax.Model(apply_fn, params, SCHEDULER, config, autoencoder=autoencoder(TINY))
    cmjax.save("model", model)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save("x.png")
    hole = np.zeros((16, 16), np.uint8)
    hole[4:12, 4:12] = 255
    Image.fromarray(hole).save("hole.png")
    return tmp_path


def run(task, *arguments):
    command = ["edit", task, *arguments, "--model", "model", "--sigmas", "80,1"]
    return CliRunner().invoke(cli.main, [*map(str, command), "--quiet"])


def test_the_command_edits_pictures_of_latent_models(files):
    succeeded(run("inpaint", "x.png", "--mask", "hole.png", "--num", 1, "--out", "out"))
    with Image.open("out/x.png") as made, Image.open("x.png") as given:
        made = np.asarray(made)
        given = np.asarray(given.resize((8, 8), Image.Resampling.BOX))
    assert made.shape == (8, 8, 3)
    known = np.ones((8, 8), bool)
    known[2:6, 2:6] = False
    assert np.abs(made.astype(int) - given)[known].max() <= 1
    assert_one_line(run("superres", "x.png"), "--method projection cannot do this")
    assert_one_line(run("colorize", "x.png"), "give --method posterior")


@pytest.mark.thorough
def test_the_other_tasks_of_the_command_take_latent_models(files):
    posterior = ("--method", "posterior", "--num", 1, "--out")
    succeeded(run("superres", "x.png", "--factor", 2, *posterior, "a.png"))
    succeeded(run("colorize", "x.png", *posterior, "b.png"))
    succeeded(run("stroke", "x.png", "--num", 1, "--out", "c"))
    command = ["edit", "interpolate", "--model", "model", "--num", "3", "--out", "d"]
    succeeded(CliRunner().invoke(cli.main, command))
    with Image.open("c/x.png") as made:
        assert made.size == (8, 8)
    assert [path.name for path in sorted((files / "d").iterdir())][
        0
    ] == "interpolated_1.png"
