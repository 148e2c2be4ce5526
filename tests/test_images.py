"""Pixels, grids, and files that are either complete or not there."""

import os
import stat
import struct
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cmjax import image_files, images
from cmjax.files import replacing
from cmjax.images import (
    center_crop_resize,
    from_uint8,
    image_grid,
    read_image,
    save_grid,
    save_npz,
    save_png_folder,
    tidy_columns,
    to_pil,
    to_uint8,
)
from cmjax.images.grids import CAPTION, MARGIN


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_samples_become_pixels_rounded_and_clipped(dtype):
    samples = jnp.asarray([-1.5, -1, 0, 0.5, 1, 7], dtype)
    pixels = to_uint8(samples)
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == [0, 0, 128, 191, 255, 255]


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_samples_and_pixels_become_pictures(channels, mode, array):
    samples = (
        np.random.default_rng(0).uniform(-1.2, 1.2, (2, 4, 6, channels)).astype(np.float32)
    )
    pixels = to_uint8(samples)
    for given in (array(samples), array(pixels)):
        pictures = to_pil(given)
        assert [(picture.mode, picture.size) for picture in pictures] == [
            (mode, (6, 4))
        ] * 2
        for picture, expected in zip(pictures, pixels, strict=True):
            np.testing.assert_array_equal(
                np.asarray(picture).reshape(expected.shape), expected
            )
        one = to_pil(given[0])
        np.testing.assert_array_equal(np.asarray(one), np.asarray(pictures[0]))
    low = to_pil(jnp.asarray(samples, jnp.bfloat16))[0]
    assert (
        np.abs(np.asarray(low).reshape(pixels[0].shape).astype(int) - pixels[0]).max() <= 1
    )


@pytest.mark.parametrize(
    "samples, message",
    [
        (np.zeros((4, 4)), "got shape"),
        (np.zeros((4, 4, 2)), "got shape"),
        (np.zeros((1, 1, 4, 4, 1)), "got shape"),
        (np.zeros((4, 4, 1), np.int32), "u8 pixels, got int32"),
    ],
)
def test_misuse_of_to_pil(samples, message):
    with pytest.raises(ValueError, match=message):
        to_pil(samples)


def test_files_are_written_of_arrays_of_jax(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), np.uint8)
    for name, array in (("numpy", np.asarray), ("jax", jnp.asarray)):
        save_npz(tmp_path / f"{name}.npz", array(images), array([1, 2]))
        save_grid(tmp_path / f"{name}.png", array(images), columns=2)
        save_png_folder(tmp_path / name, array(images))
    for name in (".npz", ".png", "/000001.png"):
        written = [(tmp_path / f"{kind}{name}").read_bytes() for kind in ("numpy", "jax")]
        assert written[0] == written[1]


@pytest.fixture
def pictures(tmp_path):
    """Pictures good and bad."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    picture.save(tmp_path / "colour.png")
    opaque = picture.convert("RGBA")
    opaque.save(tmp_path / "opaque.png")
    opaque.convert("LA").save(tmp_path / "opaque-gray.png")
    opaque.putpixel((7, 7), (0, 0, 0, 254))
    opaque.save(tmp_path / "alpha.png")
    palette = picture.convert("P")
    palette.save(tmp_path / "see-through.png", transparency=palette.getpixel((0, 0)))
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(rng.integers(0, 2**16, (8, 8), np.uint16)).save(tmp_path / "deep.png")
    picture.save(tmp_path / "moving.gif", save_all=True, append_images=[picture.rotate(90)])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes((tmp_path / "colour.png").read_bytes()[:100])
    # For these two Pillow raises ValueErrors of its own, which name no file.
    content = (tmp_path / "colour.png").read_bytes()
    (tmp_path / "short.png").write_bytes(content[:11] + b"\5" + content[12:])
    notes = PngImagePlugin.PngInfo()
    notes.add_text("workflow", "a" * 2**21, zip=True)
    picture.save(tmp_path / "wordy.png", pnginfo=notes)
    return tmp_path


@pytest.mark.parametrize(
    "name, message",
    [
        ("text.png", "text.png is not a picture"),
        ("cut.png", "cannot read .*cut.png"),
        ("short.png", "cannot read .*short.png: .*; give another"),
        ("wordy.png", "cannot read .*wordy.png: Decompressed .*; give another"),
        ("alpha.png", "alpha.png has transparency"),
        ("see-through.png", "see-through.png has transparency"),
        ("cmyk.jpg", "cmyk.jpg is CMYK"),
        ("deep.png", "deep.png is I;16"),
        ("moving.gif", "moving.gif is animated"),
        ("missing.png", "cannot read .*missing.png: No such file"),
        (".", "is a folder, not a file"),
    ],
)
def test_a_picture_that_a_conversion_would_change_is_refused(pictures, name, message):
    with pytest.raises(ValueError, match=message):
        read_image(pictures / name, 3)


def test_an_alpha_channel_that_is_opaque_everywhere_is_none(pictures):
    wanted = read_image(pictures / "colour.png", 3)
    np.testing.assert_array_equal(read_image(pictures / "opaque.png", 3), wanted)
    assert read_image(pictures / "opaque-gray.png", 1).shape == (8, 8, 1)


def test_a_palette_of_opaque_colours_is_read_without_a_warning(tmp_path):
    path = tmp_path / "opaque-palette.png"
    picture = Image.new("P", (8, 8))
    picture.putpalette([9, 8, 7])
    picture.save(path, transparency=b"\xff")
    with warnings.catch_warnings(action="error"):
        assert (read_image(path, 3) == [9, 8, 7]).all()


@pytest.mark.parametrize("kind", [RuntimeError, TypeError, struct.error])
def test_errors_of_any_kind_name_the_picture(pictures, monkeypatch, kind):
    """Pillow's readers of AVIF and TIFF raise these for damaged files."""

    def fail(*_):
        raise kind("no such frame")

    monkeypatch.setattr("PIL.Image.Image.convert", fail)
    with pytest.raises(ValueError, match="cannot read .*colour.png: no such frame"):
        read_image(pictures / "colour.png", 3)


