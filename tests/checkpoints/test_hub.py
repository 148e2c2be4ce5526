"""The hub: which files it is asked for, and answers that are not a hub's."""

import http.server
import re
import shutil
import socket
import threading

import huggingface_hub
import jax
import numpy as np
import pytest
from flax import nnx

import cmjax
from cmjax.checkpoints import diffusers_weights, hub
from cmjax.models import DiTTransformer2D, DiTTransformer2DConfig
from tests.support import checkpoints
from tests.support.autoencoders import TINY, autoencoder

UNET = f"unet/{diffusers_weights.SAFETENSORS}"


def assert_loads(source="owner/name"):
    loaded = cmjax.load(source).params
    jax.tree.map(np.testing.assert_array_equal, loaded, checkpoints.model().params)


@pytest.mark.parametrize("to", ["cmjax", "diffusers"])
def test_one_request_is_enough_for_what_most_repositories_hold(repository, to):
    remote, _, asked = repository
    cmjax.save(remote, checkpoints.model(), to=to)
    assert_loads("owner/name@v2")
    assert [(repo, revision) for repo, revision, _ in asked] == [("owner/name", "v2")]


@pytest.mark.parametrize("beside", ["unet/diffusion_pytorch_model.fp16", "vae/model"])
def test_the_pickle_is_asked_for_whatever_else_the_cache_holds(
    repository, tmp_path, beside
):
    remote, cache, asked = repository
    path, _ = checkpoints.write(tmp_path, "bin")
    shutil.move(path, remote)
    left = cache / f"{beside}.safetensors"
    left.parent.mkdir()
    left.write_bytes(b"left by another program")
    assert_loads()
    assert len(asked) == 2


def test_a_variant_is_asked_for_last(repository):
    remote, _, asked = repository
    cmjax.save(remote, checkpoints.model(), to="diffusers")
    (remote / UNET).rename(remote / UNET.replace(".safe", ".fp16.safe"))
    assert_loads()
    assert len(asked) == 3


def test_what_is_nowhere_is_named(repository):
    remote, _, _ = repository
    cmjax.save(remote, checkpoints.model(), to="diffusers")
    (remote / UNET).unlink()
    with pytest.raises(ValueError, match="has no diffusion_pytorch_model.safetensors"):
        cmjax.load("owner/name")


class Portal(http.server.BaseHTTPRequestHandler):
    """A network's login page, in place of whatever was asked for."""

    def do_GET(self):
        if self.server.to_login and self.path != "/login":
            self.send_response(302)
            self.send_header("Location", "/login")
        else:
            self.send_response(200)
        self.send_header("Content-Type", self.server.kind)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint(monkeypatch, tmp_path):
    """Makes huggingface_hub ask a port of this machine, with an empty cache."""

    def set_port(port):
        url = f"http://127.0.0.1:{port}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        monkeypatch.setattr(huggingface_hub.hf_api.constants, "ENDPOINT", url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    return set_port


@pytest.mark.parametrize(
    ("kind", "body", "to_login"),
    [
        ("text/html", b"<html>\nPlease log in\n</html>", False),
        ("text/html", b"<html>\nPlease log in\n</html>", True),
        ("application/json", b"[]", False),
        ("application/json", b'{"id": "owner/name"}', False),
        ("application/json", b'{"id": "owner/name", "sha": "12"}', False),
    ],
)
def test_a_login_page_in_place_of_the_hub_is_one_line(endpoint, kind, body, to_login):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Portal)
    server.kind, server.body, server.to_login = kind, body, to_login
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint(server.server_address[1])
    with pytest.raises(ValueError) as caught:
        cmjax.load("owner/name")
    server.shutdown()
    server.server_close()
    assert re.search(
        "'owner/name' is not in the hub's cache.*login page", str(caught.value)
    )
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer_is_not_waited_for_without_end(endpoint, monkeypatch):
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint(silent.getsockname()[1])
        with pytest.raises(
            ValueError, match="nor in the hub's cache, and the hub is not re"
        ):
            cmjax.load("owner/name")


@pytest.mark.parametrize(
    "source, meant",
    [
        ("runs/mnie", "runs/mine"),
        ("./runs/mine2", "runs/mine"),
        ("./rnus/mine/model", "runs/mine/model"),
    ],
)
def test_a_misspelt_folder_is_told_from_what_lies_beside_it(
    tmp_path, monkeypatch, source, meant
):
    def offline(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        cmjax.load(source)


def latent_model():
    """A small transformer with an autoencoder."""
    config = DiTTransformer2DConfig(
        sample_size=4,
        num_layers=1,
        num_attention_heads=1,
        attention_head_dim=4,
        num_embeds_ada_norm=2,
    )
    apply_fn, params = cmjax.from_nnx(DiTTransformer2D(config, rngs=nnx.Rngs(0)))
    scheduler = cmjax.DDIMScheduler()
    return cmjax.Model(apply_fn, params, scheduler, config, autoencoder=autoencoder(TINY))


def test_all_parts_of_a_pipeline_are_asked_for_at_once(repository):
    remote, _, asked = repository
    model = latent_model()
    cmjax.save(remote, model, to="diffusers")
    loaded = cmjax.load("owner/name")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)
    jax.tree.map(
        np.testing.assert_array_equal, loaded.autoencoder.params, model.autoencoder.params
    )
    assert len(asked) == 1


def test_a_variant_of_the_autoencoder_is_asked_for_if_need_be(repository):
    remote, _, asked = repository
    cmjax.save(remote, latent_model())
    weights = remote / "vae" / diffusers_weights.SAFETENSORS
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    assert cmjax.load("owner/name").autoencoder is not None
    assert len(asked) == 3
