"""The commands in README and docs run, in this process, on small models and data.

How a command of a page becomes one that a test can afford:

* Models, pictures and data that pages name are small stand-ins of the same names.
* Numbers of samples are lowered by the options in `SMALLER`, which are appended: of an option that
  is given twice the last counts. Numbers of training steps are lowered in `--set`.
* A preset of `cmjax train` takes hours: it is read, and its data are found, but not trained.
* Programs that are not ours (`NOT_OURS`) are not run, nor what needs one.
* Blocks that need a hub or released weights have `<!-- not run: why -->` in the line before, which
  no reader sees. Their commands are parsed. `MARKED` counts them, so that the list cannot grow
  unseen.
"""

import re
import shlex
import shutil

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import cmjax
from cmjax import cli
from cmjax.models import UNet2DConfig
from tests.support import networks, pages
from tests.support.tiers import thorough
from tests.support.training import TINY_TOML

ROOT = pages.ROOT
NOT_OURS = {
    "_CMJAX_COMPLETE=fish_source",
    "curl",
    "eval",
    "export",
    "fidelity",
    "gcloud",
    "pip",
    "pytest",
    "python",
    "sphinx-build",
}
SMALLER = {
    "sample": ["--num", "4"],
    "generate": ["--num", "8", "--batch-size", "1"],
    "inpaint": ["--steps", "2"],
    "superres": ["--steps", "2"],
    "colorize": ["--steps", "2"],
    "tune": ["--trials", "1", "--num", "4"],
}
MARKED = {
    "docs/checkpoints.md": 4,
    "docs/command_line.md": 2,
    "docs/editing.md": 2,
    "docs/getting_started.md": 1,
    "docs/howto/autoencoders.md": 1,
    "docs/howto/latent_training.md": 1,
    "docs/howto/latents.md": 1,
    "docs/protocol.md": 1,
    "docs/released_models.md": 8,
    "docs/samplers.md": 1,
}

BLOCK = re.compile(r"^(<!-- not run: .+ -->\n)?```(.*)\n((?s:.*?))^```$", re.MULTILINE)
PYTHON = re.compile(r"^\w+(, \w+)* = \w+\.?\w+\(|^import |^from ", re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Not in pages: a network of diffusers' kind, for the size of the digits.
UNET = UNet2DConfig(
    sample_size=28,
    in_channels=1,
    out_channels=1,
    block_out_channels=(4,),
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    layers_per_block=1,
    norm_num_groups=2,
    attention_head_dim=4,
)


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page):
    """The blocks of a page without a language that hold programs, and whether each is marked."""
    found = []
    for mark, language, block in BLOCK.findall(page.read_text()):
        is_shell = any(map(is_command, lines(block)))
        if not language and (is_shell or PYTHON.search(block)):
            found.append((block, bool(mark)))
    return found


def is_command(line):
    """Whether a line is one for a shell; tables of benchmarks begin with names of programs, too."""
    return line.split()[0] in NOT_OURS or re.match(r"cmjax \S", line) is not None


def lines(block):
    """The lines of a shell block: those that go on are joined, and explanations cut off."""
    whole = re.sub(r"\\\n\s*", "", block)
    split = re.sub(r" && ", "\n", whole).splitlines()

    # An explanation is in a column of its own, or after a #.
    cut = [re.split(r"\s+#|\s{2,}(?!-)", line)[0] for line in split]
    return [line for line in cut if line.strip()]


def commands(block):
    """The commands of a block that are ours, without the word cmjax."""
    ours = [shlex.split(line) for line in lines(block) if line.startswith("cmjax ")]
    return [command[1:] for command in ours]


