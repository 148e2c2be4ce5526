"""The command line: what it makes, and that every misuse is one clear line."""

import json
import os
import re
import resource
import shutil
import signal
import tempfile

import click
import jax
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import load_file, save_file

import cmjax
from cmjax import checkpoints, cli, generation
from cmjax.checkpoints import BUNDLED
from cmjax.cli.wording import in_options
from cmjax.schedulers import EDMHeunScheduler
from tests.support.cli import assert_one_line, program
from tests.support.networks import tiny_model


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders of models: with classes, without, with channels no picture has, and broken ones."""
    root = tmp_path_factory.mktemp("models")
    for name, classes, channels in (
        ("classes", 10, 1),
        ("plain", None, 3),
        ("latent", None, 4),
    ):
        cmjax.save(root / name, tiny_model(classes, channels))
    (root / "empty").mkdir()
    (root / "file").write_text("")
    weights = "model.safetensors"
    for name in ("corrupt", "no-weights", "folder-weights", "odd-config", "no-json", "nan"):
        shutil.copytree(root / "classes", root / name)
    (root / "corrupt" / weights).write_bytes(
        (root / "classes" / weights).read_bytes()[:-10]
    )
    for name in ("no-weights", "folder-weights"):
        (root / name / weights).unlink()
    (root / "folder-weights" / weights).mkdir()
    config = json.loads((root / "classes" / "config.json").read_text())
    (root / "odd-config" / "config.json").write_text(
        json.dumps({**config, "num_layers": "8"})
    )
    (root / "no-json" / "scheduler_config.json").write_text("{")
    tensors = load_file(root / "classes" / weights)
    nan = {name: np.full_like(tensor, np.nan) for name, tensor in tensors.items()}
    save_file(nan, root / "nan" / weights)
    return root


@pytest.fixture
def run(folders, tmp_path, monkeypatch):
    """Runs `cmjax sample` in an empty folder, with the small model, four samples at a time."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        args = " ".join(args).split(" ") if args else []
        defaults = [] if "--model" in args else ["--model", str(folders / "classes")]
        if not any(arg.startswith("--batch-size") for arg in args):
            defaults += ["--batch-size", "4"]  # most tests then share a compiled program
        return CliRunner().invoke(cli.main, ["sample", *defaults, *args])

    return run


@pytest.fixture
def arrays(run, tmp_path):
    """Runs `cmjax sample --out x.npz` and returns the arrays."""

    def arrays(*args):
        result = run("--out x.npz", *args)
        assert result.exit_code == 0, result.stderr
        with np.load(tmp_path / "x.npz") as file:
            return dict(file)

    return arrays


def assert_same(images, others):
    """Rounding may differ between compilations by one shade, in few pixels."""
    difference = np.abs(images.astype(int) - others)
    assert difference.max() <= 1
    assert difference.mean() < 0.01


def test_by_default_a_labelled_grid_and_a_line(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.main, ["sample", "--model", str(folders / "classes")])
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""  # one batch, and nobody at a terminal: no bar
    pattern = r"64 samples in samples\.png: 1 network call on cpu, "
    pattern += r"compile \d+\.\d s, run \d+\.\d s\n"
    assert re.fullmatch(pattern, result.stdout), result.stdout
    assert os.listdir(tmp_path) == ["samples.png"]
    with Image.open("samples.png") as picture:  # ten columns of 8 pixels, eightfold
        assert (picture.mode, picture.size) == ("L", (4 + 10 * 68, 4 + 7 * 84))


