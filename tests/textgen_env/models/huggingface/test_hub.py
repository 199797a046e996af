"""Tests of names on the hub, with a local server that implements the hub's protocol."""

import hashlib
import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load

from tests.support.pretrained import FAMILIES, TEXTS, save_family
from textgen_env.models.huggingface.load import PretrainedError, local_folder
from textgen_env.models.storage import load_model, load_tokenizer

NAME = Path("somebody/llama")
COMMIT = "0123456789" * 4


class Hub(BaseHTTPRequestHandler):
    """Server of one model's files that records the requested paths."""

    files, requests, fail_at = {}, [], None

    def log_message(self, *args):
        """Do nothing, so that requests are not printed."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        self.requests.append(path)
        if self.fail_at and path.endswith(self.fail_at):
            self.connection.close()
        elif path.startswith(f"/api/models/{NAME}/tree/"):
            self.answer(
                json.dumps(
                    [
                        {"type": "file", "path": name, "size": len(content), "oid": oid(content)}
                        for name, content in self.files.items()
                    ]
                )
            )
        elif path.startswith(f"/api/models/{NAME}"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer(json.dumps({"id": str(NAME), "sha": COMMIT, "siblings": siblings}))
        elif path.startswith(f"/{NAME}/resolve/"):
            content = self.files[path.split(f"{COMMIT}/")[1]]
            self.answer(content, {"ETag": f'"{oid(content)}"', "X-Repo-Commit": COMMIT})
        else:
            self.send_error(404)

    def answer(self, content, headers=None):
        content = content.encode() if isinstance(content, str) else content
        self.send_response(200)
        for name, value in {"Content-Length": len(content), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            with suppress(ConnectionError):
                self.wfile.write(content)


def oid(content):
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Start a server with one model, with an empty cache and no local folder of that name."""
    folder = save_family(FAMILIES["llama"], tmp_path / "model")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    handler = type("OneHub", (Hub,), {"requests": [], "files": {
        **files, "README.md": b"card", "pytorch_model.bin": b"never", "onnx/model.json": b"{}",
    }})  # fmt: skip
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE",
        constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}",
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_is_fetched_once_and_then_read_without_a_network(hub, monkeypatch):
    model, tokenizer = load_model(NAME), load_tokenizer(NAME)
    assert tokenizer.decode(tokenizer.encode(TEXTS)) == TEXTS
    assert model.vocab_size == tokenizer.vocab_size
    fetched = {path.rsplit("/", 1)[1] for path in hub.requests if "/resolve/" in path}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
    assert not fetched & {"README.md", "pytorch_model.bin"}
    before = len(hub.requests)
    load_model(NAME)
    load_tokenizer(NAME)
    assert len(hub.requests) == before
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # a port without a server
    assert local_folder(NAME).is_dir()


def test_a_model_that_is_here_in_part_is_not_taken_for_whole(hub):
    hub.fail_at = "model.safetensors"
    with pytest.raises(PretrainedError, match="must be a folder or a name on the hub"):
        load_model(NAME)
    hub.fail_at = None
    load_model(NAME)


def test_pickled_weights_are_neither_fetched_nor_read(hub, tmp_path):
    weights = load(hub.files.pop("model.safetensors"))
    pickled = BytesIO()
    torch.save(weights, pickled)
    hub.files["pytorch_model.bin"] = pickled.getvalue()
    with pytest.raises(PretrainedError, match="no weights in the format safetensors"):
        load_model(NAME)
    assert not any("pytorch_model" in path for path in hub.requests)
    for name, content in hub.files.items():
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_bytes(content)
    with pytest.raises(PretrainedError, match="safetensors, got pytorch_model"):
        load_model(tmp_path / "here")


def test_a_name_that_the_hub_does_not_know_is_reported(hub):
    del hub
    with pytest.raises(PretrainedError, match="got somebody/else: there is no such folder"):
        load_model(Path("somebody/else"))
