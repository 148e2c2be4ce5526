"""Processes that are to join: wrong addresses, missing processes, signals meanwhile."""

import signal
import socket
import subprocess
import sys

import jax
import pytest
from click.testing import CliRunner

from cmjax.cli import joining, main
from cmjax.cli.distributed import initialize
from tests.support.cli import ROOT, assert_one_line, program


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("10.0.0.1:1234", ("10.0.0.1", 1234)),
        ("node-1.cluster_a:65535", ("node-1.cluster_a", 65535)),
        ("[::1]:1", ("::1", 1)),
    ],
)
def test_addresses(address, parts):
    assert joining.parse_address(address) == parts


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", "must be HOST:PORT"),
        ("x", "must be HOST:PORT"),
        (":1", "must be HOST:PORT"),
        ("[]:1", "must be HOST:PORT"),
        ("127.0.0.1:", "must have a port from 1 to 65535"),
        ("127.0.0.1:abc", "must have a port from 1 to 65535"),
        ("127.0.0.1:0", "must have a port from 1 to 65535"),
        ("127.0.0.1:65536", "must have a port from 1 to 65535"),
        ("127.0.0.1:-1", "must have a port from 1 to 65535"),
        ("127.0.0.1:1２", "must have a port from 1 to 65535"),
        ("::1:80", "needs brackets around an IPv6 address"),
        ("[::g]:80", "has no IPv6 address within its brackets"),
        ("300.1.1.1:80", "has no host's name or address"),
        ("1.2.3:80", "has no host's name or address"),
        ("a b:80", "has no host's name or address"),
        ("http://host:80", "needs brackets"),
        ("host/x:80", "has no host's name or address"),
        ("x" * 300 + ":80", "has no host's name or address"),
    ],
)
def test_what_is_no_address_is_one_line(address, message):
    for command in (["generate", "--out", "x"], ["train", "x.toml"]):
        args = [*command, "--coordinator", address, "--num-processes", "2"]
        result = CliRunner().invoke(main, [*args, "--process-id", "0"])
        assert_one_line(result, message)


def test_an_address_in_the_environment_is_looked_at_too(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:abc")
    with pytest.raises(ValueError, match="coordinator's address must have a port"):
        initialize("auto", 2, 0)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "two")
    with pytest.raises(ValueError, match="SLURM_STEP_NUM_TASKS must be an integer"):
        initialize(None, None, None)


def test_process_0_has_to_be_able_to_listen():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"{address}: process 0 listens.*in use"):
            initialize(address, 2, 0)
    with pytest.raises(ValueError, match="it cannot: .*an address that this machine has"):
        initialize("203.0.113.1:1234", 2, 0)  # kept for documentation: nobody's
    with pytest.raises(ValueError, match="name 'nowhere.invalid' is not known here"):
        initialize("nowhere.invalid:1234", 2, 0)


@pytest.mark.parametrize(("process", "bind"), [(0, "127.0.0.1:{port}"), (1, None)])
def test_the_service_listens_where_it_was_told_to(monkeypatch, process, bind):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **o: calls.append(o))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    initialize(f"127.0.0.1:{port}", 2, process, 10)
    (options,) = calls
    assert options["coordinator_bind_address"] == (bind and bind.format(port=port))
    assert options["initialization_timeout"] > 10


def test_an_error_of_the_runtime_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no cluster\nand a page of frames")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(ValueError, match="^--coordinator auto: no cluster; outside of TPU"):
        initialize("auto", None, None)


@pytest.mark.process
def test_a_coordinator_that_does_not_answer_is_given_up(tmp_path):
    args = ["generate", "--out", "x", "--coordinator", "127.0.0.1:9", "--process-id", "1"]
    args += ["--num-processes", "2", "--coordinator-timeout", "6"]
    process = program(*args, cwd=tmp_path)
    stdout, stderr = process.communicate(timeout=120)
    waiting, error = stderr.decode().splitlines()
    assert process.returncode == 2 and stdout == b""
    assert waiting == "waiting for all 2 processes to join at 127.0.0.1:9 ..."
    assert error.startswith(
        "Error: --coordinator 127.0.0.1:9: all 2 processes did not join within 6 seconds, and "
        "nothing answers there (Connection refused)"
    )


JOINED = """
import os, signal, socket
from cmjax.cli.distributed import initialize
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
initialize(f"127.0.0.1:{port}", 1, 0)
for name in ("tcp", "tcp6"):
    for line in open(f"/proc/net/{name}"):
        place, there = line.split()[1:3]
        if place.endswith(f":{port:04X}") and there.endswith(":0000"):
            print(place.split(":")[0][-8:], flush=True)
os.kill(os.getpid(), signal.SIGTERM)
print("swallowed", flush=True)
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_signal_after_joining_ends_the_process_which_listens_on_one_address():
    result = subprocess.run(
        [sys.executable, "-c", JOINED], cwd=ROOT, capture_output=True, text=True
    )
    # 127.0.0.1, as the kernel writes it.
    assert result.stdout == "0100007F\n", (result.stdout, result.stderr)
    assert result.returncode == -signal.SIGTERM
