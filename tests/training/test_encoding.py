"""Encoded data sets: what a folder holds, that it resumes, and that trainers draw from it."""

import dataclasses
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from click.testing import CliRunner
from PIL import Image

import cmjax
from cmjax import cli
from cmjax.training import config, reports, setup, trainer
from cmjax.training.encoding import encode_folder
from cmjax.training.inspection import inspect
from cmjax.training.latents import draw_latents
from cmjax.training.moments import Moments
from cmjax.training.run import train
from cmjax.training.sources import Arrays, check_outside, open_source
from tests.support.autoencoders import KL, TINY, autoencoder
from tests.support.cli import assert_one_line, succeeded
from tests.support.generation import launched_command, shards_of, wait_for

# A single resolution compiles in a fraction of the time.
SMALL = dataclasses.replace(
    KL,
    down_block_types=("DownEncoderBlock2D",),
    up_block_types=("UpDecoderBlock2D",),
    block_out_channels=(4,),
    mid_block_add_attention=False,
)
TOML = """
[network]
class = "DiT"
num_layers = 1
num_attention_heads = 1
attention_head_dim = 8
patch_size = 4
sample_size = 8
in_channels = 4
out_channels = 4
time_scale = 0.01
num_class_embeds = 3

[scheduler]
clip_denoised = false

[run]
steps = 4
batch_size = 8
log_every = 1
save_every = 2
sample_every = 4
"""


def data(num=11):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (num, 8, 8, 3), np.uint8)
    return Arrays(pixels, np.arange(num, dtype=np.int32) % 3)


@pytest.fixture(autouse=True)
def two_devices(monkeypatch):
    """Eight simulated devices on few cores take their time."""
    local_devices = jax.local_devices
    monkeypatch.setattr(jax, "local_devices", lambda *a, **k: local_devices(*a, **k)[:2])
    monkeypatch.setattr(setup, "data_mesh", lambda: trainer.data_mesh(jax.devices()[:2]))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """A folder of 22 pictures, half of them mirrored, encoded one by one on one device."""
    out = tmp_path_factory.mktemp("encoded") / "out"
    with pytest.MonkeyPatch.context() as patched:
        devices = jax.local_devices()[:1]
        patched.setattr(jax, "local_devices", lambda *args, **kwargs: devices)
        encode_folder(
            out, autoencoder(SMALL), data(), batch_size=1, shard_size=4, flip=True
        )
    return out


@pytest.fixture
def out(tmp_path, encoded):
    """A copy of that folder, to be harmed."""
    return shutil.copytree(encoded, tmp_path / "out")


