"""Data files, and their batches: the same for a seed and a step, however they are reached."""

import gzip
import itertools
import struct
import sys
import threading
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import cmjax
from cmjax.images import from_uint8
from cmjax.training import array_files, config, data, inspection, setup, sources

SCHEDULER = cmjax.CMStochasticIterativeScheduler()

IMAGES, LABELS = np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.array([7, 1], np.uint8)


class Numbers:
    """Somebody's own source: record i is the number i."""

    def __init__(self, count, **changed):
        self.count, self.changed = (
            count,
            {int(name[1:]): record for name, record in changed.items()},
        )

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.changed.get(
            index, {"data": np.full(2, index, np.float32), "class_labels": index % 3}
        )


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def numbers(batches):
    return np.concatenate([batch["data"][:, 0] for batch in batches]).astype(int).tolist()


def assert_equal(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            assert batch[name].dtype == other[name].dtype
            np.testing.assert_array_equal(batch[name], other[name])


def test_epochs_are_permutations_that_differ():
    orders = []
    for seed in range(3):
        read = numbers(
            take(data.batches(Numbers(50), 20, seed=seed), 10)
        )  # batches of 20 span epochs of 50
        epochs = [read[i : i + 50] for i in range(0, 200, 50)]
        assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
        orders += map(tuple, epochs)
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize("start", [1, 2, 7, 40])
def test_resumed_batches_are_those_of_an_uninterrupted_run(start):
    source = sources.Arrays(
        np.random.default_rng(0).integers(0, 256, (10, 4, 4, 1), np.uint8),
        np.arange(10, dtype=np.int32),
    )
    straight = take(data.batches(source, 4, seed=3, flip=True), start + 3)
    assert_equal(
        take(data.batches(source, 4, seed=3, flip=True, start=start), 3), straight[start:]
    )


@pytest.mark.parametrize("count", [2, 3, 6])
def test_any_number_of_processes_shares_the_same_batches(count):
    images = sources.Arrays(
        np.random.default_rng(0).standard_normal((20, 3, 2, 1), np.float32)
    )
    for source, flip in ((Numbers(20), False), (images, True)):
        options = {"seed": 0, "start": 5, "flip": flip}
        whole = take(data.batches(source, 12, **options), 4)
        shares = [
            take(
                data.batches(source, 12, process_index=i, process_count=count, **options), 4
            )
            for i in range(count)
        ]
        assert all(len(batch["data"]) == 12 // count for share in shares for batch in share)
        joined = [
            {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            for parts in zip(*shares, strict=True)
        ]
        assert_equal(joined, whole)


def test_batches_hold_what_the_records_hold():
    batch = next(data.batches(Numbers(20), 5, seed=0, num_classes=3))
    assert batch["data"].dtype == np.float32 and batch["class_labels"].dtype == np.int32
    np.testing.assert_array_equal(batch["class_labels"], batch["data"][:, 0] % 3)

    pixels = [{"data": Image.new("L", (3, 2), i), "text": np.full(7, i)} for i in range(4)]
    batch = next(data.batches(pixels, 4, seed=0))
    assert batch.keys() == {"data", "text"} and batch["data"].shape == (4, 2, 3)
    np.testing.assert_array_equal(batch["data"][:, 0, 0], from_uint8(batch["text"][:, 0]))

    halves = [{"data": np.ones(2, jnp.bfloat16)}]
    assert next(data.batches(halves, 1, seed=0))["data"].dtype == np.float32


def test_about_half_of_the_images_are_mirrored_and_every_epoch_others():
    """64 images twice: each count is beyond 5 sigma of 32 once in a million."""
    images = np.stack(
        [np.arange(12, dtype=np.float32).reshape(2, 2, 3) + 12 * i for i in range(64)]
    )
    epochs = []
    for batch in take(data.batches(sources.Arrays(images), 64, seed=0, flip=True), 2):
        index = batch["data"].min((1, 2, 3)).astype(int) // 12
        flipped = np.array(
            [
                not np.array_equal(image, images[i])
                for image, i in zip(batch["data"], index, strict=True)
            ]
        )
        np.testing.assert_array_equal(
            batch["data"][flipped], images[index[flipped], :, ::-1]
        )
        assert 12 <= flipped.sum() <= 52
        epochs.append((flipped, flipped[np.argsort(index)]))
    assert not any(
        np.array_equal(*pair) for pair in zip(*epochs, strict=True)
    )  # by place, by image


def test_records_are_read_ahead_by_threads_that_end_with_the_iterator():
    readers, ahead = [], threading.Event()

    class Watched(Numbers):
        def __getitem__(self, index):
            readers.append(threading.current_thread())
            if len(readers) > 4:  # more than the batch that was asked for
                ahead.set()
            return super().__getitem__(index)

    before = set(threading.enumerate())
    iterator = data.batches(Watched(20), 4, seed=0)
    next(iterator)
    started = set(threading.enumerate()) - before
    assert ahead.wait(30)
    assert set(list(readers)) <= started
    del iterator
    for thread in started:
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 60}, "batch_size 60 is larger than the data set of 50"),
        ({"batch_size": 0}, "batch_size must be an integer from 1 to 2147483647, got 0"),
        ({"seed": -1}, "seed must be an integer from 0 to 4294967295, got -1"),
        ({"start": -1}, "start must be an integer from 0 to 2147483647, got -1"),
        (
            {"process_count": 3, "process_index": 0},
            "batch_size 10 does not divide over 3 processes",
        ),
        (
            {"process_count": 2, "process_index": 2},
            "process_index must be from 0 to 1 for 2 processes, got 2",
        ),
    ],
)
def test_wrong_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        data.batches(Numbers(50), **{"batch_size": 10, "seed": 0, **options})