def test_the_bundled_model_needs_no_arguments(tmp_path, monkeypatch):
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) <= 8e6
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.main, ["sample"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("64 samples in samples.png: 1 network call on cpu, ")
    with Image.open("samples.png") as picture:  # ten columns of 28 pixels, doubled
        assert (picture.mode, picture.size) == ("L", (4 + 10 * 60, 4 + 7 * 76))


def test_a_model_without_classes(run, arrays, folders):
    """Its pictures have no captions, its arrays no labels."""
    assert run(f"--num 20 --model {folders}/plain").exit_code == 0
    with Image.open("samples.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (4 + 4 * 68, 4 + 5 * 68))
    made = arrays(f"--num 4 --model {folders}/plain")
    assert list(made) == ["arr_0"]
    assert made["arr_0"].shape == (4, 8, 8, 3)


def test_npz_holds_what_the_library_generates(arrays, folders):
    made = arrays("--num 7 --labels 3,1,4 --seed 5 --steps 2")
    assert made["arr_0"].dtype == np.uint8 and made["arr_0"].shape == (7, 8, 8, 1)
    assert made["arr_1"].dtype == np.int64
    assert made["arr_1"].tolist() == [3, 1, 4, 3, 1, 4, 3]
    request = generation.Request(labels=[3, 1, 4], seed=5, num_inference_steps=2)
    model = cmjax.load(folders / "classes")
    expected = generation.generate(model, request, 7, batch_size=4)
    np.testing.assert_array_equal(made["arr_0"], expected.images)


def test_labels_and_seed_and_levels_matter(arrays):
    first = arrays("--num 4")["arr_0"]
    for other in ("--seed 1", "--labels 9", "--sigmas 40"):
        difference = np.abs(arrays("--num 4", other)["arr_0"].astype(int) - first)
        assert difference.max() > 5  # shades; rounding is one


@pytest.mark.parametrize("levels", ["--timesteps 20,0", "--sigmas 80.0,{}"])
def test_three_ways_to_say_the_levels(arrays, levels):
    model = cmjax.CMStochasticIterativeScheduler()
    sigma = model.set_timesteps(timesteps=[20, 0]).sigmas[1]
    made = arrays("--num 3", levels.format(sigma))
    assert_same(made["arr_0"], arrays("--num 3 --steps 2")["arr_0"])


def test_sample_i_depends_on_seed_and_i_alone(arrays):
    reference = arrays("--num 11 --steps 2")
    for size in (1, 64):
        made = arrays(f"--num 11 --steps 2 --batch-size {size}")
        assert_same(made["arr_0"], reference["arr_0"])
        np.testing.assert_array_equal(made["arr_1"], reference["arr_1"])
    assert_same(arrays("--num 5 --steps 2")["arr_0"], reference["arr_0"][:5])


SAMPLE = "cmjax.generation.batches.sample"


def test_a_ragged_last_batch_compiles_nothing_more(arrays, monkeypatch):
    traces = []

    def spy(*args, **kwargs):
        traces.append(args)
        return cmjax.sample(*args, **kwargs)

    monkeypatch.setattr(SAMPLE, spy)
    assert arrays("--num 10 --batch-size 4")["arr_0"].shape[0] == 10
    assert len(traces) == 1


def test_bfloat16_is_nearly_float32(arrays, monkeypatch):
    dtypes = []

    def spy(*args, **kwargs):
        result = cmjax.sample(*args, **kwargs)
        dtypes.append(
            {leaf.dtype.name for leaf in jax.tree.leaves(args[2])} | {result.dtype.name}
        )
        return result

    reference = arrays("--num 10")["arr_0"].astype(int)
    monkeypatch.setattr(SAMPLE, spy)
    made = arrays("--num 10 --dtype bfloat16")["arr_0"]
    assert dtypes == [{"bfloat16"}]
    assert 0 < np.abs(made - reference).mean() < 4


def test_the_bar_is_on_stderr_and_quiet_says_nothing(run):
    result = run("--num 12")
    assert "of 3 batches" in result.stderr
    assert result.stdout.count("\n") == 1
    result = run("--num 12 --quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_another_sampler_has_the_levels_of_the_model_and_the_options_given(
    run, monkeypatch
):
    used = []
    generate = generation.generate

    def spy(model, *args, **kwargs):
        used.append(model)
        return generate(model, *args, **kwargs)

    monkeypatch.setattr(generation, "generate", spy)
    result = run("--scheduler EDMHeunScheduler --set s_churn=2.5 --steps 3 --num 2")
    assert result.stdout.startswith("2 samples in samples.png: 5 network calls on cpu, "), (
        result.stderr
    )
    assert used[0].scheduler == EDMHeunScheduler(
        sigma_min=0.002, sigma_max=80.0, s_churn=2.5
    )


def test_the_one_step_of_a_solver_is_noted_unless_it_was_asked_for(run):
    result = run("--scheduler EDMEulerScheduler --num 2")
    assert "Note: EDMEulerScheduler is a solver, and takes one step unless --steps is" in (
        result.stderr
    )
    for options in ("--scheduler EDMEulerScheduler --steps 1", ""):
        assert "is a solver" not in run(f"{options} --num 2").stderr


def test_set_alone_changes_the_sampler_of_the_model(arrays):
    plain = arrays("--num 4")["arr_0"]
    same = arrays("--num 4 --set rho=7.0 --set timestep_spacing=linspace")["arr_0"]
    other = arrays("--num 4 --set sigma_max=40")["arr_0"]
    assert np.array_equal(plain, same) and not np.array_equal(plain, other)


def test_counts_of_one_are_singular(run):
    assert run("--num 1 --batch-size 4").stdout.startswith(
        "1 sample in samples.png: 1 network call on cpu, "
    )


# Wording is asserted of the command line's own messages; of the library's, which option is named.
MISUSES = [
    # levels
    ("--steps 2 --timesteps 22,0", "--steps and --timesteps exclude each other"),
    ("--steps 2 --sigmas 80,1", "--steps and --sigmas exclude"),
    ("--timesteps 22,0 --sigmas 80,1", "--timesteps and --sigmas exclude"),
    ("--steps 0", "--steps"),
    ("--steps 41", "got 41; --sigmas takes any number"),
    ("--steps 1.5", "--steps"),
    ("--timesteps 0,22", "--timesteps: "),
    ("--timesteps 22.5,0", "--timesteps: "),
    ("--timesteps 99999999999999999999,0", "--timesteps"),
    ("--sigmas nan", "--sigmas: "),
    ("--sigmas inf", "--sigmas: "),
    ("--sigmas 81,1", "--sigmas: "),
    ("--sigmas 80;1", "numbers separated by commas, such as 80,0.8"),
    # labels
    ("--labels 10", "--labels: the model's classes are 0..9, got 10"),
    ("--labels 3,-1", "--labels: "),
    ("--labels three", "--labels: the model's classes have no names"),
    ("--labels 1,,2", "classes separated by commas, such as 3,1,4"),
    ("--labels =", "--labels"),
    ("--labels=", "--labels"),
    ("--labels", "--labels"),
    ("--labels 1 --model {models}/plain", "--labels: the model has no classes"),
    # samplers
    ("--scheduler EDMHeun", "--scheduler: "),
    ("--scheduler CTMScheduler", "CTMScheduler"),
    ("--scheduler LCMScheduler --steps 51", "--steps must be an integer"),
    ("--scheduler LCMScheduler --sigmas 80", "--sigmas: "),
    ("--scheduler SCMScheduler --timesteps 1.6", "--timesteps: "),
    ("--scheduler DDIMScheduler --set eta=2", "--set: eta"),
    ("--set rho", "must be KEY=VALUE, got 'rho'"),
    ("--set roh=7", "'roh'"),
    ("--set clip_denoised=yes", "clip_denoised"),
    # numbers
    ("--num 0", "--num"),
    (
        "--num 4294967296 --batch-size 1 --model {models}/latent --out x.npz",
        "Unable to allocate",
    ),
    ("--batch-size 0", "--batch-size"),
    ("--seed -1", "--seed"),
    ("--seed 4294967296", "--seed"),
    ("--dtype float16", "--dtype"),
    # where to
    ("--out samples.jpg", ".png (a grid) or .npz (arrays), got 'samples.jpg'"),
    ("--out samples", ".png (a grid) or .npz (arrays)"),
    ("--out=", "must be a path, got ''"),
    ("--out nowhere/samples.png", "there is no folder nowhere; make it first"),
    ("--out {models}/file/samples.png", "make it first"),
    ("--out {models}/folder.png", "is a folder; give the name of a file"),
    ("--out " + "x" * 300 + ".png", "File name too long"),
    ("--out x.png --model {models}/latent", "the model's samples have 4; use .npz"),
    # models
    ("--model nosuch", "'nosuch'"),
    ("--model ./no/such", "./no/such"),
    ("--model {models}/file", "/file"),
    ("--model {models}/empty", "/empty"),
    ("--model {models}/corrupt", "model.safetensors"),
    ("--model {models}/no-weights", "model.safetensors"),
    ("--model {models}/folder-weights", "model.safetensors"),
    ("--model {models}/odd-config", "odd-config"),
    ("--model {models}/no-json", "scheduler_config.json"),
    ("--model {models}/nan", "not finite"),
    # the command itself
    ("--nosuch", "No such option"),
    ("extra", "unexpected extra argument (extra)"),
]


@pytest.mark.parametrize("args, fragment", MISUSES)
def test_misuse_is_one_line_and_exit_code_2(run, folders, tmp_path, args, fragment):
    (folders / "folder.png").mkdir(exist_ok=True)
    result = run(args.format(models=folders))
    assert_one_line(result, fragment)
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr) > len("Error: \n")
    assert os.listdir(tmp_path) == []


def test_an_unknown_command_is_one_line():
    assert_one_line(CliRunner().invoke(cli.main, ["smaple"]), "No such command 'smaple'.")


@pytest.mark.parametrize(
    "args",
    [
        "sample -o",
        "convert a",
        "generate --verify",
        "evaluate",
        "tune",
        "encode a",
        "edit inpaint",
    ],
)
def test_an_empty_path_is_not_the_current_folder(args):
    """It is what a variable that is not set leaves, as in --out "$OUT"."""
    more = ["b"] if args == "evaluate" else []
    result = CliRunner().invoke(cli.main, [*args.split(), "", *more])
    assert_one_line(result, "must be a path, got ''")


def test_without_permission_nothing_is_sampled(run, monkeypatch):
    def denied(**_):
        raise PermissionError(13, "Permission denied", "x")

    monkeypatch.setattr(tempfile, "TemporaryFile", denied)
    monkeypatch.setattr(
        generation, "generate", lambda *_, **__: pytest.fail("sampled all the same")
    )
    assert_one_line(
        run(), "--out: cannot write in .: Permission denied; choose another folder"
    )


@pytest.mark.skipif(
    not os.path.isdir("/proc/self"), reason="needs a folder that not even root may write in"
)
def test_a_file_system_that_takes_no_files(run):
    assert_one_line(
        run("--out /proc/self/samples.png"), "--out: cannot write in /proc/self: "
    )


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
    assert_one_line(run(f"--out {out} --num 2"), f"cannot write {out}: File too large")
    assert os.listdir(tmp_path) == [out]
    assert (tmp_path / out).read_text() == "old"


def test_a_device_without_memory_is_one_line(run, monkeypatch):
    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nand a long\nstory"
        )

    monkeypatch.setattr(SAMPLE, exhausted)
    assert_one_line(
        run("--num 4"),
        "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.; a smaller --batch-size",
    )