WITH_COMMANDS = [
    page
    for page in PAGES
    if any(commands(block) for block, marked in blocks(page) if not marked)
]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """A folder with all that pages name: models, pictures, data, a configuration."""
    folder = tmp_path_factory.mktemp("stand_ins")
    rng = np.random.default_rng(0)

    # Models: 8x8 in colours, and of the size of the digits.
    for name in ("MODEL", "DENOISER"):
        cmjax.save(folder / name, networks.tiny_model(None, 3))
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "runs" / "mine" / "config.json").write_text('{"run": {}, "loss": {}}')
    cmjax.save(folder / "runs" / "mine" / "model", networks.model(UNET))

    # Pictures.
    names = ["photo.png", "thumbnail.png", "old.jpg", "sketch.png"]
    names += [f"{kind}/{i}.png" for kind in ("photos", "thumbnails") for i in range(4)]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / name)
    hole = np.zeros((8, 8), np.uint8)
    hole[4:] = 255
    Image.fromarray(hole).save(folder / "hole.png")

    # Data, and features.
    digits = rng.integers(0, 256, (40, 28, 28), np.uint8)
    np.savez(folder / "mnist.npz", x_train=digits, y_train=np.arange(40) % 10)
    small = rng.integers(0, 256, (40, 8, 8), np.uint8)
    np.savez(folder / "small.npz", images=small, labels=np.arange(40) % 3)
    np.savez(folder / "statistics.npz", mu=np.zeros(4), sigma=np.eye(4))
    np.save(folder / "features.npy", rng.normal(size=(40, 4)))
    (folder / "mypkg").mkdir()
    (folder / "mypkg" / "clip.py").write_text(
        "def embed(images):\n    return images.reshape(len(images), -1)[:, :4] / 255\n"
    )

    # What `cmjax train --init` prints takes hours; this takes two steps.
    settings = TINY_TOML + '[data]\nsource = "small.npz"\n'
    (folder / "small.toml").write_text(settings)
    (folder / "guided.toml").write_text(
        settings.replace(
            "num_class_embeds = 3", "num_class_embeds = 3\nnull_class = true"
        ).replace("steps = 6", "steps = 6\nlabel_dropout = 0.1")
    )
    return folder


def smaller(command, folder):
    """Returns a command that does less."""
    command = [re.sub(r"^run\.steps=\d+$", "run.steps=7", word) for word in command]
    task = command[1] if command[0] == "edit" else command[0]

    # Levels that are given stay, and a check of a folder takes no number.
    if task in SMALLER and "--sigmas" not in command and "--verify" not in command:
        command += SMALLER[task]
    if task == "train" and not (folder / command[1]).exists() and "--init" not in command:
        command += ["--dry-run"]
    return command


def run(command, folder):
    """Runs a command, with its output in a file if that is what it says."""
    if command[0] == "train" and "--out" in command:
        shutil.rmtree(folder / command[-1], ignore_errors=True)  # a run that begins
    out = None
    if ">" in command:
        *command, _, out = command
    result = CliRunner().invoke(cli.main, smaller(command, folder))
    assert result.exit_code == 0, (command, result.stderr, result.exception)
    if out is not None:
        (folder / out).write_text(result.stdout)


def parse(command):
    """Parses a command that cannot be run here: its options are there, and take such values."""
    group = cli.main
    while hasattr(group, "commands"):
        group = group.commands[command[0]]
        command = command[1:]
    group.make_context("cmjax", list(command))


@pytest.mark.parametrize("page", [*map(thorough, WITH_COMMANDS)], ids=name_of)
def test_the_commands_of_a_page_run(page, stand_ins, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    shutil.copytree(stand_ins, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("cmjax.training.reports.describe", lambda config: "described")
    with jax.numpy_dtype_promotion("standard"):
        for block, is_marked in blocks(page):
            for command in commands(block):
                if is_marked or "--torch-fidelity" in command:
                    continue
                run(command, folder)
                if "--init" in command:
                    shutil.copy(folder / "small.toml", folder / command[-1])


def test_the_commands_that_are_not_run_are_few_and_parse():
    marked = {}
    for page in PAGES:
        for block, is_marked in blocks(page):
            if not is_marked:
                continue
            marked[name_of(page)] = marked.get(name_of(page), 0) + 1
            for command in commands(block):
                parse(command)
    assert marked == MARKED


def test_every_block_is_run_or_marked():
    for page in PAGES:
        for block, is_marked in blocks(page):
            is_shell = all(map(is_command, lines(block)))
            assert is_marked or is_shell, (name_of(page), block)