class NoArray:
    """As PyTorch's bfloat16, which NumPy has not."""

    def __array__(self, *args, **kwargs):
        raise TypeError("no such type")


@pytest.mark.parametrize(
    "record, message",
    [
        (
            {"data": np.array([0, np.nan], np.float32), "class_labels": 0},
            "record 5 of the data is not finite",
        ),
        (
            {"data": np.array([np.inf, 0], np.float32), "class_labels": 0},
            "record 5 of the data is not finite",
        ),
        (
            {"data": np.zeros(2, np.float32), "class_labels": 3},
            "record 5 .* label 3; .* below num_classes 3",
        ),
        (
            {"data": np.zeros(2, np.float32), "class_labels": -1},
            "record 5 .* label -1; labels must be 0 or more",
        ),
        ({"data": np.zeros(2, np.float32)}, r"record 5 .* \['data'\], "),
        (
            {"data": np.zeros(3, np.float32), "class_labels": 0},
            r"record 5 .* data float32\[3\], but .* float32\[2\]",
        ),
        (
            {"data": np.zeros(2, np.uint8), "class_labels": 0},
            r"record 5 .* data uint8\[2\], but .* float32\[2\]",
        ),
        (
            {"data": np.zeros(2, np.float32), "class_labels": 0.5},
            r"record 5 .* class_labels float64\[\], but .* int64",
        ),
        (
            {"class_labels": 0},
            r'record 5 of the data must be a mapping with "data", got .*class_labels',
        ),
        (
            np.zeros(2, np.float32),
            'record 5 of the data must be a mapping with "data", got .ndarray',
        ),
        (
            {"data": np.zeros(2, np.float32), "class_labels": 0, 1: 0},
            r"record 5 of the data has \['1', 'class_labels', 'data'\]",
        ),
        (
            {"data": NoArray(), "class_labels": 0},
            "record 5 of the data has data that NumPy cannot hold: no such type",
        ),
    ],
)
def test_bad_records_are_named(record, message):
    source, seed = Numbers(6, _5=record), 0
    while numbers(take(data.batches(Numbers(6), 6, seed=seed), 1))[0] == 5:
        seed += 1  # the first record is what the others are compared with
    with pytest.raises(ValueError, match=message):
        next(data.batches(source, 6, seed=seed, num_classes=3))


