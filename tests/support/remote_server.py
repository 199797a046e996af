"""HTTP server with vLLM's completions protocol for a small model, with faults on demand."""

import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from textgen_env.generation.beam_search import n_best
from textgen_env.generation.decoding import next_action
from textgen_env.generation.sampling import Sampling


class EncoderDecoder:
    """Served encoder-decoder of this project; its source is the prompt up to `separator`."""

    def __init__(self, model, separator):
        self.model, self.separator, self.end = model, separator, model.special.end

    def split(self, prompt):
        """Return the (1, S) source of a prompt, and the tokens after it."""
        stop = prompt.index(self.separator) + 1
        return torch.tensor([[*prompt[:stop], self.end]]), prompt[stop:]

    def logits(self, prompt):
        """Return (P, V) logits; row i predicts the token after the first i + 1 tokens."""
        source, prefix = self.split(prompt)
        logits = self.model.sequence_logits(source, torch.tensor([[*prefix, self.end]]))[0]
        return torch.cat([logits.new_zeros(len(prompt) - len(logits), logits.shape[1]), logits])

    def beam_search(self, prompt, max_steps, beam_size):
        source, _ = self.split(prompt)
        texts, _ = n_best(self.model, source, max_steps, count=beam_size, beam_size=beam_size)
        return [[token for token in text if token] for text in texts[0].tolist()]


class Causal:
    """Served causal model of `transformers`."""

    def __init__(self, model, end):
        self.model, self.end = model, end

    def logits(self, prompt):
        return self.model(input_ids=torch.tensor([prompt])).logits[0]


class Server:
    """Server of an `EncoderDecoder` or a `Causal` model.

    Attributes:
        faults: functions of the handler, one for each of the next requests; a function that returns
            True has sent the response.
        changes: functions from the right response to the one that is sent, one for each of the next
            requests without a fault.
        asked: bodies of all requests.
        headers: headers of all requests.
    """

    def __init__(self, model, name="small"):
        self.model, self.name = model, name
        self.faults, self.changes, self.asked, self.headers = deque(), deque(), [], []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    @torch.no_grad()
    def answer(self, body):
        choices = []
        for prompt in body["prompt"]:
            if "prompt_logprobs" in body:
                positions = self.prompt_logprobs(prompt, body["prompt_logprobs"])
                choices.append({"text": "?", "prompt_logprobs": positions})
            elif body.get("use_beam_search"):
                texts = self.model.beam_search(prompt, body["max_tokens"], body["n"])
                choices += map(self.choice, texts)
            else:
                choices.append(self.choice(self.text(prompt, body)))
        numbered = [{"index": index, **choice} for index, choice in enumerate(choices)]
        return {"model": self.name, "choices": numbered[::-1]}  # the protocol guarantees no order

    def prompt_logprobs(self, prompt, k):
        """Return None for the first token, then the k best tokens and the prompt's own."""
        rows = zip(self.model.logits(prompt), prompt[1:], strict=False)
        return [None, *(entries(logits, token, k) for logits, token in rows)]

    def text(self, prompt, body):
        sampling = generator = None
        if body["temperature"]:
            sampling = Sampling(body["temperature"], body.get("top_k"), body.get("top_p"))
            generator = torch.Generator().manual_seed(body["seed"])
        text = []
        while len(text) < body["max_tokens"] and self.model.end not in text:
            logits = self.model.logits([*prompt, *text])[-1:]
            for token, bias in body["logit_bias"].items():
                logits[:, int(token)] += bias
            shifted = torch.nn.functional.pad(logits, (2, 0))  # `next_action` bans tokens 0 and 1
            text.append(int(next_action(shifted, sampling, generator)) - 2)
        return text

    def choice(self, tokens):
        reason = "stop" if self.model.end in tokens else "length"
        return {"text": "?", "token_ids": tokens, "finish_reason": reason}


def handler_of(server):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append(body)
            server.headers.append(dict(self.headers))
            if server.faults and server.faults.popleft()(self):
                return
            answer = server.answer(body)
            if server.changes:
                answer = server.changes.popleft()(answer)
            self.reply(200, answer if isinstance(answer, bytes) else json.dumps(answer).encode())

        def reply(self, status, content, headers=()):
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    return Handler


def entries(logits, own, k):
    """Return the entries of one position, with ranks as vLLM counts them."""
    log_probs = logits.log_softmax(-1)
    values, tokens = log_probs.topk(k)
    ranked = {own: (log_probs[own], int((logits >= logits[own]).sum()))}
    ranked |= {
        int(t): (v, rank + 1) for rank, (v, t) in enumerate(zip(values, tokens, strict=True))
    }
    return {
        str(token): {"logprob": float(value), "rank": rank, "decoded_token": "?"}
        for token, (value, rank) in ranked.items()
    }
