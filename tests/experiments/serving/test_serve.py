"""The command `serve` as a process: its lines, its texts, signals, and clients that go away."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

from tests.support.pretrained import FAMILIES, SHARED_POSITIONS, save_family
from tests.support.stopped_runs import PROGRAM
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.storage import load_model, save_model
from textgen_env.tokenizers.subword import Tokenizer
from textgen_experiments.cli import main
from textgen_experiments.serving.access import SERVE_KEY
from textgen_experiments.serving.serve import ServeOptions, opened_batch

BYTES = Tokenizer.train([], vocab_size=259)
SECONDS = 60
ENDLESS = 10_000_000  # tokens of a model that never ends its texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save an untrained model, which repeats itself and ends no text."""
    path = tmp_path_factory.mktemp("served") / "small"
    torch.manual_seed(0)
    model = Recurrent(RecurrentConfig(BYTES.vocab_size, 8, 1, 1)).eval()
    save_model(model, path, BYTES)
    return path


class Process:
    """The command `serve` on a free port.

    Args:
        folder: of the model.
        options: further options.
    """

    def __init__(self, folder, *options):
        words = [sys.executable, "-c", PROGRAM, "serve", str(folder), "--port", "0", *options]
        self.process = subprocess.Popen(
            words,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines = [self.process.stderr.readline() for _ in range(3)]
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)", self.lines[0])[1])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()

    def ask(self, method, route, body=None, **headers):
        """Return status and content of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        with contextlib.closing(connection):
            content = None if body is None else json.dumps(body)
            headers = {"Content-Type": "application/json", **headers}
            connection.request(method, route, content, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def figure(self, name):
        """Return a figure of `/metrics`."""
        _, content = self.ask("GET", "/metrics")
        return float(re.search(rf"^{name} (.*)$", content, re.MULTILINE)[1])

    def stop(self, number):
        """Send a signal, and return the exit code and the lines after the first three."""
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, rest.splitlines()


def generated(folder, lines, monkeypatch, capsysbinary):
    """Return what `textgen generate` writes for lines of text."""
    with contextlib.closing(os.fdopen(os.memfd_create("lines"), "r+")) as stdin:
        stdin.write("\n".join(lines))
        stdin.seek(0)
        monkeypatch.setattr(sys, "stdin", stdin)
        main(["generate", str(folder), "--max-tokens", "12"])
    return capsysbinary.readouterr().out.decode().splitlines()


def test_texts_are_those_of_generate_and_a_signal_ends_in_one_line(
    folder, monkeypatch, capsysbinary
):
    sources = ["Im Anfang", "war das Wort", "und das Wort war bei Gott", "ä"]
    with Process(folder, "--max-tokens", "12", "--name", "mine") as server:
        serving, asking, stopping = server.lines
        assert re.match(r"serving mine \(0\.0 M parameters, float32\) at http://", serving)
        assert f"http://127.0.0.1:{server.port}/translate" in asking
        assert f"kill {server.process.pid}" in stopping
        status, content = server.ask("POST", "/translate", {"text": sources})
        code, rest = server.stop(signal.SIGTERM)
    assert status == 200
    assert json.loads(content)["texts"] == generated(folder, sources, monkeypatch, capsysbinary)
    assert code == 128 + signal.SIGTERM
    assert re.match(r"served 1 requests, 4 texts, 48 tokens in [\d.]+ s$", rest[0])
    assert rest[1:] == ["textgen: stopped"]


@pytest.mark.slow
def test_a_client_that_goes_away_and_a_signal_while_texts_are_written(folder):
    options = ("--max-tokens", str(ENDLESS), "--slots", "1", "--grace", "0.2", "--timeout", "60")
    with Process(folder, *options) as server:
        body = json.dumps({"text": "a"})
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            head = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
            client.sendall(f"POST /translate HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n{body}".encode())
            wait_until(lambda: server.figure("textgen_running_texts") == 1)
        wait_until(lambda: server.figure("textgen_running_texts") == 0)
        short = server.ask("POST", "/translate", {"text": "a", "max_tokens": 2})
        assert short[0] == 200
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(server.ask("POST", "/translate", {"text": "a"}))
        )
        thread.start()
        wait_until(lambda: server.figure("textgen_running_texts") == 1)
        code, rest = server.stop(signal.SIGINT)
        thread.join(SECONDS)
    ((status, content),) = answers
    assert status == 503
    assert json.loads(content)["error"]["message"] == "the server has stopped"
    assert code == 128 + signal.SIGINT
    assert rest[0] == "grace is over: 1 texts are not written"
    assert rest[-1] == "textgen: stopped"
    assert not any("Traceback" in line for line in rest)


def wait_until(condition):
    last = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.01)


@pytest.fixture
def complaint(capsys, monkeypatch):
    """Return a function from the options of `serve` to the one line that it ends with."""
    monkeypatch.delenv(SERVE_KEY, raising=False)

    def run(*words):
        with pytest.raises(SystemExit) as stop:
            main(["serve", *map(str, words)])
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("textgen: ")

    return run


def test_an_address_that_is_taken_is_one_line(folder, complaint):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = complaint(folder, "--port", port)
    assert message.startswith(
        f"host and port must be a free address of this machine, got 127.0.0.1 and {port} ("
    )


def test_an_open_address_without_a_key_is_one_line(folder, complaint):
    message = complaint(folder, "--host", "0.0.0.0")
    assert message.startswith("--host must be a loopback address such as 127.0.0.1 without a key")
    assert "give --api-key-file, or set TEXTGEN_SERVE_KEY" in message


def test_a_folder_without_a_model_is_one_line(tmp_path, complaint):
    message = complaint(tmp_path)
    said = f"model must be the folder of a finished run or of a model, got {tmp_path}"
    assert message == f"{said} (see textgen serve --help)"


def test_a_model_of_another_program_is_one_line(tmp_path, complaint):
    (tmp_path / "model.bin").touch()
    assert f"got {tmp_path} in that of ctranslate2: give the run that it was" in complaint(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--port", "70000"), "--port must be at most 65535, got 70000"),
        (("--slots", "0"), "--slots must be at least 1, got 0"),
        (("--max-waiting", "-1"), "--max-waiting must be at least 0, got -1"),
        (("--timeout", "0"), "--timeout must be above 0, got 0"),
        (("--max-source-tokens", "1"), "--max-source-tokens must be at least 2, got 1"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(folder, complaint, options, message):
    assert complaint(folder, *options).startswith(message)


def test_a_missing_package_names_the_extra(folder, complaint, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("textgen_experiments.serving")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    message = complaint(folder, "--port", "0")
    assert message == ("fastapi must be installed for this: pip install 'textgen-env[serve]'")


@pytest.mark.parametrize(("family", "is_refilled"), [("llama", True), ("shared", False)])
def test_a_pretrained_model_is_refilled_unless_it_counts_one_position(
    tmp_path, family, is_refilled
):
    model = load_model(save_family({**FAMILIES, "shared": SHARED_POSITIONS}[family], tmp_path))
    fitting = ServeOptions(tmp_path, max_source_tokens=20, max_tokens=10)
    batch = opened_batch(model, fitting)
    assert batch.is_refilled == is_refilled
    assert not batch.texts
    with pytest.raises(ValueError, match="must have at most 48 tokens"):
        opened_batch(model, ServeOptions(tmp_path, max_source_tokens=60, max_tokens=10))