@pytest.mark.parametrize(
    "record, message",
    [
        (
            {"data": np.zeros(2, np.int32)},
            "record 0 of the data is int32; give pixels as uint8",
        ),
        (
            {"data": np.zeros(2, np.float32), "class_labels": 0.5},
            "record 0 .* one integer label, got float64",
        ),
        (
            {"data": np.zeros(2, np.float32), "class_labels": np.eye(3, dtype=int)[0]},
            r"record 0 .* got int64\[3\]",
        ),
        (
            {"data": np.zeros(2, np.float32), "class_labels": -1},
            "record 0 .* label -1; labels must be 0 or more",
        ),
    ],
)
def test_data_that_is_wrong_throughout(record, message):
    with pytest.raises(ValueError, match=message):
        next(data.batches([record], 1, seed=0))


@pytest.mark.parametrize(
    "source", [{"data": np.zeros((8, 2))}, ({"data": np.zeros(2)} for _ in range(8)), None]
)
def test_sources_that_are_none(source):
    with pytest.raises(ValueError, match="source must have a __len__ and a __getitem__"):
        data.batches(source, 2, seed=0)


def test_masks_are_not_passed_over():
    masked = {"data": np.ma.masked_array(np.ones(2, np.float32), [True, False])}
    with pytest.raises(ValueError, match="record 0 of the data has data with a mask"):
        data.collate([masked], [0])


def test_flip_is_for_images():
    with pytest.raises(
        ValueError, match=r"flip needs images \[H, W, C\], got data of shape \(2,\)"
    ):
        next(data.batches(Numbers(4), 2, seed=0, flip=True))


def test_without_grain_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ValueError, match="pip install grain"):
        data.batches(Numbers(4), 2, seed=0)

    # A run says so before it looks at the data, which may take a while.
    with pytest.raises(ValueError, match="pip install grain"):
        setup.make_run(config.read_config("digits", [("data.source", "nowhere.npz")]))


def write_idx(path, array, opener=open):
    with opener(path, "wb") as file:
        file.write(
            bytes([0, 0, 8, array.ndim])
            + struct.pack(f">{array.ndim}I", *array.shape)
            + array.tobytes()
        )


def contents(source):
    records = [source[i] for i in range(len(source))]
    labels = [record["class_labels"] for record in records if "class_labels" in record]
    return np.stack([record["data"] for record in records]), labels


@pytest.mark.parametrize("opener", [open, gzip.open])
def test_idx_files(tmp_path, opener):
    write_idx(tmp_path / "train-images-idx3-ubyte", IMAGES, opener)
    assert contents(sources.open_source(tmp_path / "train-images-idx3-ubyte"))[1] == []
    write_idx(tmp_path / "train-labels-idx1-ubyte", LABELS, opener)
    images, labels = contents(sources.open_source(tmp_path / "train-images-idx3-ubyte"))
    np.testing.assert_array_equal(images, IMAGES[..., None])
    assert labels == [7, 1] and labels[0].dtype == np.int32


@pytest.mark.parametrize("names", array_files.NPZ_NAMES)
def test_npz_files(tmp_path, names):
    np.savez(tmp_path / "a.npz", **dict(zip(names, (IMAGES, LABELS[:, None]), strict=True)))
    images, labels = contents(sources.open_source(tmp_path / "a.npz"))
    assert images.shape == (2, 3, 4, 1) and images.dtype == np.uint8 and labels == [7, 1]
    np.savez(tmp_path / "b.npz", **{names[0]: IMAGES})
    assert contents(sources.open_source(tmp_path / "b.npz"))[1] == []


def test_npz_files_of_floats_are_taken_as_they_are(tmp_path):
    points = np.random.default_rng(0).standard_normal((5, 2))
    np.savez(tmp_path / "a.npz", images=points)
    values, _ = contents(sources.open_source(tmp_path / "a.npz"))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, points.astype(np.float32))