def test_the_first_picture_of_a_phones_jpeg_is_read(tmp_path):
    """Its other pictures are previews, which some programs remove without a trace in the index."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "plain.jpg", quality=95)
    preview = Image.fromarray(255 - pixels).resize((16, 12))
    phone = tmp_path / "phone.jpg"
    picture.save(phone, "MPO", save_all=True, append_images=[preview], quality=95)
    content = phone.read_bytes()
    (tmp_path / "stripped.jpg").write_bytes(content[: content.rfind(b"\xff\xd8\xff")])
    wanted = read_image(tmp_path / "plain.jpg", 3)
    for name in ("phone.jpg", "stripped.jpg"):
        np.testing.assert_array_equal(read_image(tmp_path / name, 3), wanted)


def test_a_picture_too_large_is_refused(pictures, monkeypatch):
    monkeypatch.setattr("cmjax.images.reading.LARGEST_PICTURE", 63)
    with pytest.raises(ValueError, match="has 8x8 pixels"):
        read_image(pictures / "colour.png", 3)


def test_the_middle_square_is_scaled():
    image = np.zeros((4, 8, 1), np.uint8)
    image[:, 2:6] = 100
    assert center_crop_resize(image, 2).tolist() == [[[100], [100]], [[100], [100]]]


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("labels", [None, list("abcde")])
def test_tiles_are_enlarged_unchanged_in_reading_order(channels, mode, labels):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, channels), dtype=np.uint8)
    picture = image_grid(images, columns=3, labels=labels, scale=4)
    caption = 0 if labels is None else CAPTION
    assert picture.mode == mode
    assert picture.size == (
        MARGIN + 3 * (24 + MARGIN),
        MARGIN + 2 * (16 + MARGIN + caption),
    )
    pixels = np.asarray(picture).reshape(picture.height, picture.width, channels)
    for i in range(6):
        x = MARGIN + i % 3 * (24 + MARGIN)
        y = MARGIN + i // 3 * (16 + MARGIN + caption) + caption
        tile = pixels[y : y + 16, x : x + 24]
        above = pixels[y - MARGIN - caption : y, x : x + 24]
        if i < 5:
            np.testing.assert_array_equal(tile, images[i].repeat(4, 0).repeat(4, 1))
            assert (above < 128).any() == (
                labels is not None
            )  # the caption is there, in the dark
        else:
            assert (tile == 255).all() and (above == 255).all()


def test_a_caption_is_centred_over_its_tile():
    picture = np.asarray(
        image_grid(np.zeros((1, 28, 28, 1), np.uint8), columns=1, labels=["8"], scale=2)
    )
    dark = np.nonzero((picture[:CAPTION] < 128).any(0))[0]
    assert abs(dark.mean() - (MARGIN + 28)) <= 1


def test_a_row_is_not_wider_than_its_images():
    assert image_grid(np.zeros((2, 4, 4, 1), np.uint8), columns=10).width == MARGIN + 2 * (
        4 + MARGIN
    )


@pytest.mark.parametrize(
    "images, options, message",
    [
        (np.zeros((2, 4, 4, 1)), {}, "images must be"),
        (np.zeros((4, 4, 1), np.uint8), {}, "images must be"),
        (np.zeros((2, 4, 4, 2), np.uint8), {}, "images must be"),
        (np.zeros((0, 4, 4, 1), np.uint8), {}, "not empty"),
        (np.zeros((2, 4, 4, 1), np.uint8), {"columns": 0}, "columns=0"),
        (np.zeros((2, 4, 4, 1), np.uint8), {"scale": 0}, "scale=0"),
        (np.zeros((2, 4, 4, 1), np.uint8), {"labels": [1]}, "one per image, 2, got 1"),
    ],
)
def test_misuse_of_image_grid(images, options, message):
    with pytest.raises(ValueError, match=message):
        image_grid(images, **{"columns": 2, **options})


@pytest.mark.parametrize(
    "count, period, columns",
    [
        (64, 10, 10),  # a column per digit
        (64, 1, 8),
        (64, 3, 9),  # three columns per class
        (4, 10, 4),
        (10, 10, 10),
        (1, 1, 1),
        (64, 1000, 8),  # no row holds a thousand classes
        (10_000, 10, 100),
    ],
)
def test_tidy_columns(count, period, columns):
    assert tidy_columns(count, period) == columns


def test_save_grid_makes_its_folder_and_a_file_as_any_other(tmp_path):
    images = np.full((2, 4, 4, 3), (1, 2, 3), np.uint8)
    save_grid(tmp_path / "new" / "a.png", images, columns=2)
    (tmp_path / "other").write_bytes(b"")
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert picture.format == "PNG"
        assert picture.getpixel((MARGIN, MARGIN)) == (1, 2, 3)
    modes = [
        stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("new/a.png", "other")
    ]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / "a.npz"
    path.write_text("old")
    with pytest.raises(failure), replacing(path) as file:
        file.write(b"half")
        file.flush()
        raise failure
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.npz"]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.linspace(0, 255, 12), "samples goes from 0 to 255, as pixels do"),
        (jnp.full((2, 2), 200.0), "samples goes from 200 to 200"),
        (np.zeros((2, 2), np.uint8), "samples must be floats in .* got uint8"),
        (np.ones(2, bool), "samples must be floats in .* got bool"),
        (np.array([0, np.nan]), "samples must be numbers, got NaN"),
        (["x"], "samples must be numbers"),
    ],
)
def test_pixels_and_no_numbers_are_not_samples(samples, message):
    with pytest.raises(ValueError, match=message):
        to_uint8(samples)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.linspace(0, 1, 4), "pixels must be integers from 0 to 255, got float64"),
        (np.array([-1, 3]), "pixels must be from 0 to 255, got -1 to 3"),
        (np.array([256]), "pixels must be from 0 to 255, got 256 to 256"),
        (np.array([True]), "got bool"),
    ],
)
def test_what_is_no_pixel(pixels, message):
    with pytest.raises(ValueError, match=message):
        from_uint8(pixels)


def test_noisy_samples_are_clipped_and_traced_ones_not_looked_at():
    assert to_uint8(np.array([-80.0, 300.0])).tolist() == [0, 255]
    assert from_uint8(np.array([0, 255])).tolist() == [-1, 1]
    assert jax.eval_shape(to_uint8, jnp.full(3, 200.0)).dtype == np.uint8
    with pytest.raises(ValueError, match="images must be numbers that are known"):
        jax.eval_shape(lambda x: save_png_folder("a", x), jnp.zeros((1, 2, 2, 1), np.uint8))


@pytest.mark.parametrize("path", [None, 3, "", "a\0b", b"a"])
def test_what_is_no_path(path):
    images = np.zeros((1, 2, 2, 1), np.uint8)
    for call in (
        lambda: read_image(path, 1),
        lambda: save_npz(path, images),
        lambda: save_grid(path, images, columns=1),
    ):
        with pytest.raises(ValueError, match="path must be a path"):
            call()


def test_every_function_takes_what_the_conversion_under_jit_returns(tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 3)).astype(np.float32)
    pixels = jax.jit(to_uint8)(samples)
    expected = np.asarray(pixels)
    labels = jnp.arange(2)

    save_grid(tmp_path / "a.png", pixels, columns=2, labels=labels)
    save_npz(tmp_path / "a.npz", pixels, labels)
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_array_equal(file["arr_0"], expected)
        np.testing.assert_array_equal(file["arr_1"], [0, 1])
    save_png_folder(tmp_path / "a", pixels)
    image_files.write_png_folder(
        tmp_path / "b", image_files.ImageSet(2, (4, 4, 3), [pixels])
    )
    for folder in ("a", "b"):
        pictures = [read_image(tmp_path / folder / f"00000{i}.png", 3) for i in range(2)]
        np.testing.assert_array_equal(pictures, expected)
    assert center_crop_resize(pixels[0], 2).shape == (2, 2, 3)
    np.testing.assert_array_equal(image_files.picture_of(pixels[0]), expected[0])
    np.testing.assert_allclose(jax.jit(from_uint8)(pixels), from_uint8(expected), atol=1e-6)


def test_a_title_is_a_line_above_the_grid():
    tiles = np.zeros((4, 8, 8, 1), np.uint8)
    plain = np.asarray(images.image_grid(tiles, columns=2, scale=8))
    titled = np.asarray(images.image_grid(tiles, columns=2, scale=8, title="step 3"))
    np.testing.assert_array_equal(titled[CAPTION:], plain)
    assert titled[:CAPTION].min() < 100


def test_no_program_is_started_for_a_picture(tmp_path, monkeypatch):
    # Pillow hands these to Ghostscript.
    path = tmp_path / "drawing.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    monkeypatch.setattr("subprocess.Popen", None)
    with pytest.raises(ValueError, match="is not a picture that can be read"):
        images.read_image(path, 3)
