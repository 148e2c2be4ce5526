"""The command line: what it makes, and that every misuse is one clear line."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from flax import nnx
from PIL import Image

import cmjax
from cmjax import checkpoints, cli, generation
from cmjax.checkpoints import BUNDLED
from cmjax.images import to_uint8
from cmjax.models import UNet2D, UNet2DConfig
from cmjax.schedulers import EDMHeunScheduler


def make_model(num_class_embeds, channels):
    config = UNet2DConfig(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        block_out_channels=(8,),
        norm_num_groups=4,
        attention_head_dim=4,
        layers_per_block=1,
        num_class_embeds=num_class_embeds,
    )
    apply_fn, abstract = cmjax.from_nnx(nnx.eval_shape(lambda: UNet2D(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)  # no weights at zero, so that samples depend on everything
    params = jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), abstract
    )
    return cmjax.Model(apply_fn, params, cmjax.CMStochasticIterativeScheduler(), config)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders of models: with classes, without, with channels no picture has, and broken ones."""
    root = tmp_path_factory.mktemp("models")
    for name, classes, channels in (("classes", 10, 1), ("plain", None, 3), ("latent", None, 4)):
        cmjax.save(root / name, make_model(classes, channels))
    (root / "empty").mkdir()
    (root / "file").write_text("")
    weights = "model.safetensors"
    for name in ("corrupt", "no-weights", "folder-weights", "odd-config", "no-json", "nan"):
        shutil.copytree(root / "classes", root / name)
    (root / "corrupt" / weights).write_bytes((root / "classes" / weights).read_bytes()[:-10])
    for name in ("no-weights", "folder-weights"):
        (root / name / weights).unlink()
    (root / "folder-weights" / weights).mkdir()
    config = json.loads((root / "classes" / "config.json").read_text())
    (root / "odd-config" / "config.json").write_text(
        json.dumps({**config, "block_out_channels": 8})
    )
    (root / "no-json" / "scheduler_config.json").write_text("{")
    model = cmjax.load(root / "classes")
    nan = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), model.params)
    cmjax.save(root / "nan", cmjax.Model(model.apply_fn, nan, model.scheduler, model.config))
    return root


