"""Measures of features, against scipy, closed forms and brute force; and files for evaluators."""

import os
import zipfile

import jax
import numpy as np
import pytest
import scipy.linalg
from PIL import Image

from cmjax.evaluation import (
    Gaussian,
    features,
    fit_gaussian,
    frechet_distance,
    precision_recall,
)
from cmjax.images import save_npz, save_png_folder
from cmjax.training.sources import open_source

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 4, 5, 3), dtype=np.uint8)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def correlated(seed, count, width):
    """Features of full rank around a mean that is not 0."""
    return normal(seed, count, width) @ normal(seed + 1, width, width) + normal(
        seed + 2, width
    )


def by_scipy(a, b):
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(
        np.cov(a.T) + np.cov(b.T) - 2 * root
    )


def manifold_share(points, samples, k):
    """The share of points in a ball around one of the samples, by the definition."""
    own = np.linalg.norm(samples[:, None] - samples, axis=-1)
    radii = [np.sort(np.delete(row, i))[k - 1] for i, row in enumerate(own)]
    return np.mean(
        [np.any(np.linalg.norm(samples - point, axis=-1) <= radii) for point in points]
    )


@pytest.mark.parametrize("width", [2, 5, 40])
@pytest.mark.parametrize("seed", [0, 10])
def test_frechet_distance_is_scipys(seed, width):
    a, b = correlated(seed, 200, width), correlated(seed + 5, 300, width)
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-9)


def test_few_samples_of_many_features_need_no_covariance_matrix():
    # One of [D, D] would take 80 GB.
    rng = np.random.default_rng(0)
    a = rng.standard_normal((5, 100_000))
    b = rng.standard_normal((7, 100_000))
    kept = [0, 1, 2, 70, 9_999]
    assert frechet_distance(a, a + 1) == pytest.approx(100_000)
    assert frechet_distance(a, b) > 0

    # The same number as by the matrices.
    a, b = a[:, kept], b[:, kept]
    expected = frechet_distance(fit_gaussian([a]), fit_gaussian([b]))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_diagonal_gaussians():
    means, deviations = normal(0, 2, 6), np.abs(normal(1, 2, 6))
    a, b = (Gaussian(m, np.diag(s**2)) for m, s in zip(means, deviations, strict=True))
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum(
        (deviations[0] - deviations[1]) ** 2
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_one_feature():
    a, b = (
        np.array([[0.0], [2.0]]),
        np.array([[5.0], [9.0]]),
    )  # means 1 and 7, variances 2 and 8
    assert frechet_distance(a, b) == pytest.approx(36 + 2 + 8 - 2 * 4)


def test_frechet_distance_of_fewer_samples_than_features():
    a, b = normal(0, 12, 90), normal(1, 8, 90) + 0.5
    # Nonzero eigenvalues of C1 C2 are squared singular values of the samples' inner products.
    inner = (a - a.mean(0)) @ (b - b.mean(0)).T / np.sqrt(11 * 7)
    means = np.sum((a.mean(0) - b.mean(0)) ** 2)
    expected = (
        means
        + a.var(0, ddof=1).sum()
        + b.var(0, ddof=1).sum()
        - 2 * np.linalg.norm(inner, "nuc")
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-11)


def test_frechet_distance_on_disjoint_subspaces_adds_up():
    a, b = np.zeros((2, 50, 30))
    a[:, :10], b[:, 10:20] = normal(0, 50, 10), normal(1, 50, 10)
    turned = scipy.linalg.qr(normal(2, 30, 30))[0]
    means = np.sum((a.mean(0) - b.mean(0)) ** 2)
    expected = means + a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum()
    assert frechet_distance(a @ turned, b @ turned) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [20, 400])  # fewer and more samples than features
def test_frechet_distance_is_a_distance(count):
    a, b = correlated(0, count, 50), correlated(5, count, 50)
    distance = frechet_distance(a, b)
    rotation = scipy.linalg.qr(normal(9, 50, 50))[0]
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-12)
    assert frechet_distance(a @ rotation + 7, b @ rotation + 7) == pytest.approx(
        distance, rel=1e-9
    )
    assert 0 <= frechet_distance(a, a) < 1e-9 < distance
    assert 0 <= frechet_distance(a, a[::-1]) < 1e-9  # rounded otherwise
    assert frechet_distance(np.ones((3, 2)), np.ones((3, 2))) == 0