@pytest.mark.parametrize(
    "arrays, message",
    [
        (
            {"pictures": IMAGES},
            r"neither 'x_train' nor 'images' nor 'arr_0', but \['pictures'\]",
        ),
        (
            {"images": IMAGES.astype(np.int64)},
            r"u8\[N, H, W\(, C\)\] or floats \[N, ...\], got int64\[2, 3, 4\]",
        ),
        ({"images": IMAGES[:0]}, r"got uint8\[0, 3, 4\]"),
        ({"images": IMAGES[0]}, r"got uint8\[3, 4\]"),
        ({"images": IMAGES}, "images of 4x3, but 8x8 are wanted"),
        (
            {"images": np.array([[0, 1], [2, np.nan], [np.inf, 0]])},
            "sample 1 is not finite",
        ),
        ({"images": np.array([[0, 1], [2, 1e300]])}, "sample 1 is not finite in float32"),
        (
            {"images": np.ones((2, 2)), "labels": np.array([1, 2, 3])},
            r"each of 2 samples, got int64\[3\]",
        ),
        (
            {"images": np.ones((2, 2)), "labels": np.array([0.5, 1])},
            r"an integer label for each .* got float64\[2\]",
        ),
        (
            {"images": np.array([None, None])},
            "is not an .npz that can be read: Object arrays",
        ),
    ],
)
def test_bad_npz_files(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=f"a.npz.*{message}"):
        sources.open_source(tmp_path / "a.npz", 8)


def test_the_ending_of_a_name_may_be_in_capitals(tmp_path):
    with (tmp_path / "A.NPZ").open("wb") as file:
        np.savez(file, images=IMAGES)
    assert len(sources.open_source(tmp_path / "A.NPZ")) == 2