@pytest.fixture
def run(folders, tmp_path, monkeypatch):
    """Runs `cmjax sample` in an empty folder, with the small model unless another is asked for."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        model = () if "--model" in args else ("--model", str(folders / "classes"))
        return CliRunner().invoke(cli.main, ["sample", *model, *args])

    return run


@pytest.fixture
def arrays(run, tmp_path):
    """Runs `cmjax sample --out x.npz` and returns the arrays."""

    def arrays(*args):
        result = run("--out", "x.npz", *args)
        assert result.exit_code == 0, result.stderr
        with np.load(tmp_path / "x.npz") as file:
            return dict(file)

    return arrays


def assert_one_line(result, fragment, code=2):
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert fragment in result.stderr


def program(*args, **options):
    """Starts `python -m cmjax` as a process of its own, minding SIGINT even where the tests ignore it."""
    code = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "runpy.run_module('cmjax', run_name='__main__')"
    )
    root = os.path.dirname(os.path.dirname(cmjax.__file__))
    environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_by_default_a_labelled_grid_and_a_line(run, tmp_path):
    result = run()
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""  # one batch, and nobody at a terminal: no bar
    pattern = r"64 samples in samples\.png: 1 network call, compile \d+\.\d s, run \d+\.\d s\n"
    assert re.fullmatch(pattern, result.stdout), result.stdout
    assert os.listdir(tmp_path) == ["samples.png"]
    with Image.open("samples.png") as picture:  # ten columns of 8 pixels, eightfold
        assert (picture.mode, picture.size) == ("L", (4 + 10 * 68, 4 + 7 * 84))


def test_the_bundled_model_needs_no_arguments(tmp_path, monkeypatch):
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) <= 8e6
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.main, ["sample"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("64 samples in samples.png: 1 network call, ")
    with Image.open("samples.png") as picture:  # ten columns of 28 pixels, doubled
        assert (picture.mode, picture.size) == ("L", (4 + 10 * 60, 4 + 7 * 76))


def test_a_model_without_classes_makes_pictures_without_captions(run, folders):
    assert run("--model", str(folders / "plain"), "--num", "20").exit_code == 0
    with Image.open("samples.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (4 + 4 * 68, 4 + 5 * 68))


def test_npz_holds_what_the_library_samples(arrays, folders):
    made = arrays("--num", "7", "--labels", "3,1,4", "--seed", "5", "--steps", "2")
    assert made["labels"].dtype == np.int32
    assert made["labels"].tolist() == [3, 1, 4, 3, 1, 4, 3]
    model = cmjax.load(folders / "classes")
    cond = {"class_labels": made["labels"]}
    samples = cmjax.sample(
        jax.random.key(5),
        model.apply_fn,
        model.params,
        model.scheduler,
        (7, 8, 8, 1),
        num_inference_steps=2,
        cond=cond,
    )
    assert made["images"].dtype == np.uint8
    assert made["images"].shape == (7, 8, 8, 1)
    assert_same(made["images"], to_uint8(samples))


def assert_same(images, others):
    """Rounding may differ between compilations by one shade, in few pixels."""
    difference = np.abs(images.astype(int) - others)
    assert difference.max() <= 1
    assert difference.mean() < 0.01


def test_npz_of_a_model_without_classes_has_no_labels(arrays, folders):
    made = arrays("--model", str(folders / "plain"), "--num", "2")
    assert list(made) == ["images"]
    assert made["images"].shape == (2, 8, 8, 3)


def test_labels_and_seed_matter(arrays):
    first = arrays("--num", "4")["images"]
    for other in (("--seed", "1"), ("--labels", "9"), ("--sigmas", "40")):
        assert (
            np.abs(arrays("--num", "4", *other)["images"].astype(int) - first).max() > 5
        )  # shades; rounding is one


@pytest.mark.parametrize("levels", [("--timesteps", "20,0"), ("--sigmas", "80.0, {}")])
def test_three_ways_to_say_the_levels(arrays, levels):
    sigma = cmjax.CMStochasticIterativeScheduler().training_sigmas()[20]
    made = arrays("--num", "3", *(level.format(sigma) for level in levels))
    assert_same(made["images"], arrays("--num", "3", "--steps", "2")["images"])


def test_sample_i_depends_on_seed_and_i_alone(arrays):
    reference = arrays("--num", "11", "--steps", "2")
    for size in ("1", "4", "64"):
        made = arrays("--num", "11", "--steps", "2", "--batch-size", size)
        assert_same(made["images"], reference["images"])
        np.testing.assert_array_equal(made["labels"], reference["labels"])
    assert_same(arrays("--num", "5", "--steps", "2")["images"], reference["images"][:5])


def test_a_ragged_last_batch_compiles_nothing_more(arrays, monkeypatch):
    traces, sample = [], cmjax.sample
    monkeypatch.setattr(
        cmjax, "sample", lambda *args, **kwargs: traces.append(args) or sample(*args, **kwargs)
    )
    assert arrays("--num", "10", "--batch-size", "4")["images"].shape[0] == 10
    assert len(traces) == 1


def test_bfloat16_is_nearly_float32(arrays, monkeypatch):
    dtypes, sample = [], cmjax.sample

    def spy(*args, **kwargs):
        result = sample(*args, **kwargs)
        dtypes.append({leaf.dtype.name for leaf in jax.tree.leaves(args[2])} | {result.dtype.name})
        return result

    reference = arrays("--num", "10")["images"].astype(int)
    monkeypatch.setattr(cmjax, "sample", spy)
    made = arrays("--num", "10", "--dtype", "bfloat16")["images"]
    assert dtypes == [{"bfloat16"}]
    assert 0 < np.abs(made - reference).mean() < 4


def test_the_bar_is_on_stderr_and_quiet_says_nothing(run):
    result = run("--num", "6", "--batch-size", "2")
    assert "3/3" in result.stderr
    assert result.stdout.count("\n") == 1
    result = run("--num", "6", "--batch-size", "2", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_another_sampler_has_the_levels_of_the_model_and_the_options_given(run, monkeypatch):
    used = []
    real = generation.generate
    monkeypatch.setattr(
        generation,
        "generate",
        lambda model, *args, **kwargs: used.append(model) or real(model, *args, **kwargs),
    )
    result = run(
        "--scheduler", "EDMHeunScheduler", "--set", "s_churn=2.5", "--steps", "3", "--num", "2"
    )
    assert result.stdout.startswith("2 samples in samples.png: 5 network calls, "), result.stderr
    assert used[0].scheduler == EDMHeunScheduler(sigma_min=0.002, sigma_max=80.0, s_churn=2.5)


def test_set_alone_changes_the_sampler_of_the_model(run):
    assert run("--num", "4", "--out", "plain.npz").exit_code == 0
    assert (
        run(
            "--num",
            "4",
            "--out",
            "same.npz",
            "--set",
            "rho=7.0",
            "--set",
            "timestep_spacing=linspace",
        ).exit_code
        == 0
    )
    assert run("--num", "4", "--out", "other.npz", "--set", "sigma_max=40").exit_code == 0
    plain, same, other = (np.load(f"{name}.npz")["images"] for name in ("plain", "same", "other"))
    assert np.array_equal(plain, same) and not np.array_equal(plain, other)


def test_counts_of_one_are_singular(run):
    assert run("--num", "1").stdout.startswith("1 sample in samples.png: 1 network call, ")
    assert run("--num", "2", "--steps", "2").stdout.startswith(
        "2 samples in samples.png: 2 network calls, "
    )


MISUSES = [
    # levels
    ("--steps 2 --timesteps 22,0", "--steps and --timesteps exclude each other"),
    ("--steps 2 --sigmas 80,1", "--steps and --sigmas exclude each other"),
    ("--timesteps 22,0 --sigmas 80,1", "--timesteps and --sigmas exclude each other"),
    ("--steps 0", "0 is not in the range x>=1"),
    ("--steps -1", "-1 is not in the range x>=1"),
    (
        "--steps 41",
        "--steps: num_inference_steps must be an integer from 1 to num_train_timesteps=40, got 41",
    ),
    ("--steps two", "'two' is not a valid integer"),
    ("--steps 1.5", "'1.5' is not a valid integer"),
    ("--timesteps 0,22", "strictly descending"),
    ("--timesteps 22,22,0", "strictly descending"),
    ("--timesteps 40,0", "--timesteps: timesteps must lie in [0, 39]"),
    ("--timesteps 22,-1", "must lie in [0, 39]"),
    ("--timesteps 22.5,0", "timesteps must be a list of integers"),
    ("--timesteps 99999999999999999999,0", "too large"),
    ("--sigmas nan", "must lie in [0.002, 80]"),
    ("--sigmas 80,-1", "must lie in [0.002, 80]"),
    ("--sigmas 81,1", "must lie in [0.002, 80]"),
    ("--sigmas inf", "must lie in [0.002, 80]"),
    ("--sigmas 0.8,80", "strictly descending"),
    ("--sigmas 80;1", "numbers separated by commas, such as 80,0.8"),
    # labels
    ("--labels 10", "classes are 0..9, got 10"),
    ("--labels 3,-1", "classes are 0..9, got -1"),
    ("--labels three", "integers separated by commas, such as 3,1,4"),
    ("--labels 1,,2", "integers separated by commas"),
    ("--labels =", "integers separated by commas"),
    ("--labels=", "integers separated by commas"),
    ("--labels", "requires an argument"),
    ("--labels 1 --model {models}/plain", "no classes; leave the option out"),
    # samplers
    ("--scheduler EDMHeun", "--scheduler: there is no 'EDMHeun'; did you mean 'EDMHeunScheduler'?"),
    ("--scheduler CTMScheduler", "CTMScheduler needs a network of its own"),
    ("--scheduler LCMScheduler --steps 51", "original_inference_steps * strength=50, got 51"),
    ("--scheduler LCMScheduler --sigmas 80", "LCMScheduler takes timesteps=[999, ...]"),
    ("--scheduler SCMScheduler --timesteps 1.6", "must lie in [1e-06, 1.5708]"),
    ("--scheduler DDIMScheduler --set eta=2", "--set: eta must be a number from 0 to 1, got 2"),
    ("--set rho", "must be like eta=0.5, got 'rho'"),
    ("--set roh=7", "has no option 'roh'; did you mean 'rho'?"),
    ("--set clip_denoised=yes", "clip_denoised must be true or false, got 'yes'"),
    # numbers
    ("--num 0", "0 is not in the range x>=1"),
    ("--num many", "'many' is not a valid integer"),
    ("--num 99999999999999999", "Unable to allocate"),
    ("--batch-size 0", "0 is not in the range x>=1"),
    ("--batch-size -4", "-4 is not in the range x>=1"),
    ("--seed -1", "-1 is not in the range 0<=x<=4294967295"),
    ("--seed 4294967296", "is not in the range"),
    ("--seed x", "'x' is not a valid integer"),
    ("--dtype float16", "'float16' is not one of 'float32', 'bfloat16'"),
    # where to
    ("--out samples.jpg", ".png (a grid) or .npz (arrays), got 'samples.jpg'"),
    ("--out samples", ".png (a grid) or .npz (arrays)"),
    ("--out=", ".png (a grid) or .npz (arrays)"),
    ("--out nowhere/samples.png", "there is no folder nowhere; make it first"),
    ("--out {models}/file/samples.png", "make it first"),
    ("--out {models}/folder.png", "is a folder; give the name of a file"),
    ("--out " + "x" * 300 + ".png", "File name too long"),
    ("--out x.png --model {models}/latent", "the model's samples have 4; use .npz"),
    # models
    ("--model nosuch", "'nosuch' is not there; give a folder, a .pt file, or a hub id"),
    ("--model ./no/such", "is not there; give a folder, a .pt file, or a hub id"),
    ("--model {models}/file", "file is not a readable PyTorch file"),
    ("--model {models}/empty", "is not a whole model: it has no config.json"),
    ("--model {models}/corrupt", "model.safetensors is not a readable safetensors file"),
    ("--model {models}/no-weights", "has no model.safetensors"),
    ("--model {models}/folder-weights", "model.safetensors"),
    ("--model {models}/odd-config", "odd-config"),
    ("--model {models}/no-json", "scheduler_config.json is not JSON"),
    ("--model {models}/nan", "not finite"),
    # the command itself
    ("--nosuch", "No such option"),
    ("extra", "unexpected extra argument (extra)"),
]


@pytest.mark.parametrize("args, fragment", MISUSES)
def test_misuse_is_one_line_and_exit_code_2(run, folders, tmp_path, args, fragment):
    (folders / "folder.png").mkdir(exist_ok=True)
    result = run(*args.format(models=folders).split(" "))
    assert_one_line(result, fragment)
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr) > len("Error: \n")
    assert os.listdir(tmp_path) == []


def test_an_unknown_command_is_one_line():
    assert_one_line(CliRunner().invoke(cli.main, ["smaple"]), "No such command 'smaple'.")


def test_without_permission_nothing_is_sampled(run, monkeypatch):
    def denied(**_):
        raise PermissionError(13, "Permission denied", "x")

    monkeypatch.setattr(tempfile, "TemporaryFile", denied)
    monkeypatch.setattr(
        generation, "generate", lambda *_, **__: pytest.fail("sampled all the same")
    )
    assert_one_line(run(), "--out: cannot write in .: Permission denied; choose another folder")


@pytest.mark.skipif(
    not os.path.isdir("/proc/self"), reason="needs a folder that not even root may write in"
)
def test_a_file_system_that_takes_no_files(run):
    assert_one_line(run("--out", "/proc/self/samples.png"), "--out: cannot write in /proc/self: ")


@pytest.mark.parametrize("out", ["x.png", "x.npz"])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(run, tmp_path, monkeypatch, out):
    (tmp_path / out).write_text("old")
    write = cli.sample._write

    def write_on_a_full_disk(*args, **kwargs):
        _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
        try:
            write(*args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(cli.sample, "_write", write_on_a_full_disk)
    assert_one_line(run("--out", out, "--num", "2"), f"cannot write {out}: File too large")
    assert os.listdir(tmp_path) == [out]
    assert (tmp_path / out).read_text() == "old"


def test_a_device_without_memory_is_one_line(run, monkeypatch):
    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nand a long\nstory"
        )

    monkeypatch.setattr(cmjax, "sample", exhausted)
    assert_one_line(
        run(), "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.; a smaller --batch-size"
    )


def test_a_defect_of_ours_is_not_hidden(run, monkeypatch):
    def defect(*_, **__):
        raise AttributeError("a defect")

    monkeypatch.setattr(cmjax, "sample", defect)
    assert isinstance(run().exception, AttributeError)


@pytest.mark.parametrize(
    "where", ["cmjax.checkpoints.open_checkpoint", "cmjax.sample", "cmjax.images.grid"]
)
def test_an_interrupt_is_one_line_and_leaves_nothing(run, tmp_path, monkeypatch, where):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    assert_one_line(run(), "Interrupted; nothing unfinished was written.", code=130)
    assert os.listdir(tmp_path) == []


def test_an_interrupted_process_leaves_at_once(folders, tmp_path):
    args = ["--model", str(folders / "classes"), "--num", "10000000", "--batch-size", "1"]
    process = program("sample", *args, cwd=tmp_path)
    while b"sampling" not in process.stderr.read1():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == b""
    assert stderr.endswith(b"Interrupted; nothing unfinished was written.\n")
    assert b"Traceback" not in stderr
    assert os.listdir(tmp_path) == []


def test_a_process_that_fails_shows_no_traceback(folders, tmp_path):
    process = program("sample", "--model", str(folders / "corrupt"), cwd=tmp_path)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert stdout == b""
    assert stderr.startswith(b"Error: ") and stderr.count(b"\n") == 1


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["sample", "--help"]])
def test_help_teaches_by_example(args):
    result = CliRunner().invoke(cli.main, args)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    examples = lines[lines.index("  Examples:") + 1 :]
    assert examples[0].startswith("    cmjax sample  ")
    assert max(map(len, lines)) <= 100


def test_every_example_in_the_help_runs(folders, tmp_path, monkeypatch):
    """Every command shown parses, and asks `generate` for what it says; the model stands in for the bundled one."""
    monkeypatch.chdir(tmp_path)
    opened, asked = checkpoints.open_checkpoint(folders / "classes"), []
    monkeypatch.setattr(checkpoints, "open_checkpoint", lambda source: opened)
    monkeypatch.setattr(cli.sample, "_write", lambda *_, **__: None)
    made = generation.Generated(None, None, 0, 0)
    monkeypatch.setattr(generation, "generate", lambda *args, **_: asked.append(args) or made)
    for page in ([], ["sample"]):
        for line in CliRunner().invoke(cli.main, [*page, "--help"]).stdout.splitlines():
            command = line.strip().split("   ")[0].split()
            if (
                command[:2] == ["cmjax", "sample"]
                and line.startswith("    ")
                and "--help" not in command
            ):
                result = CliRunner().invoke(cli.main, command[1:])
                assert result.exit_code == 0, (command, result.stderr)
    assert len(asked) == 10


def test_version():
    assert (
        CliRunner().invoke(cli.main, ["--version"]).stdout
        == f"cmjax, version {cmjax.__version__}\n"
    )