@pytest.mark.parametrize("sizes", [[60], [1] * 60, [7, 53], [50, 1, 9]])
def test_a_fit_in_batches_is_that_of_all_features(sizes):
    values = 1000 + correlated(0, 60, 4)
    mean, cov = fit_gaussian(iter(np.split(values, np.cumsum(sizes)[:-1])))
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-13)
    np.testing.assert_allclose(cov, np.cov(values.T), rtol=1e-9, atol=1e-9)
    assert frechet_distance(Gaussian(mean, cov), values + [1, 0, 2, 0]) == pytest.approx(5)


@pytest.mark.parametrize("block", [1, 70, 2**23])  # one row at a time; several; all
@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("count", [21, 34])
def test_precision_and_recall_by_definition(monkeypatch, block, k, count):
    monkeypatch.setattr("cmjax.evaluation.neighbours.BLOCK", block)
    real, generated = normal(0, 30, 3), 0.5 + 0.7 * normal(1, count, 3)
    precision, recall = precision_recall(real, generated, k)
    assert precision == manifold_share(generated, real, k)
    assert recall == manifold_share(real, generated, k)


def test_precision_and_recall_by_hand():
    real = np.array([[0.0], [1.0], [3.0], [10.0]])  # with k=1 they reach 1, 1, 2, 7
    generated = np.array([[-1.5], [2.0], [5.0], [20.0]])  # and these 3.5, 3, 3, 15
    assert precision_recall(real, generated, k=1) == (2 / 4, 4 / 4)
    assert precision_recall(generated, real, k=1) == (4 / 4, 2 / 4)
    assert precision_recall(real, generated[1:] + 100, k=1) == (0, 0)


def test_a_generator_of_one_mode_is_precise_but_recalls_little():
    modes = np.repeat(np.array([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 50.0]]), 25, 0)
    real = modes + normal(0, 100, 2)
    generated = real[:25].repeat(
        4, 0
    )  # every sample thrice again: they reach no further than themselves
    assert precision_recall(real, generated) == (1, 25 / 100)
    one_mode = real[:25] + 1e-3
    precision, recall = precision_recall(real, one_mode)
    assert precision == 1 and recall <= 25 / 100
    assert precision_recall(real, real + 1000) == (0, 0)


@pytest.mark.parametrize("count", [7, 160])
@pytest.mark.parametrize(
    "block", [1, 2**23]
)  # products of other shapes are rounded in other ways
def test_the_same_sample_again_is_on_the_manifold_whatever_is_rounded(
    monkeypatch, block, count
):
    monkeypatch.setattr("cmjax.evaluation.neighbours.BLOCK", block)
    real = np.repeat(
        1e3 + normal(0, 40, 64).astype(np.float32), 4, 0
    )  # with three copies they reach 0
    generated = real[np.random.default_rng(1).permutation(160)[:count]].repeat(4, 0)[:count]
    assert precision_recall(real, generated).precision == 1
    assert precision_recall(real, generated + 1e-4).precision == 0


def test_a_large_common_offset_costs_no_digits():
    real, generated = normal(0, 50, 3), 1.2 * normal(1, 50, 3)
    plain = precision_recall(real, generated)
    assert plain == precision_recall(real + 1e7, generated + 1e7)
    assert 0 < plain.recall < 1 and 0 < plain.precision < 1


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 64])
def test_features_in_batches_are_those_of_all_images(dtype, batch_size):
    traced = []

    @jax.jit
    def feature_fn(images):
        traced.append((images.shape, images.dtype))
        return images.reshape(len(images), -1)[:, ::7].astype("bfloat16") * 2

    result = features(feature_fn, IMAGES.astype(dtype), batch_size)
    assert traced == [
        ((batch_size, 4, 5, 3), dtype)
    ]  # one compilation, for the last batch too
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, IMAGES.reshape(10, -1)[:, ::7].astype("f8") * 2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_npz_of_the_guided_diffusion_evaluator(tmp_path, channels, order):
    path = tmp_path / "new" / f"samples_10x4x5x{channels}.npz"
    images = np.asarray(IMAGES[..., :channels], order=order)
    save_npz(path, images, np.arange(10, dtype=np.int32))
    with zipfile.ZipFile(
        path
    ) as file:  # the evaluator reads the member and its header itself
        assert sorted(file.namelist()) == ["arr_0.npy", "arr_1.npy"]
        with file.open("arr_0.npy") as member:
            assert np.lib.format.read_magic(member) == (1, 0)
            assert np.lib.format.read_array_header_1_0(member)[::2] == (
                (10, 4, 5, 3),
                np.uint8,
            )
    with np.load(path) as arrays:
        np.testing.assert_array_equal(
            arrays["arr_0"], IMAGES if channels == 3 else IMAGES[..., [0, 0, 0]]
        )
        np.testing.assert_array_equal(arrays["arr_1"], np.arange(10))
        assert arrays["arr_1"].dtype == np.int64
    assert open_source(path)[3]["class_labels"] == 3


