"""A real HTTP server that speaks vLLM's completions protocol for a small model, faults to order."""

import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from textgen_env.beam_search import n_best
from textgen_env.decoding import Sampling, next_action

END = 2


class Server:
    """Serves `model`, whose source is all of a prompt up to the token `separator`.

    Each fault in `faults` spoils one request: a function of the handler that returns True if it has
    answered, or of the answer, which it may change. `asked` are the bodies of all requests.
    """

    def __init__(self, model, separator, name="small"):
        self.model, self.separator, self.name = model, separator, name
        self.faults, self.changes, self.asked, self.headers = deque(), deque(), [], []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
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

    def _handler(server):
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
                self.reply(
                    200, answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                )

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

    def answer(self, body):
        choices = []
        for prompt in body["prompt"]:
            place = prompt.index(self.separator) + 1
            source, written = prompt[:place], prompt[place:]
            with torch.no_grad():
                if "prompt_logprobs" in body:
                    told = self.told(source, written, body["prompt_logprobs"])
                    choices.append({"text": "?", "prompt_logprobs": told})
                else:
                    choices += self.texts(source, written, body)
        numbered = [{"index": index, **choice} for index, choice in enumerate(choices)]
        return {"model": self.name, "choices": numbered[::-1]}  # the protocol promises no order

    def told(self, source, written, k):
        """What vLLM says: nothing of the first token, then the best k and the prompt's own."""
        told = [None, *(entries(torch.zeros(self.model.vocab_size), t, k) for t in source[1:])]
        if written:
            actions = torch.tensor([written])
            logits = self.model.sequence_logits(torch.tensor([[*source, END]]), actions)
            told += [entries(row, t, k) for row, t in zip(logits[0], written, strict=True)]
        return told

    def texts(self, source, written, body):
        source = torch.tensor([[*source, END]])
        steps, count = body["max_tokens"], body.get("n", 1)
        if body.get("use_beam_search"):
            found, _ = n_best(self.model, source, steps, count=count, beam_size=count)
            return [self.choice(text.tolist()) for text in found[0]]
        sampling = generator = None
        if body["temperature"]:
            sampling = Sampling(body["temperature"], body.get("top_k"), body.get("top_p"))
            generator = torch.Generator().manual_seed(body["seed"])
        text, cache = [], self.model.start(source, steps + len(written))
        previous = torch.tensor([1])
        for step in range(steps + len(written)):
            logits, cache = self.model.step(previous, cache)
            for token, bias in body["logit_bias"].items():
                logits[:, int(token)] += bias
            own = next_action(logits, sampling, generator)
            previous = torch.tensor([written[step]]) if step < len(written) else own
            if step >= len(written):
                text.append(int(own))
                if text[-1] == END:
                    break
        return [self.choice(text)]

    def choice(self, tokens):
        tokens = [token for token in tokens if token]
        why = "stop" if END in tokens else "length"
        return {"text": "?", "token_ids": tokens, "finish_reason": why}


def entries(logits, own, k):
    """Of one position; `rank` as vLLM counts."""
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
