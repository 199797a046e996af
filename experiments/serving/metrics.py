"""Figures of the server in the form that Prometheus reads."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from textgen_experiments.serving.worker import DecodingWorker

LATENCY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds


class ServingMetrics:
    """Counts of requests, texts and tokens, the length of the queue, and latencies.

    Args:
        worker: gives the numbers of texts that wait and run.
    """

    def __init__(self, worker: DecodingWorker) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "textgen_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "textgen_request_seconds",
            "Seconds from a request to its answer.",
            ["route"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self._texts = Counter("textgen_texts", "Texts written.", registry=registry)
        self._source_tokens = Counter(
            "textgen_source_tokens", "Tokens of their sources.", registry=registry
        )
        self._tokens = Counter("textgen_written_tokens", "Tokens of the texts.", registry=registry)
        waiting = Gauge("textgen_waiting_texts", "Texts that wait for a slot.", registry=registry)
        waiting.set_function(lambda: worker.num_waiting)
        running = Gauge("textgen_running_texts", "Texts that are written now.", registry=registry)
        running.set_function(lambda: worker.num_running)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered with an HTTP status after some seconds."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def count_texts(self, source_tokens: Sequence[int], written_tokens: Sequence[int]) -> None:
        """Count texts that were written, by the tokens of each source and of each text."""
        self._texts.inc(len(written_tokens))
        self._source_tokens.inc(sum(source_tokens))
        self._tokens.inc(sum(written_tokens))

    def exposition(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self._registry)

    def summary(self) -> str:
        """Return what was served in a few words."""
        requests = sum(
            sample.value
            for metric in self._requests.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        )
        texts, tokens = (
            self._registry.get_sample_value(f"textgen_{name}_total") or 0
            for name in ("texts", "written_tokens")
        )
        return f"{requests:,.0f} requests, {texts:,.0f} texts, {tokens:,.0f} tokens"