def test_an_npz_without_labels(tmp_path):
    save_npz(tmp_path / "a.npz", IMAGES)
    with np.load(tmp_path / "a.npz") as arrays:
        assert list(arrays) == ["arr_0"]


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_of_pngs(tmp_path, channels, mode, exists):
    folder = tmp_path / "pictures"
    if exists:
        folder.mkdir()
    save_png_folder(folder, IMAGES[..., :channels])
    assert sorted(os.listdir(folder)) == [f"{i:06d}.png" for i in range(10)]
    assert os.listdir(tmp_path) == ["pictures"]
    for i, image in enumerate(IMAGES):
        with Image.open(folder / f"{i:06d}.png") as picture:
            assert (picture.format, picture.mode) == ("PNG", mode)
            np.testing.assert_array_equal(
                np.asarray(picture).reshape(4, 5, channels), image[..., :channels]
            )


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path):
    save_png_folder(tmp_path / "a", IMAGES)
    with pytest.raises(
        ValueError,
        match="a must be new or empty, but holds 000000.png; remove it or give another",
    ):
        save_png_folder(tmp_path / "a", IMAGES[:2])
    assert len(os.listdir(tmp_path / "a")) == 10
    with pytest.raises(NotADirectoryError):
        save_png_folder(tmp_path / "a" / "000000.png", IMAGES)


@pytest.mark.parametrize("images", [IMAGES[0], IMAGES[..., :2], IMAGES / 255, IMAGES[:0]])
@pytest.mark.parametrize("save", [save_npz, save_png_folder])
def test_images_that_cannot_be_written(tmp_path, save, images):
    with pytest.raises(
        ValueError,
        match=r"images must be u8\[N, H, W, 1 or 3\] and not empty, got .*; to_uint8 converts",
    ):
        save(tmp_path / "a", images)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("labels", [np.arange(9), np.arange(10.0), np.zeros((10, 1), int)])
def test_labels_that_cannot_be_written(tmp_path, labels):
    with pytest.raises(
        ValueError, match=r"labels must be one integer per image, \[10\], got"
    ):
        save_npz(tmp_path / "a.npz", IMAGES, labels)
    assert not os.listdir(tmp_path)


