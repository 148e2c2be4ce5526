"""From samples to pixels to pictures."""

import os

import numpy as np
import pytest
from PIL import Image

from cmjax import images


def test_samples_map_to_pixels():
    samples = np.array([-1.5, -1.0, 0.0, 1.0, 7.0], np.float32)
    assert images.to_uint8(samples).tolist() == [0, 0, 128, 255, 255]
    pixels = np.arange(256)
    np.testing.assert_array_equal(images.to_uint8(pixels / 127.5 - 1), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_stands_in_its_cell(channels):
    tiles = np.stack([np.full((4, 5, channels), 10 * (i + 1), np.uint8) for i in range(5)])
    picture = images.grid(tiles, columns=3, scale=2)
    assert picture.mode == ("L" if channels == 1 else "RGB")
    pixels = np.asarray(picture).reshape(picture.height, picture.width, channels)
    m, w, h = images.MARGIN, 10, 8
    assert pixels.shape[:2] == (2 * (h + m) + m, 3 * (w + m) + m)
    for i in range(5):
        x, y = m + i % 3 * (w + m), m + i // 3 * (h + m)
        assert np.all(pixels[y : y + h, x : x + w] == 10 * (i + 1))
    assert np.all(pixels[:m] == 255) and np.all(pixels[-h:, -w:] == 255)  # margin, empty cell


def test_captions_are_drawn_above_their_images():
    tiles = np.zeros((2, 30, 30, 1), np.uint8)
    plain = np.asarray(images.grid(tiles, columns=2, labels=["", ""]))
    captioned = np.asarray(images.grid(tiles, columns=2, labels=[7, ""]))
    where = np.argwhere(plain != captioned)
    assert len(where) > 5
    assert where[:, 0].max() < images.MARGIN + images.CAPTION
    assert where[:, 1].max() < images.MARGIN + 30


@pytest.mark.parametrize(
    ("count", "period", "columns"), [(64, 10, 10), (64, 1, 8), (1, 10, 1), (5, 10, 5), (400, 10, 20), (100, 1000, 10)]
)
def test_columns_make_a_grid_close_to_a_square_with_whole_periods(count, period, columns):
    assert images.tidy_columns(count, period) == columns


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((1, 2, 2, 1)), {}, "float64"),
        (np.zeros((2, 2, 1), np.uint8), {}, r"\[2, 2, 1\]"),
        (np.zeros((1, 2, 2, 4), np.uint8), {}, r"\[1, 2, 2, 4\]"),
        (np.zeros((0, 2, 2, 1), np.uint8), {}, "not empty"),
        (np.zeros((2, 2, 2, 1), np.uint8), {"labels": [1]}, "one per image, 2, got 1"),
        (np.zeros((2, 2, 2, 1), np.uint8), {"columns": 0}, "columns=0"),
    ],
)
def test_misuse(array, options, message):
    with pytest.raises(ValueError, match=message):
        images.grid(array, **{"columns": 1, **options})


def test_pictures_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.png"
    images.save_grid(path, np.zeros((1, 2, 2, 1), np.uint8), columns=1)
    before = path.read_bytes()
    with Image.open(path) as picture:
        assert picture.size == (10, 10)
    with pytest.raises(ZeroDivisionError), images.replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == before and os.listdir(path.parent) == ["a.png"]
