"""`cmjax edit`: out of the box, on one's own pictures, and that every misuse is one clear line."""

from pathlib import Path

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import cmjax
from cmjax import cli, editing, images
from cmjax.images import grids
from tests.support.cli import assert_one_line, succeeded
from tests.support.networks import tiny_model


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Small models of 8x8 pictures: colour without classes, gray with."""
    root = tmp_path_factory.mktemp("models")
    scheduler = cmjax.CMStochasticIterativeScheduler(num_train_timesteps=6)
    for name, channels, classes in (
        ("colour", 3, None),
        ("gray", 1, 4),
        ("latent", 4, None),
    ):
        model = tiny_model(classes, channels)
        cmjax.save(root / name, model.with_scheduler(scheduler))
    return root


@pytest.fixture
def run(models, tmp_path, monkeypatch):
    """Runs `cmjax edit ...` in a folder that holds pictures good and bad."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
    picture = Image.fromarray(pixels)
    picture.save("picture.png")
    picture.resize((24, 16)).save("photo.jpg")
    picture.convert("L").save("gray.png")
    picture.convert("RGBA").save("alpha.png")
    picture.convert("P").save("palette.png")
    picture.convert("P").save("see-through.png", transparency=0)
    picture.convert("CMYK").save("cmyk.jpg")
    Image.fromarray(rng.integers(0, 2**16, (8, 8), np.uint16)).save("deep.png")
    picture.save("animated.gif", save_all=True, append_images=[picture.rotate(90)])
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(mask).save("mask.png")
    Image.fromarray(mask[:6]).save("small-mask.png")
    Image.fromarray(0 * mask).save("black.png")
    Image.fromarray(mask // 255).save("ones.png")
    Path("taken/picture.png").mkdir(parents=True)
    Image.fromarray(mask // 2).save("gray-mask.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "twice").mkdir()
    picture.save("twice/a.png")
    picture.save("twice/a.jpg")
    (tmp_path / "cut.png").write_bytes((tmp_path / "picture.png").read_bytes()[:100])

    def run(*args, model="colour"):
        chosen = [] if model is None else ["--model", str(models / model)]
        return CliRunner().invoke(cli.main, ["edit", *args, *chosen])

    return run


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def tiles(count, size=8):
    """The tiles of the strip, without margins and captions."""
    scale = max(1, 112 // size)
    strip = pixels("edited.png")
    step = size * scale + grids.MARGIN
    found = [
        strip[grids.MARGIN + grids.CAPTION :, grids.MARGIN + i * step :][
            : size * scale : scale, : size * scale : scale
        ]
        for i in range(count)
    ]
    return np.stack(found)


def test_an_inpainting_keeps_what_is_known(run):
    said = succeeded(run("inpaint", "picture.png", "--mask", "mask.png")).stdout
    assert said == "edited.png: given, known, 1, 2, 3, on cpu\n"
    given, known, *made = tiles(5)
    np.testing.assert_array_equal(given, pixels("picture.png"))
    np.testing.assert_array_equal(known[:, :4], given[:, :4])
    assert np.all(known[:, 4:] == 128)
    for result in made:
        np.testing.assert_array_equal(result[:, :4], given[:, :4])
        assert np.abs(result[:, 4:].astype(int) - given[:, 4:]).mean() > 5
    assert np.any(made[0] != made[1])


def test_results_that_follow_the_posterior_keep_what_is_known(run):
    options = ("--mask", "mask.png", "--num", "2", "--sigmas", "80,1")
    succeeded(run("inpaint", "picture.png", *options))
    projected = tiles(4)
    succeeded(run("inpaint", "picture.png", *options, "--method", "posterior"))
    given, known, *made = tiles(4)
    np.testing.assert_array_equal(known, projected[1])
    for result in made:
        np.testing.assert_array_equal(result[:, :4], given[:, :4])
    assert np.any(np.stack(made) != projected[2:])


def test_a_mask_without_white_is_noted(run):
    done = succeeded(
        run("inpaint", "picture.png", "--mask", "gray-mask.png", "--steps", "2")
    )
    assert "the brightest pixel of gray-mask.png is 127 of 255" in done.stderr


def test_a_box_is_a_mask(run):
    succeeded(run("inpaint", "picture.png", "--mask", "mask.png", "--steps", "2"))
    by_mask = tiles(5)
    succeeded(run("inpaint", "picture.png", "--mask-box", "4,0,8,8", "--steps", "2"))
    np.testing.assert_array_equal(tiles(5), by_mask)
    succeeded(
        run(
            "inpaint", "picture.png", "--mask-box", "4,0,8,8", "--steps", "2", "--seed", "1"
        )
    )
    assert np.any(tiles(5)[2] != by_mask[2])


def test_a_colourisation_keeps_the_luminance(run):
    succeeded(run("colorize", "picture.png", "--num", "1"))
    given, known, made = (tile.astype(float) for tile in tiles(3))
    weights = np.array(editing.REC601)
    np.testing.assert_allclose(known, (given @ weights)[..., None].repeat(3, -1), atol=0.51)
    inside = np.all((made > 0) & (made < 255), -1)  # clipped pixels cannot keep it
    assert inside.mean() > 0.3
    np.testing.assert_allclose(
        (made @ weights)[inside], (given @ weights)[inside], atol=1.5
    )


def test_superresolution_keeps_block_averages(run):
    succeeded(
        run(
            "superres",
            "gray.png",
            "--factor",
            "2",
            "--num",
            "1",
            "--labels",
            "1",
            model="gray",
        )
    )
    _, known, made = (tile.astype(float) for tile in tiles(3))
    blocks = made.reshape(4, 2, 4, 2)
    inside = np.all((blocks > 0) & (blocks < 255), (1, 3))
    assert inside.mean() > 0.3
    np.testing.assert_allclose(blocks.mean((1, 3))[inside], known[::2, ::2][inside], atol=1)


def test_a_folder_of_pictures_becomes_a_folder_of_results(run, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    for name in ("photo.jpg", "gray.png", "picture.png"):
        (given / name).write_bytes((tmp_path / name).read_bytes())
    args = ["--mask-box", "4,0,8,8", "--steps", "2"]
    result = succeeded(run("inpaint", "given", *args, "--out", "made", "--num", "2"))
    assert result.stdout == "made: 6 results of 3 pictures, on cpu\n"
    made = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert made == [
        f"{name}_{i}.png" for name in ("gray", "photo", "picture") for i in "12"
    ]

    # Each is what it is alone, at the model's size, without captions.
    succeeded(run("inpaint", "picture.png", *args, "--num", "2"))
    strip = tiles(4)[2:]
    for i, expected in enumerate(strip):
        np.testing.assert_array_equal(pixels(f"made/picture_{i + 1}.png"), expected)

    # A single result has the name of its picture, here with the progress of many.
    result = succeeded(run("inpaint", "given", *args, "--out", "made", "--num", "1"))
    assert "editing: 3 of 3 pictures" in result.stderr
    np.testing.assert_array_equal(pixels("made/picture.png"), strip[0])


@pytest.mark.thorough
def test_interpolation_and_strokes_write_folders_too(run, tmp_path):
    succeeded(run("interpolate", "--num", "10", "--out", "between"))
    made = sorted(path.name for path in (tmp_path / "between").iterdir())
    assert made[0] == "interpolated_01.png" and made[-1] == "interpolated_10.png"
    succeeded(run("stroke", "picture.png", "--out", "between", "--num", "1"))
    assert pixels("between/picture.png").shape == (8, 8, 3)


def test_a_photo_is_cropped_and_scaled_with_a_message(run):
    result = succeeded(run("superres", "photo.jpg", "--steps", "1"))
    assert result.stderr == "photo.jpg: 24x16 pixels, its middle square scaled to 8x8\n"
    assert succeeded(run("superres", "photo.jpg", "--steps", "1", "--quiet")).output == ""
    result = succeeded(
        run("superres", "--steps", "1")
    )  # the package's own, for a model of another size
    assert "seven.png: 28x28 pixels, its middle square scaled to 8x8" in result.stderr


def test_interpolation_starts_and_ends_at_the_samples(run, models):
    succeeded(run("interpolate", "--from", "2", "--to", "5", "--num", "4"))
    made = tiles(4)
    model = cmjax.load(models / "colour")
    key = jax.random.key(0, impl="threefry2x32")
    samples = cmjax.sample(key, model.apply_fn, model.params, model.scheduler, (6, 8, 8, 3))
    expected = images.to_uint8(samples)
    assert np.abs(made[0].astype(int) - expected[2]).max() <= 1
    assert np.abs(made[3].astype(int) - expected[5]).max() <= 1


def test_strokes(run):
    succeeded(run("stroke", "picture.png", "--sigmas", "0.01", "--num", "1"))
    given, made = tiles(2)
    assert (
        np.abs(given.astype(int) - made).mean() < 10
    )  # hardly any noise, hardly any change
    succeeded(run("stroke", "picture.png", "--num", "1"))
    assert np.abs(given.astype(int) - tiles(2)[1]).mean() > 10


@pytest.mark.parametrize("task", ["inpaint", "stroke"])
def test_out_of_the_box(run, task):
    """On the bundled digits, with the pictures of the package."""
    steps = ["--steps", "2"] if task == "inpaint" else []
    succeeded(run(task, *steps, model=None))
    assert tiles(2, size=28).std() > 20


def test_classes_repeat_in_turn(run):
    args = ["inpaint", "gray.png", "--mask", "mask.png", "--steps", "2", "--num", "4"]
    succeeded(run(*args, "--labels", "1,3", model="gray"))
    both = tiles(6)[2:]
    for label, mine in ((1, [0, 2]), (3, [1, 3])):
        # The earlier name of --labels is taken, too.
        succeeded(run(*args, "--label", str(label), model="gray"))
        np.testing.assert_array_equal(tiles(6)[2:][mine], both[mine])
    assert np.any(both != tiles(6)[2:])


@pytest.mark.parametrize(
    ("args", "fragment"),
    [
        ("inpaint picture.png", "give one of --mask FILE and --mask-box"),
        (
            "inpaint picture.png --mask mask.png --mask-box 0,0,1,1",
            "give one of --mask FILE and --mask-box",
        ),
        (
            "inpaint picture.png --mask ones.png",
            "the brightest pixel of ones.png is 1 of 255",
        ),
        (
            "inpaint picture.png --mask small-mask.png",
            "small-mask.png is 8x6, but picture.png is 8x8; draw it on a copy",
        ),
        (
            "inpaint photo.jpg --mask-box 0,0,4,16",
            "--mask-box: nothing in the middle 16x16 pixels of photo.jpg",
        ),
        ("inpaint picture.png --mask black.png", "black all over"),
        ("inpaint picture.png --mask text.png", "text.png"),
        ("inpaint picture.png --mask-box 4,0,4,8", "0 <= x0 < x1 <= 8"),
        ("inpaint picture.png --mask-box 0,0,9,8", "0 <= x0 < x1 <= 8"),
        ("inpaint picture.png --mask-box 0,0,8", "four numbers"),
        ("inpaint picture.png --mask-box a", "integers separated by commas"),
        ("inpaint nowhere.png --mask mask.png", "nowhere.png: No such file"),
        ("inpaint empty --mask mask.png", "empty holds no pictures (.png"),
        ("inpaint . --mask mask.png", "pictures need a folder, not 'edited.png'"),
        ("superres picture.png --out . --num 1", "replace picture.png, a picture or mask"),
        (
            "superres picture.png --num 1 --out picture.png",
            "picture.png is a picture or mask to read",
        ),
        (
            "inpaint picture.png --mask mask.png --out mask.png",
            "mask.png is a picture or mask to read",
        ),
        (
            "superres twice --out new",
            "twice/a.jpg and twice/a.png would both become a_1.png; rename one",
        ),
        ("superres . --out new", "animated.gif is animated or has several pages"),
        (
            "superres picture.png --num 1 --out taken",
            "taken/picture.png is a folder; give the name of a file",
        ),
        ("superres cmyk.jpg", "cmyk.jpg is CMYK"),
        ("superres picture.png --out text", "--out: text is a file; give a folder"),
        ("superres picture.png --out no/new", "there is no folder no"),
        ("superres text.png", "text.png"),
        ("superres picture.png --factor 0", "0 is not in the range x>=1"),
        (
            "superres picture.png --factor 3",
            "--factor must divide the model's 8x8 pixels, got 3",
        ),
        ("superres picture.png --steps 2 --sigmas 1", "--steps and --sigmas"),
        ("superres picture.png --sigmas 99", "--sigmas: "),
        ("superres picture.png --num 0", "0 is not in the range"),
        ("superres picture.png --labels 1", "the model has no classes"),
        ("superres picture.png --out x.npz", "--out must end in .png (a picture)"),
        ("superres picture.png --out no/x.png", "there is no folder no"),
        ("colorize", "give a picture"),
        ("stroke picture.png --sigmas 1,2", "--sigmas: "),
        ("interpolate --from 1 --to 1", "--from and --to are both 1"),
        ("colorize gray.png --labels 1 @gray", "its pictures are gray"),
        ("superres gray.png @gray", "--labels: the model has classes 0..3; say which"),
        ("superres gray.png --labels 4 @gray", "classes are 0..3, got 4"),
        ("superres picture.png @latent", "4 channels"),
        ("interpolate --labels 1,2 @gray", "interpolate takes one class, got [1, 2]"),
        ("blur picture.png", "No such command 'blur'"),
    ],
)
def test_misuse_is_one_line(run, tmp_path, args, fragment):
    args, _, model = args.partition(" @")
    before = sorted(tmp_path.iterdir())
    result = run(*args.split(), model=model or "colour")
    assert_one_line(result, fragment)
    assert sorted(tmp_path.iterdir()) == before


def test_gray_and_palette_pictures_become_colour(run):
    for name in ("gray.png", "palette.png"):
        succeeded(run("superres", name, "--steps", "1", "--num", "1"))


@pytest.mark.parametrize(
    "task", ["", "inpaint", "colorize", "superres", "interpolate", "stroke"]
)
def test_help_teaches_by_example(run, task):
    lines = succeeded(run(*filter(None, [task]), "--help", model=None)).stdout.splitlines()
    assert "  Examples:" in lines and max(map(len, lines)) <= 100