GOOD, EYE = normal(0, 5, 3), np.eye(3)
BROKEN = np.where(np.arange(5)[:, None] == 3, np.nan, GOOD)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: frechet_distance(GOOD[0], GOOD),
            r"a must be features \[N, D\] and not empty, got shape \(3,\)",
        ),
        (
            lambda: frechet_distance(GOOD, GOOD[:, :0]),
            r"b must be .* not empty, got shape \(5, 0\)",
        ),
        (
            lambda: frechet_distance(GOOD, GOOD[:1]),
            "b must have the features of at least 2 samples, got 1",
        ),
        (lambda: frechet_distance(GOOD, BROKEN), "b is not finite at row 3"),
        (lambda: frechet_distance(GOOD, GOOD[:, :2]), "as many features, got 3 and 2"),
        (
            lambda: frechet_distance(Gaussian(GOOD[0], EYE[0]), GOOD),
            r"a must have a mean .* got \(3,\) and \(3,\)",
        ),
        (
            lambda: frechet_distance(GOOD, Gaussian(GOOD[0], np.full((3, 3), np.inf))),
            "b must have .* finite",
        ),
        (
            lambda: frechet_distance(Gaussian(GOOD[0], -EYE), GOOD),
            "a must have a covariance without negative eigenvalues, got one of -1",
        ),
        (
            lambda: frechet_distance(Gaussian(GOOD[0], EYE + 0j), GOOD),
            "a.cov must be real numbers, got complex128",
        ),
        (
            lambda: frechet_distance(Gaussian(GOOD[0] * 1e300, EYE), GOOD),
            "a and b are so large that float64 does not hold their distance",
        ),
        (
            lambda: fit_gaussian([GOOD * 1e200]),
            r"batches\[0\] .* up to .*, whose squares float64 does not hold; divide",
        ),
        (lambda: features(3, GOOD), "feature_fn must be a function of images, got 3"),
        (lambda: precision_recall(GOOD, GOOD, k=True), "k must be an integer .* k=True"),
        (lambda: precision_recall([["1"]], GOOD), "real must be numbers"),
        (
            lambda: frechet_distance(GOOD, Gaussian(GOOD[0], np.tri(3))),
            "b must have a symmetric covariance",
        ),
        (
            lambda: fit_gaussian(GOOD),
            r"batches\[0\] \(a single array goes in a list\) must be features",
        ),
        (
            lambda: fit_gaussian([GOOD, GOOD[:, :2]]),
            "batches must have as many features each, got 3 and 2",
        ),
        (lambda: fit_gaussian([GOOD[:1]]), "batches must .* 2 samples in all, got 1"),
        (lambda: fit_gaussian([]), "batches must .* 2 samples in all, got 0"),
        (lambda: precision_recall(GOOD, GOOD[0]), "generated must be features"),
        (lambda: precision_recall(BROKEN, GOOD), "real is not finite at row 3"),
        (lambda: precision_recall(GOOD, GOOD[:, :2]), "as many features, got 3 and 2"),
        (
            lambda: precision_recall(GOOD, GOOD, k=5),
            "got k=5 for 5 real and 5 generated ones",
        ),
        (
            lambda: precision_recall(GOOD, GOOD[:3]),
            "got k=3 for 5 real and 3 generated ones",
        ),
        (lambda: precision_recall(GOOD, GOOD, k=0), "k must be an integer from 1"),
        (
            lambda: features(lambda x: x, GOOD, 0),
            "batch_size must be an integer of at least 1, got 0",
        ),
        (lambda: features(lambda x: x, GOOD[:0]), "images must be .* and not empty"),
        (
            lambda: features(lambda x: x[:, 0], GOOD, 4),
            r"must return \[4, D\] for 4 images, got \(4,\)",
        ),
        (
            lambda: features(lambda x: x[:2], GOOD, 4),
            r"must return \[4, D\] for 4 images, got \(2, 3\)",
        ),
        (
            lambda: features(lambda x: x, BROKEN, 2),
            "feature_fn's result is not finite at row 3",
        ),
    ],
)
def test_misuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("exponent", [-1000, -600, -3, 3, 450])
def test_precision_and_recall_do_not_change_by_a_common_factor(exponent):
    # Squares of the smallest would vanish, and every sample be within reach of every other.
    rng = np.random.default_rng(0)
    real = rng.normal(size=(40, 3))
    generated = rng.normal(0.5, 1, size=(40, 3))
    expected = precision_recall(real, generated)
    assert 0 < expected.precision < 1 and 0 < expected.recall < 1
    found = precision_recall(np.ldexp(real, exponent), np.ldexp(generated, exponent))
    assert found == expected


def test_features_too_large_for_their_squares_are_refused():
    far = np.random.default_rng(0).normal(size=(50, 4))
    with pytest.raises(ValueError, match="real has numbers up to .*e.200, whose squares"):
        precision_recall(far * 1e200, -far * 1e200)


def test_a_covariance_that_was_rounded_is_one():
    # That of fewer samples than features, stored in float32, has eigenvalues below 0.
    few = np.random.default_rng(0).normal(size=(5, 30))
    fitted = fit_gaussian([few])
    stored = Gaussian(fitted.mean, fitted.cov.astype(np.float32))
    assert np.linalg.eigvalsh(stored.cov.astype(np.float64)).min() < 0
    assert frechet_distance(stored, fitted) < 1e-4 * np.trace(fitted.cov)


@pytest.mark.parametrize(("count", "width"), [(74, 64), (266, 256)])
def test_features_of_very_different_scales(count, width):
    a = normal(0, count, width)
    a[:, 0] *= 1e6
    b = normal(1, count, width)
    b[:, 0] = a[:, 0]

    # tr (C1 C2)^1/2 is the sum of the singular values of X1 X2^T, for centred samples.
    def root(x):
        return (x - x.mean(0)) / np.sqrt(count - 1)

    cross = np.linalg.svd(root(a) @ root(b).T, compute_uv=False).sum()
    total = np.sum(root(a) ** 2) + np.sum(root(b) ** 2)
    exact = np.sum((a.mean(0) - b.mean(0)) ** 2) + total - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(exact, abs=0.01)


def test_far_apart_clusters_are_not_inside_of_each_other():
    x = normal(0, 100, 8)
    y = normal(1, 100, 8) + 30
    for far in (1e5, 1e7, 1e9, 1e12):
        shift = np.where(np.arange(100) < 50, 0, far)[:, None]
        assert precision_recall(x + shift, y + shift) == (0, 0), far


def test_labels_beyond_64_bits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="labels has numbers beyond int64"):
        save_npz(tmp_path / "a.npz", IMAGES, np.full(10, 2**63, np.uint64))