def test_errors_of_the_library_are_put_in_the_words_of_the_command():
    ctx = click.Context(cli.main)
    ctx.invoked_subcommand = "generate"
    message = (
        "a smaller batch_size; the same generate_folder; join by jax.distributed.initialize"
    )
    expected = "a smaller --batch-size; the same cmjax generate; join by --coordinator"
    assert in_options(message, ctx) == expected
    ctx.invoked_subcommand = "info"  # which has no such option
    assert "batch_size" in in_options(message, ctx)


def test_a_defect_of_ours_is_one_line_that_says_how_to_see_it_whole(run, monkeypatch):
    def defect(*_, **__):
        raise AttributeError("a defect")

    monkeypatch.setattr(SAMPLE, defect)
    result = run()
    assert result.exit_code == 2
    assert "AttributeError: a defect (CMJAX_TRACEBACK=1 shows where)" in result.stderr
    monkeypatch.setenv("CMJAX_TRACEBACK", "1")
    assert isinstance(run().exception, AttributeError)


@pytest.mark.parametrize(
    "where",
    ["cmjax.checkpoints.loading.open_checkpoint", SAMPLE, "cmjax.images.grids.image_grid"],
)
def test_an_interrupt_is_one_line_and_leaves_nothing(run, tmp_path, monkeypatch, where):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    assert_one_line(
        run("--num 4"), "Interrupted; nothing unfinished was written.", code=130
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.process
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


@pytest.mark.process
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
    """Every command shown parses and asks `generate` for samples, of a model that stands in."""
    monkeypatch.chdir(tmp_path)
    opened = checkpoints.open_checkpoint(folders / "classes")
    asked = []
    monkeypatch.setattr(
        "cmjax.checkpoints.loading.open_checkpoint", lambda source, **_: opened
    )
    monkeypatch.setattr(cli.sample, "_write", lambda *_, **__: None)
    generated = generation.Generated(None, None, 0, 0)

    def generate(*args, **_):
        asked.append(args)
        return generated

    monkeypatch.setattr(generation, "generate", generate)
    for page in ([], ["sample"]):
        for line in CliRunner().invoke(cli.main, [*page, "--help"]).stdout.splitlines():
            command = line.strip().split("  ")[0].split()
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