def test_a_folder_holds_the_moments_of_every_picture(encoded):
    pixels = cmjax.images.from_uint8(data().data)
    both = np.stack([pixels, pixels[:, :, ::-1]], axis=1).reshape(22, 8, 8, 3)
    mean, std = autoencoder(SMALL).moments(both)

    # As records of a training, and as any program reads them.
    moments = open_source(encoded)
    assert isinstance(moments, Moments) and len(moments) == 22
    for index in (0, 3, 21):
        record = moments[index]
        np.testing.assert_allclose(record["data"], mean[index], atol=1e-6)
        np.testing.assert_allclose(record["data_std"], std[index], rtol=1e-5)
        assert record["class_labels"] == index // 2 % 3
    np.testing.assert_array_equal(moments.labels(), np.arange(22) // 2 % 3)
    paths = shards_of(encoded)
    assert [path.name[:19] for path in paths][:2] == [
        "000000000-000000003",
        "000000004-000000007",
    ]
    with np.load(paths[-1]) as arrays:
        assert {name: arrays[name].dtype for name in arrays} == {
            "mean": np.float32,
            "std": np.float32,
            "labels": np.int32,
        }
        np.testing.assert_array_equal(arrays["mean"][1], moments[21]["data"])

    # It carries its decoder.
    found = moments.autoencoder()
    assert found.config == SMALL
    jax.tree.map(np.testing.assert_array_equal, found, autoencoder(SMALL))


def test_a_run_resumes_bit_for_bit_in_other_batches_on_other_devices(out, encoded):
    first, second, *_ = shards_of(out)
    first.unlink()
    content = bytearray(second.read_bytes())
    content[-900] ^= 1
    second.write_bytes(content)
    said = []
    options = {"batch_size": 3, "flip": True}
    outcome = encode_folder(out, autoencoder(SMALL), data(), report=said.append, **options)
    assert (outcome.num_done, outcome.num_resumed, outcome.num_made) == (22, 14, 8)
    assert "its moments are made again" in said[0]

    # The names have the digests of the content.
    names = [path.name for path in shards_of(out) if path.suffix]
    assert names == [path.name for path in shards_of(encoded)]
    assert Moments(out).fingerprint() == Moments(encoded).fingerprint()


def test_a_folder_of_something_else_is_refused(out, tmp_path):
    vae = autoencoder(SMALL)
    with pytest.raises(
        ValueError, match="holds moments made with other settings: num was 22"
    ):
        encode_folder(out, vae, data())
    with pytest.raises(ValueError, match="other settings: autoencoder was"):
        encode_folder(out, autoencoder(SMALL, seed=1), data(), flip=True)
    with pytest.raises(ValueError, match="holds 'moments', not samples"):
        cmjax.generation.generate_folder(
            out, cmjax.load(), cmjax.generation.Request(labels=[1]), 4
        )
    shutil.rmtree(out / "vae")
    (out / "vae").mkdir()
    with pytest.raises(
        ValueError, match="vae is there, but is not the autoencoder of this"
    ):
        encode_folder(out, vae, data(), flip=True)


def test_what_is_missing_or_damaged_shows_before_a_training(out):
    path = shards_of(out)[2]
    moments = Moments(out)
    content = path.read_bytes()
    path.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    scheduler = cmjax.CMStochasticIterativeScheduler()
    with pytest.raises(ValueError, match="is damaged; run the same encode_folder again"):
        inspect(moments, 3, scheduler)
    with pytest.raises(
        ValueError, match="has label 2; labels must be 0 or more, below num"
    ):
        inspect(moments, 2, scheduler)
    path.write_bytes(content[:900])
    with pytest.raises(
        ValueError, match="no shard: File is not a zip .*; run the same encode"
    ):
        Moments(out)[8]
    path.unlink()
    with pytest.raises(ValueError, match="holds 18 of 22 moments; run the same encode_fol"):
        Moments(out)
    cmjax.save_autoencoder(out / "vae", autoencoder(SMALL, seed=1))
    shutil.copy(shards_of(out)[0], path)
    with pytest.raises(ValueError, match="vae is not the autoencoder that encoded"):
        moments.autoencoder()
    shutil.rmtree(out / "vae")
    with pytest.raises(ValueError, match="vae is missing; put it back, or name the"):
        moments.autoencoder()
    (out / "manifest.json").write_bytes(b"{")
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        open_source(out, 4, 4)


def test_nothing_is_written_into_the_pictures_that_are_read(tmp_path, monkeypatch):
    """Samples and latents in there would become data, and the run could not be resumed."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    source = open_source(tmp_path, 8)
    run = types.SimpleNamespace(source=source)
    monkeypatch.setattr("cmjax.training.run.make_run", lambda _: run)
    for out in (tmp_path, tmp_path / "runs" / "mine"):
        with pytest.raises(ValueError, match=f"{out} is inside {tmp_path}, where its"):
            encode_folder(out, autoencoder(TINY), source)
        with pytest.raises(ValueError, match=f"{out} is inside {tmp_path}, where its"):
            train(config.TrainConfig(run=config.RunSection(init="a")), out)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    check_outside(source, tmp_path / ".runs")
    check_outside(source, tmp_path.parent / "runs")
    with pytest.raises(ValueError, match="which have 1 or 3 channels, but 4 are wanted"):
        open_source(tmp_path, 8, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"autoencoder": None}, "autoencoder must be a cmjax.Autoencoder, got None"),
        ({"source": [0]}, "source must have a fingerprint"),
        ({"source": Arrays(np.zeros((2, 7, 8, 3), np.uint8))}, "that 2 divides, got 7 x 8"),
        (
            {"source": Arrays(np.zeros((2, 3), np.float32))},
            r"images must be \[B, H, W, 3\]",
        ),
        ({"source": Arrays(np.full((2, 8, 8, 3), 99, np.float32))}, "as pixels do"),
        (
            {"source": Arrays(np.full((2, 8, 8, 3), np.nan))},
            "record 0 of the data is not fin",
        ),
        ({"flip": 1}, "flip must be True or False, got 1"),
        ({"batch_size": 0}, "batch_size must be an integer from 1"),
        ({"shard_size": True}, "shard_size must be an integer from 1"),
        ({"dtype": "int32"}, "dtype must be"),
    ],
)
def test_mistakes(tmp_path, change, message):
    arguments = {"autoencoder": autoencoder(TINY), "source": data(2)} | change
    with pytest.raises(ValueError, match=message):
        encode_folder(tmp_path / "out", **arguments)


def test_gray_pictures_become_those_of_a_colour_autoencoder(tmp_path):
    gray = data(2).data[..., :1]
    encode_folder(tmp_path / "out", autoencoder(TINY), Arrays(gray), batch_size=1)
    moments = Moments(tmp_path / "out")
    images = cmjax.images.from_uint8(gray.repeat(3, -1))
    np.testing.assert_allclose(
        moments[1]["data"], autoencoder(TINY).encode(images)[1], atol=1e-5
    )

    # The latents of this one are not random, and nothing has labels.
    assert moments[1].keys() == {"data"} and moments.labels() is None


def test_latents_are_drawn_by_key_with_the_moments_that_are_stored():
    key = jax.random.key(0)
    batch = {
        "data": jnp.full((4000, 2), 3.0),
        "data_std": jnp.tile(jnp.array([0.5, 2.0]), (4000, 1)),
        "class_labels": jnp.zeros(4000, jnp.int32),
    }
    drawn = draw_latents(key, batch)
    assert drawn.keys() == {"data", "class_labels"}

    # Five standard errors of mean and standard deviation: a false alarm in a million runs.
    error = 5 * np.array([0.5, 2.0]) / np.sqrt(4000)
    assert np.all(np.abs(drawn["data"].mean(0) - 3) < error)
    assert np.all(np.abs(drawn["data"].std(0) - np.array([0.5, 2.0])) < error)
    np.testing.assert_array_equal(draw_latents(key, batch)["data"], drawn["data"])
    with pytest.raises(
        ValueError, match=r"batch\['data_std'\] must be like batch\['data'\]"
    ):
        draw_latents(key, {**batch, "data_std": jnp.ones((4000, 1))})


def test_every_step_draws_other_latents_and_any_mesh_the_same():
    """With a loss that returns its data, the gradient shows what was drawn."""

    def loss(key, apply_fn, params, frozen, batch, step):
        assert batch.keys() == {"data"}
        return jnp.mean(batch["data"] * params), {"sum": jnp.sum(batch["data"])}

    def run(mesh):
        step = trainer.make_train_step(loss, lambda p, x, t: x, optax.sgd(0.0), mesh=mesh)
        state = step.init(jax.random.key(1), jnp.ones(3))
        batch = {"data": jnp.zeros((4, 3)), "data_std": jnp.ones((4, 3))}
        found = []
        for _ in range(2):
            with jax.numpy_rank_promotion("allow"):
                state, metrics = step(state, batch)
            found.append(float(metrics["sum"]))
        return found

    first, second = run(None)
    assert first != second and first != 0
    explicit = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    for mesh in (trainer.data_mesh(jax.devices()[:2]), explicit):
        np.testing.assert_allclose(run(mesh), [first, second], rtol=1e-6)


def test_latents_are_not_compared_with_pictures(encoded):
    result = CliRunner().invoke(cli.main, ["evaluate", str(encoded), str(encoded)])
    assert_one_line(result, "holds the latents of cmjax encode; give the pictures")


def test_latents_are_no_model(encoded):
    result = CliRunner().invoke(cli.main, ["info", str(encoded)])
    assert_one_line(result, f"and no model; their autoencoder is {encoded / 'vae'}")
    succeeded(CliRunner().invoke(cli.main, ["info", str(encoded / "vae")]))


@pytest.fixture
def files(tmp_path):
    """A data set, an autoencoder and a configuration on disk."""
    source = data()
    np.savez(tmp_path / "d.npz", images=source.data, labels=source.labels)
    cmjax.save_autoencoder(tmp_path / "vae", autoencoder(SMALL))
    (tmp_path / "a.toml").write_text(TOML)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(cli.main, [*map(str, arguments)])


ENCODE = ("--compilation-cache", "none", "--batch-size", 2, "--shard-size", 4)


@pytest.mark.thorough
def test_from_pictures_to_pictures_on_the_command_line(files, monkeypatch):
    """Encoded, trained, resumed and sampled."""
    monkeypatch.chdir(files)
    made = succeeded(run("encode", "d.npz", "latents", "--vae", "vae", *ENCODE))
    assert "11 pictures in latents, " in made.stdout
    assert "cmjax train takes it as --data latents" in made.stdout
    again = succeeded(run("encode", "d.npz", "latents", "--vae", "vae", *ENCODE))
    assert "11 of 11 pictures were there already" in again.stderr

    # In one go, and stopped after two of four steps: the same metrics, and the same model.
    train = ("train", "a.toml", "--data", "latents", "--quiet")
    with jax.numpy_dtype_promotion("standard"):
        succeeded(run(*train, "--out", "whole"))
        train += ("--out", "parts", "--set", "run.sample_every=0")
        succeeded(run(*train, "--set", "run.steps=2"))
        succeeded(run(*train))
    metrics = (files / "whole" / "metrics.csv").read_text()
    assert metrics == (files / "parts" / "metrics.csv").read_text()
    model, resumed = cmjax.load("whole"), cmjax.load("parts")
    jax.tree.map(np.testing.assert_array_equal, model.params, resumed.params)

    # It decodes, in training, as a model and by the command.
    assert (files / "whole" / "samples_000004.png").exists()
    assert model.picture_shape == (8, 8, 3)
    jax.tree.map(np.testing.assert_array_equal, model.autoencoder, autoencoder(SMALL))
    succeeded(run("sample", "--model", "whole", "--num", 3, "--out", "x.npz", "--quiet"))
    with np.load("x.npz") as arrays:
        assert arrays["arr_0"].shape == (3, 8, 8, 3)


def prepared(*settings):
    """What a run starts from, in the working directory."""
    return setup.make_run(config.read_config("a.toml", settings))


def test_a_run_on_encoded_data_draws_latents_and_decodes(files, encoded, monkeypatch):
    monkeypatch.chdir(files)
    source = ("data.source", str(encoded))
    run = prepared(source)
    batch = next(run.batches())
    assert batch.keys() == {"data", "data_std", "class_labels"}
    state, metrics = run.train_step(run.init(), batch)
    assert np.isfinite(float(metrics["loss"]))
    reports.save_samples(run, state, files / "x.png")
    with Image.open(files / "x.png") as picture:
        assert picture.width > 10 * 64  # ten pictures of 8 pixels, enlarged to 64
    for key, value, message in [
        ("data.flip", True, "data.flip would mirror latents"),
        ("scheduler.clip_denoised", True, "scheduler.clip_denoised would clip latents"),
        ("data.autoencoder", "nowhere", "data.autoencoder: "),
        ("network.sample_size", 4, r"shape \(8, 8, 4\), the network takes \(4, 4, 4\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            prepared(source, (key, value))


def test_latents_of_a_file_say_that_nothing_decodes_them(files, monkeypatch):
    monkeypatch.chdir(files)
    latents = np.random.default_rng(0).normal(size=(16, 8, 8, 4)).astype(np.float32)
    np.savez("z.npz", images=latents, labels=np.arange(16) % 3)
    source = ("data.source", "z.npz")
    lines = reports.summarize(prepared(source), {"data": latents})
    assert lines["pictures"].startswith("none, as samples have 4 channels; if they are lat")

    run = prepared(source, ("data.autoencoder", "vae"))
    assert "pictures" not in reports.summarize(run, {"data": latents})
    assert run.model.picture_shape == (8, 8, 3)


def test_mistakes_on_the_command_line(files, monkeypatch):
    monkeypatch.chdir(files)
    (files / "photos").mkdir()
    cmjax.save_autoencoder("vae2", autoencoder(TINY))
    for arguments, message in [
        (("d.npz", "latents"), "Missing option '--vae'"),
        (
            ("d.npz", "latents", "--vae", "d.npz"),
            "--vae: d.npz has no config.json next to it",
        ),
        (("d.npz", "latents", "--vae", "vae", "--size", 16), "8x8, but 16x16 are wanted"),
        (
            ("photos", "latents", "--vae", "vae"),
            "photos is a folder of pictures, and needs a size to scale them to: give size=N, or "
            "--size N",
        ),
        (
            ("d.npz", "latents", "--vae", "vae2", "--size", 9),
            "--size must be a multiple of 2, the pixels of a latent's side, got 9",
        ),
        (("nothing.npz", "latents", "--vae", "vae"), "nothing.npz: No such file"),
        (("d.npz", "photos", "--vae", "vae", "--batch-size", 0), "--batch-size"),
        (("d.npz", ".", "--vae", "vae"), "must be new or empty, or of the same run"),
    ]:
        assert_one_line(run("encode", *arguments, "--compilation-cache", "none"), message)


@pytest.mark.thorough
def test_a_killed_run_continues_bit_for_bit(files, tmp_path):
    command = ["encode", files / "d.npz", files / "killed", "--vae", files / "vae"]
    command += [*ENCODE, "--shard-size", 1, "--batch-size", 1, "--quiet"]
    with launched_command(*command) as process:
        wait_for(lambda: len(list((files / "killed").glob("shards/0*"))) > 2, process)
        process.kill()
        process.wait()
    left = len(list((files / "killed").glob("shards/0*")))
    assert 2 < left < 11
    succeeded(run(*command))
    whole = [part if part != files / "killed" else files / "whole" for part in command]
    succeeded(run(*whole))
    names = [[path.name for path in shards_of(files / run)] for run in ("killed", "whole")]
    assert names[0] == names[1] and len(names[0]) == 11
