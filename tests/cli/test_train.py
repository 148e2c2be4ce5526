"""`cmjax train`: configurations to begin with, their data, and what a run says at its end."""

import pytest
from click.testing import CliRunner

from cmjax.cli import main
from cmjax.cli import train as command
from cmjax.training import config as configs
from cmjax.training.presets import preset_text
from tests.support.cli import assert_one_line, succeeded


def train(*args):
    return CliRunner().invoke(main, ["train", *args])


@pytest.mark.parametrize("name", ["pictures", "digits", "cifar10_ict"])
def test_init_prints_a_preset(name):
    args = [] if name == "pictures" else [name]
    printed = succeeded(train("--init", *args)).stdout
    assert printed.rstrip() == preset_text(name).rstrip()
    assert printed.startswith("# ")


@pytest.mark.parametrize(
    ("args", "fragment"),
    [
        ([], "give a CONFIG, a .toml file or a preset; cmjax train --init > my.toml"),
        (["--init", "picture"], "there is no preset 'picture'; did you mean 'pictures'?"),
        (["digits"], "digits: data.source is missing; give --data PATH, an .npz of 28x28"),
        (["cifar10_ict"], "give --data PATH, an .npz, an IDX file or a folder of pictures"),
        (["digits_distilled", "--data", "x"], "run.init: model 'runs/digits/model' is not"),
    ],
)
def test_what_is_missing_is_one_line(tmp_path, monkeypatch, args, fragment):
    monkeypatch.chdir(tmp_path)
    assert_one_line(train(*args), fragment)


def test_a_denoiser_is_sampled_by_its_solver():
    denoiser = configs.read_config("digits")
    assert command._sampler(denoiser) == " --scheduler EDMHeunScheduler --steps 18"
    assert command._sampler(configs.read_config("digits_distilled")) == ""

    # A network that is trained for some levels is sampled at these.
    settings = [("loss.sigmas", [80.0, 2.5])]
    dmd = configs.read_config("imagenet64_dmd", settings)
    assert command._sampler(dmd) == " --sigmas 80,2.5"
