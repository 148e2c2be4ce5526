"""Mutated folders of Orbax, and zips of them: each loads as a model, or is an error of ours."""

import functools
import json
import random
import shutil
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from cmjax.checkpoints import open_checkpoint
from cmjax.checkpoints.orbax_folder import METADATA
from tests.support import flax_files
from tests.support.mutations import changed_bytes, seeds
from tests.support.outcomes import loads_or_is_refused, networks_made_once, traced

COUNTS = {}  # what became of the models, for whoever wants to know: pytest -s
WRITERS = {
    "file": flax_files.write_orbax_0_4,
    "zarr 2": flax_files.write_orbax,
    "zarr 3": functools.partial(flax_files.write_orbax, use_zarr3=True),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A small network of improved MeanFlow by every version of Orbax, and zips of them."""
    root = tmp_path_factory.mktemp("orbax")
    state = flax_files.state("improved_mean_flow")
    made = {}
    for kind, write in WRITERS.items():
        folder = write(root / kind, state)
        archive = shutil.make_archive(str(root / f"{kind} zip"), "zip", folder)
        made[kind] = folder, Path(archive).read_bytes()
    yield made
    for what, counts in sorted(COUNTS.items()):
        print(f"\n{what}: {dict(counts)}", end="")


@pytest.fixture(scope="module", autouse=True)
def one_network_and_traced_memory():
    with networks_made_once(), traced():
        yield


@pytest.fixture
def aside(tmp_path, monkeypatch):
    """Where archives are unpacked, which must be empty afterwards."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def load(what, path, aside):
    """Loads a model of changed files, or is refused."""
    counts = COUNTS.setdefault(what, Counter())
    with loads_or_is_refused(path, counts):
        open_checkpoint(path).load()
    assert not list(aside.iterdir())


def copied(sources, kind, tmp_path):
    """A copy of a folder, to be harmed."""
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(sources[kind][0], copy)
    return copy


def files_of(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("kind", WRITERS)
def test_what_was_not_changed_loads(sources, tmp_path, aside, kind):
    """Or all of the below could be refusals of something else."""
    folder = copied(sources, kind, tmp_path)
    load(f"{kind}, whole", folder, aside)
    archive = tmp_path / "x.zip"
    archive.write_bytes(sources[kind][1])
    load(f"{kind}, whole", archive, aside)
    assert COUNTS[f"{kind}, whole"] == {"loaded": 2}


@pytest.mark.parametrize("kind", WRITERS)
def test_bytes_of_the_files_of_a_folder(sources, tmp_path, aside, kind):
    for seed in seeds(100):
        rng = random.Random(seed)
        folder = copied(sources, kind, tmp_path)
        for _ in range(rng.randint(1, 2)):
            file = rng.choice(files_of(folder))
            file.write_bytes(changed_bytes(rng, file.read_bytes()))
        load(f"{kind}, bytes", folder, aside)


@pytest.mark.parametrize("kind", WRITERS)
def test_bytes_of_the_zip_of_a_folder(sources, tmp_path, aside, kind):
    path = tmp_path / "x.zip"
    for seed in seeds(100):
        path.write_bytes(changed_bytes(random.Random(seed), sources[kind][1]))
        load(f"{kind}, bytes of a zip", path, aside)


@pytest.mark.parametrize("kind", WRITERS)
def test_zips_of_mutated_folders(sources, tmp_path, aside, kind):
    """With sums that are right again, or none of these would be read."""
    for seed in seeds(50):
        rng = random.Random(seed)
        folder = copied(sources, kind, tmp_path)
        file = rng.choice(files_of(folder))
        file.write_bytes(changed_bytes(rng, file.read_bytes()))
        archive = shutil.make_archive(str(tmp_path / "x"), "zip", folder)
        load(f"{kind}, zip of mutated files", Path(archive), aside)


NAMES = ["..", "../x", "checkpoint_3", "_METADATA", "a\nb", "x" * 300, "c:x", "\u202e"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_of_the_files_in_a_zip(sources, tmp_path, aside):
    path = tmp_path / "x.zip"
    for seed in seeds(100):
        rng = random.Random(seed)
        folder = sources[rng.choice(sorted(WRITERS))][0]
        names = [str(file.relative_to(folder)) for file in files_of(folder)]
        entries = [(name, (folder / name).read_bytes()) for name in names]
        for _ in range(rng.randint(1, 3)):
            if not entries:
                break
            name, content = entries.pop(rng.randrange(len(entries)))
            parts = name.split("/")
            where = rng.randrange(len(parts))
            match rng.choice(["remove", "rename", "double", "deeper"]):
                case "rename":
                    parts[where] = rng.choice([*NAMES, f"/{tmp_path}", str(tmp_path)])
                    entries.append(("/".join(parts), content))
                case "double":
                    entries += [(name, content), (name, content)]
                case "deeper":
                    parts.insert(where, "9")
                    entries.append(("/".join(parts), content))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries:
                archive.writestr(name, content)
        load("names in a zip", path, aside)
        assert {file.name for file in tmp_path.iterdir()} == {"x.zip", aside.name}


VALUES = [
    *(None, True, False, 0.5, float("nan"), "", "x", "\n", [], [[]], {}, {"x": {}}),
    *(-1, 0, 1, 2, 3, 32, 33, 2**20, 2**31 - 2, 2**31, 2**39, 2**62, 10**30),
    *([], [0], [2**39], [2**31 - 2, 32], [2**20, 2**10], [-1, 3], [1] * 33),
    *("<f4", "<f8", ">f4", "bfloat16", "<c8", "|O", "float32", "float64", "C", "F"),
    *("zstd", "zlib", "blosc", "gzip", "bytes", "sharding_indexed", "params", "np.ndarray"),
]


def changed(rng, tree):
    """A JSON value with a part of it changed, at any depth."""
    if isinstance(tree, dict) and tree and rng.random() < 0.75:
        name = rng.choice(sorted(tree))
        match rng.choice(["inside", "inside", "inside", "remove", "rename"]):
            case "remove":
                return {key: value for key, value in tree.items() if key != name}
            case "rename":
                return {**tree, rng.choice([*sorted(tree), "x"]): tree[name]}
        return {**tree, name: changed(rng, tree[name])}
    if isinstance(tree, list) and tree and rng.random() < 0.75:
        at = rng.randrange(len(tree))
        return [*tree[:at], changed(rng, tree[at]), *tree[at + 1 :]]
    return rng.choice(VALUES)


@pytest.mark.parametrize("kind", WRITERS)
def test_values_of_the_names(sources, tmp_path, aside, kind):
    for seed in seeds(50):
        rng = random.Random(seed)
        folder = copied(sources, kind, tmp_path)
        file = folder / "checkpoint_3" / METADATA
        content = json.loads(file.read_text())
        for _ in range(rng.randint(1, 2)):
            content = changed(rng, content)
        file.write_text(json.dumps(content))
        load(f"{kind}, names", folder, aside)


def test_a_claim_of_more_than_the_files_hold(sources, tmp_path):
    """Of a table of classes, whose length tells the number of classes: it fits the network."""
    import tensorstore

    folder = copied(sources, "zarr 2", tmp_path)
    base = {"driver": "file", "path": f"{folder / 'checkpoint_3'}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    table = "ema_params.net.y_embedder.embedding_table._flax_embedding.embedding/.zarray"
    description = json.loads(store.read(table).result().value)
    sizes = [2**31 - 2, description["shape"][1]]
    description |= {"shape": sizes, "chunks": sizes}
    store.write(table, json.dumps(description)).result()
    with pytest.raises(ValueError, match=r"claims arrays of 2748\d+ bytes in files of"):
        open_checkpoint(folder).load()


@pytest.mark.parametrize("kind", ["zarr 2", "zarr 3"])
def test_entries_of_the_database(sources, tmp_path, aside, kind):
    """Descriptions and values, in a database that is whole: its sums are right again."""
    import tensorstore

    for seed in seeds(100):
        rng = random.Random(seed)
        folder = copied(sources, kind, tmp_path)
        base = {"driver": "file", "path": f"{folder / 'checkpoint_3'}/"}
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        keys = sorted(store.list().result())

        # Mostly of the parameters that are read, and as often a description as values.
        for _ in range(rng.randint(1, 2)):
            described = rng.random() < 0.5
            key = rng.choice(
                [
                    key
                    for key in keys
                    if key.endswith((b".zarray", b"zarr.json")) == described
                    and (key.startswith(b"ema_params") or rng.random() < 0.2)
                ]
            )
            value = store.read(key).result().value
            if described and value and rng.random() < 0.8:
                value = json.dumps(changed(rng, json.loads(value))).encode()
            else:
                value = changed_bytes(rng, value)
            store.write(key, value if rng.random() < 0.95 else None).result()
        load(f"{kind}, entries", folder, aside)