def test_an_archive_of_other_things_than_arrays(tmp_path):
    """NumPy returns their bytes, or the array of a .npy, without an error."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images", "no array")
    with pytest.raises(ValueError, match="a.npz .* its entry 'images' is no array"):
        sources.open_source(path)
    with path.open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(ValueError, match="a.npz .* it holds a single array"):
        sources.open_source(path)


def test_broken_files_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES)
    whole = (tmp_path / "a.npz").read_bytes()
    for broken in (whole[:-30], b"", b"hello"):
        (tmp_path / "a.npz").write_bytes(broken)
        with pytest.raises(ValueError, match=r"a.npz is not an .npz that can be read"):
            sources.open_source(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", IMAGES)
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"a.npz is not an .npz that can be read"):
        sources.open_source(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError, match="none.npz"):
        sources.open_source(tmp_path / "none.npz")

    (tmp_path / "text-images").write_text("hello")
    with pytest.raises(ValueError, match="neither an .npz nor an IDX"):
        array_files.read_idx(tmp_path / "text-images")
    write_idx(tmp_path / "cut", IMAGES)
    for length, message in (
        (-5, r"\(2, 3, 4\) but holds 19"),
        (9, "neither an .npz nor an IDX"),
    ):
        (tmp_path / "part").write_bytes((tmp_path / "cut").read_bytes()[:length])
        with pytest.raises(ValueError, match=message):
            array_files.read_idx(tmp_path / "part")
    write_idx(tmp_path / "cut.gz", IMAGES, gzip.open)
    (tmp_path / "cut.gz").write_bytes((tmp_path / "cut.gz").read_bytes()[:-10])
    with pytest.raises(ValueError, match="cut.gz is broken or cut short"):
        array_files.read_idx(tmp_path / "cut.gz")


def picture(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (level,) * 3).save(path)


def test_a_folder_of_pictures(tmp_path):
    for level, name in enumerate(("c.jpg", "a.png", "b.PNG", "._a.png")):
        picture(tmp_path / name, level)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no picture")
    images, labels = contents(sources.open_source(tmp_path, 4))
    assert images.shape == (3, 4, 4, 3) and images.dtype == np.uint8 and labels == []
    assert images[:, 0, 0, 0].tolist() == [1, 2, 0]
    assert contents(sources.open_source(tmp_path, 4, channels=1))[0].shape == (3, 4, 4, 1)


def test_pictures_of_every_format_are_found(tmp_path):
    """Those with another ending than .png would be left out, without a word."""
    for name in (
        "a.png",
        "b.JPG",
        "c.bmp",
        "d.gif",
        "e.tif",
        "f.TIFF",
        "g.webp",
        "h.jp2",
    ):
        Image.new("L", (8, 8), 100).save(tmp_path / name)
    found = sources.open_source(tmp_path, 8, 1)
    pixels = np.stack([found[i]["data"] for i in range(len(found))])
    assert len(found) == 8 and abs(pixels.astype(int) - 100).max() <= 2


def test_folders_of_pictures_are_classes(tmp_path):
    for level, name in enumerate(
        ("dog/2.png", "dog/1.png", "cat/old/3.png", ".trash/0.png", "cat/.trash/0.png")
    ):
        picture(tmp_path / name, level)
    (tmp_path / "README.txt").write_text("cats and dogs")
    source = sources.open_source(tmp_path, 4)
    images, labels = contents(source)
    assert isinstance(source, sources.Pictures) and source.classes == ["cat", "dog"]
    assert images[:, 0, 0, 0].tolist() == [2, 1, 0] and labels == [0, 1, 1]
    batch = next(data.batches(source, 3, seed=0, num_classes=2))
    assert batch["data"].shape == (3, 4, 4, 3) and sorted(
        batch["class_labels"].tolist()
    ) == [
        0,
        1,
        1,
    ]
    with pytest.raises(
        ValueError, match="label 1; labels must be 0 or more, below num_classes 1"
    ):
        next(data.batches(source, 3, seed=0, num_classes=1))


def test_pictures_are_read_only_when_they_are_wanted_and_a_broken_one_is_named(tmp_path):
    picture(tmp_path / "a.png", 0)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    source = sources.open_source(tmp_path, 4)
    assert source[0]["data"].shape == (4, 4, 3)
    with pytest.raises(ValueError, match="b.png"):
        next(data.batches(source, 2, seed=0))


def test_bad_folders(tmp_path):
    with pytest.raises(
        ValueError, match="must hold pictures .*, or a folder of them for each class"
    ):
        sources.open_source(tmp_path, 4)
    picture(tmp_path / "cat" / "a.png", 0)
    with pytest.raises(ValueError, match="needs a size"):
        sources.open_source(tmp_path)
    with pytest.raises(ValueError, match="1 or 3 channels, but 4 are wanted; .* encode"):
        sources.open_source(tmp_path, 4, channels=4)
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match="dog is a class without pictures .*; remove it"):
        sources.open_source(tmp_path, 4)
    picture(tmp_path / "b.png", 0)
    with pytest.raises(
        ValueError, match="pictures and also folders of pictures.*move .*b.png into one"
    ):
        sources.open_source(tmp_path, 4)


def test_parts_of_a_data_set_are_no_classes(tmp_path):
    for level, name in enumerate(("Train/cat/a.png", "Train/dog/b.png", "test/cat/c.png")):
        picture(tmp_path / name, level)
    with pytest.raises(ValueError, match="Train, test: the parts .* give .*Train"):
        sources.open_source(tmp_path, 4)
    assert sources.open_source(tmp_path / "Train", 4).classes == ["cat", "dog"]
    (tmp_path / "Train").rename(tmp_path / "truck")
    assert sources.open_source(tmp_path, 4).classes == ["test", "truck"]


def test_labels_under_another_name_are_named_where_labels_are_wanted(tmp_path):
    for arrays, said in (
        (
            {"x_train": IMAGES, "labels": LABELS},
            "if 'labels' .* 'x_train', name .* 'y_train'",
        ),
        ({"images": IMAGES, "label": LABELS}, "if 'label' .* 'images', name them 'labels'"),
        ({"x_train": IMAGES, "images": IMAGES, "labels": LABELS}, "num_class_embeds$"),
        ({"images": IMAGES}, "num_class_embeds$"),
    ):
        np.savez(tmp_path / "a.npz", **arrays)
        source = sources.open_source(tmp_path / "a.npz")
        inspection.inspect(source, None, SCHEDULER)
        with pytest.raises(ValueError, match=f"no labels, .*{said}"):
            inspection.inspect(source, 2, SCHEDULER)


def test_a_folder_around_the_classes_is_named(tmp_path):
    for level, name in enumerate(("all/cat/a.png", "all/dog/b.png")):
        picture(tmp_path / name, level)
    source = sources.open_source(tmp_path, 4)
    inspection.inspect(source, None, SCHEDULER)  # without classes, folders are no matter
    with pytest.raises(ValueError, match=r"one folder, all, .*\(cat, dog\).*give .*all"):
        inspection.inspect(source, 1, SCHEDULER)
    assert sources.open_source(tmp_path / "all", 4).classes == ["cat", "dog"]

    # With a picture beside them, they are folders of one class.
    picture(tmp_path / "all" / "c.png", 2)
    inspection.inspect(sources.open_source(tmp_path, 4), 1, SCHEDULER)


def test_links_to_folders_are_followed_once(tmp_path):
    picture(tmp_path / "elsewhere" / "more" / "b.png", 1)
    picture(tmp_path / "data" / "cat" / "run_5" / "a.png", 0)
    cat = tmp_path / "data" / "cat"
    (cat / "linked").symlink_to(tmp_path / "elsewhere")
    (cat / "again").symlink_to(tmp_path / "elsewhere")
    (cat / "latest").symlink_to(cat / "run_5")
    found = [file for file, _ in sources.open_source(tmp_path / "data", 4).files]
    assert found == [str(cat / "again/more/b.png"), str(cat / "run_5/a.png")]

    # A link that leads around again is named, and not what it leads to.
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    with pytest.raises(ValueError, match="again/back leads to .*data, in which it lies"):
        sources.open_source(tmp_path / "data", 4)


def test_files_that_are_no_pictures_are_counted(tmp_path):
    picture(tmp_path / "cat" / "a.png", 0)
    for name in ("cat/b.heic", "cat/c.HEIC", "cat/.hidden.heic", "README"):
        (tmp_path / name).write_text("no picture")
    assert sources.open_source(tmp_path, 4).left_out == {".heic": 2, "no ending": 1}


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    picture(tmp_path / "a.png", 0)
    (tmp_path / "b.png").symlink_to("blobs/b")
    with pytest.raises(ValueError, match="b.png is a link to blobs/b, which is not there"):
        sources.open_source(tmp_path, 4)


def test_pixels_map_to_minus_one_and_one():
    np.testing.assert_allclose(from_uint8(np.array([0, 255], np.uint8)), [-1, 1])


def test_flip_does_not_part_arrays_of_one_picture():
    picture = np.arange(8, dtype=np.float32).reshape(2, 4, 1)
    for name, message in (
        ("data_std", "flip would part latents from their data_std"),
        ("low_res", "flip would mirror data, but not low_res"),
        ("mask", "flip would mirror data, but not mask"),
    ):
        other = picture[..., 0] if name == "mask" else picture
        records = [{"data": picture, name: other}] * 4
        with pytest.raises(ValueError, match=message):
            next(data.batches(records, 4, seed=0, flip=True))
        next(data.batches(records, 4, seed=0))


def test_what_goes_with_the_data_is_finite_too():
    records = [{"data": np.zeros(2, np.float32), "state": np.zeros(3)} for _ in range(4)]
    records[2]["state"] = np.array([0, np.nan, 0])
    with pytest.raises(ValueError, match="state of record 2 of the data is not finite"):
        next(data.batches(records, 4, seed=0))


def test_a_text_is_not_called_a_pickle(tmp_path):
    path = tmp_path / "page.npz"
    path.write_text("<html>404</html>")
    with pytest.raises(ValueError, match="neither an archive nor an array of NumPy"):
        sources.open_source(path)
