"""`cmjax env`: what a report of an error needs, and nothing secret."""

import json

import jax
from click.testing import CliRunner

import cmjax
from cmjax.cli import main
from tests.support.cli import succeeded


def env(*args):
    return succeeded(CliRunner().invoke(main, ["env", *args])).stdout


def test_the_json_names_versions_devices_and_settings(monkeypatch):
    monkeypatch.setenv("JAX_API_TOKEN", "secret")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".5")
    described = json.loads(env("--json"))
    assert described["cmjax"]["version"] == cmjax.__version__
    assert described["packages"]["jax"] == jax.__version__
    assert described["devices"]["used"] == f"{jax.local_device_count()} x cpu"
    assert described["settings"]["jax_numpy_dtype_promotion"] == "strict"
    assert described["environment"]["XLA_PYTHON_CLIENT_MEM_FRACTION"] == ".5"
    assert "secret" not in json.dumps(described)


def test_the_text_says_the_same():
    described = json.loads(env("--json"))
    lines = env().splitlines()
    for section, values in described.items():
        assert section in lines
        for key, value in values.items():
            assert any(line.split(maxsplit=1) == [key, str(value)] for line in lines), key


def test_no_device_is_something_to_report(monkeypatch):
    def fail(*_):
        raise RuntimeError("no GPU\nfound")

    monkeypatch.setattr(jax, "local_devices", fail)
    assert "  none  RuntimeError: no GPU found" in env().splitlines()
