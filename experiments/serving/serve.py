"""Command `serve`: a student behind HTTP, until a signal stops it."""

import asyncio
import json
import os
import shlex
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import tyro

from textgen_env.bounds import check_above, check_at_least
from textgen_env.generation.open_batch import OpenBatch, OpenText
from textgen_env.models.huggingface.model import HuggingFaceModel
from textgen_env.models.storage import Model, load_tokenizer
from textgen_experiments.evaluation.fastest_precision import ActingPrecision, resolve_precision
from textgen_experiments.models.formats import check_stepped, extra
from textgen_experiments.models.generate import model_folder
from textgen_experiments.runs.interrupts import INTERRUPTS
from textgen_experiments.runs.precisions import load_to_act
from textgen_experiments.runs.progress import tell
from textgen_experiments.serving.access import serving_key
from textgen_experiments.serving.connections import ConnectionErrors, allow_open_files
from textgen_experiments.serving.worker import DecodingWorker

if TYPE_CHECKING:  # they come with the extra `serve`
    from textgen_experiments.serving.uvicorn_server import QuietServer

LARGEST_PORT = 65535
CHECK_EVERY = 0.05  # seconds between two looks for a signal
EXAMPLE = "a source"


@dataclass(frozen=True)
class ServeOptions:
    """Serve a model over HTTP: completions in OpenAI's style, and plain translation.

    Texts of all requests are written in one batch, greedily unless a request asks for sampling.

    Attributes:
        model: folder of a finished run or of a model.
        host: address to listen at. Others than this machine need a key: `--api-key-file`, or the
            environment variable TEXTGEN_SERVE_KEY.
        port: port to listen at; 0 for any that is free.
        name: name of the model in requests; the folder's name by default.
        precision: float32, bfloat16, int8 with products of 8-bit integers, or the fastest of them
            here, which is measured once for a machine and a number of slots.
        slots: texts that are written at once.
        max_waiting: texts that may wait beside them; further ones are refused with status 429.
        max_source_tokens: longest source, in tokens.
        max_tokens: longest output, in tokens.
        max_body_bytes: largest body of a request.
        timeout: seconds for a request; then it is answered with status 504.
        grace: seconds in which requests are finished after a signal.
        api_key_file: file of a key that requests must have.
    """

    model: Annotated[Path, tyro.conf.Positional]
    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    precision: ActingPrecision = "float32"
    slots: int = 64
    max_waiting: int = 1024
    max_source_tokens: int = 512
    max_tokens: int = 128
    max_body_bytes: int = 1_000_000
    timeout: float = 60.0
    grace: float = 10.0
    api_key_file: Path | None = None

    def __post_init__(self) -> None:
        check_at_least(self, slots=1, max_waiting=0, max_source_tokens=2, max_tokens=1)
        check_at_least(self, port=0, max_body_bytes=1, grace=0)
        check_above(self, timeout=0)
        if self.port > LARGEST_PORT:
            raise ValueError(f"port must be at most {LARGEST_PORT}, got {self.port}")


def serve(options: ServeOptions) -> None:
    """Serve a model until SIGINT or SIGTERM, then finish what has begun.

    Raises:
        RunError: there is no such model, one in another program's format, or an extra is missing.
        ValueError: the address cannot be used, it needs a key, or the model cannot read sources of
            that length.
    """
    with extra("serve"):
        from textgen_experiments.serving.app import create_app
        from textgen_experiments.serving.metrics import ServingMetrics
        from textgen_experiments.serving.service import ServedModel, TextService
        from textgen_experiments.serving.uvicorn_server import QuietServer
    key = serving_key(options.host, options.api_key_file)
    folder = model_folder(options.model)
    check_stepped(folder, "to be served")
    with listening_socket(options.host, options.port) as listener:
        precision = resolve_precision(options.precision, folder, options.slots)
        model, tokenizer = load_to_act(folder, precision), load_tokenizer(folder)
        worker = DecodingWorker(opened_batch(model, options), options.max_waiting)
        metrics, name = ServingMetrics(worker), options.name or options.model.resolve().name
        served = ServedModel(name, tokenizer, options.max_source_tokens, options.max_tokens)
        service = TextService(served, worker, options.timeout)
        app = create_app(service, metrics, key=key, most_bytes=options.max_body_bytes)
        begun = time.monotonic()
        with INTERRUPTS.awaited():
            _tell_beginning(name, model, precision, address_of(listener), key is not None)
            allow_open_files()
            worker.start()
            server = QuietServer.of(app, options.grace)
            asyncio.run(serve_until_stopped(server, listener, worker, options.grace))
            tell(f"served {metrics.summary()} in {time.monotonic() - begun:,.1f} s")


def opened_batch(model: Model, options: ServeOptions) -> OpenBatch:
    """Return an empty batch, for a model that has read the longest source once.

    Texts of a pretrained model that counts one position for all rows begin together.

    Raises:
        ValueError: the model cannot read or write texts of that length.
    """
    is_refilled = not (isinstance(model, HuggingFaceModel) and model.rows_move_together)
    batch = OpenBatch(model, options.slots, options.max_tokens, is_refilled=is_refilled)
    longest = torch.full((options.max_source_tokens,), model.vocab_size - 1)
    longest[-1] = model.special.end
    batch.join([OpenText(longest, 1)])
    batch.step()
    batch.clear()
    return batch


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address.

    Raises:
        ValueError: the address is not this machine's, or its port is taken.
    """
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise ValueError(
            f"host and port must be a free address of this machine, got {host} and {port} "
            f"({error.strerror}): choose others, or --port 0 for any free port"
        ) from None


def address_of(listener: socket.socket) -> str:
    """Return the URL of a server that listens at a socket."""
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve_until_stopped(
    server: "QuietServer", listener: socket.socket, worker: DecodingWorker, grace: float
) -> None:
    """Serve until a signal comes, then finish requests for at most `grace` seconds."""
    asyncio.get_running_loop().set_exception_handler(ConnectionErrors())
    serving = asyncio.create_task(server.serve([listener]))
    while not (serving.done() or INTERRUPTS.is_stopping()):
        await asyncio.sleep(CHECK_EVERY)
    worker.close()
    server.should_exit = True
    _, unfinished = await asyncio.wait({serving}, timeout=grace)
    if unfinished:
        tell(f"grace is over: {worker.num_running + worker.num_waiting} texts are not written")
    worker.stop()
    await serving


def _tell_beginning(name: str, model: Model, precision: str, address: str, has_key: bool) -> None:
    """Print what is served, where, how it is asked and how it is stopped."""
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    tell(f"serving {name} ({size:.1f} M parameters, {precision}) at {address}")
    header = ["-H", "Authorization: Bearer KEY"] if has_key else []
    body = ["-H", "Content-Type: application/json", "-d", json.dumps({"text": EXAMPLE})]
    words = ["curl", "-s", f"{address}/translate", *header, *body]
    tell(f"ask it: {shlex.join(words)}")
    tell(f"stop it: Ctrl-C, or kill {os.getpid()}")
