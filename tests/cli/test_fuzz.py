"""Hostile argument vectors end in exit code 0, or in one line and exit code 2."""

import pytest
from click.testing import CliRunner

from cmjax.cli import main
from tests.support import cli_fuzz
from tests.support.draws import draws

# Calls that once ended otherwise.
MENDED = [
    ["train", "cifar10_ict", "--set", "run.steps=" + "[" * 5000],
    ["sample", "--scheduler", "cmjax.schedulers:TableScheduler"],
    ["train", "4.toml"],
]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("CMJAX_TRACEBACK", "1")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.fuzz
@pytest.mark.parametrize("first", range(0, draws(800), 100))
def test_a_hundred_calls_from_a_seed_on(first):
    assert cli_fuzz.run(100, first) == {}


@pytest.mark.parametrize("args", MENDED, ids=range(len(MENDED)))
def test_calls_that_were_mended(args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, text in enumerate(cli_fuzz.TOML):
        (tmp_path / f"{i}.toml").write_text(text)
    assert cli_fuzz.problem_of(args) == ""
    assert CliRunner().invoke(main, args).exit_code == 2
