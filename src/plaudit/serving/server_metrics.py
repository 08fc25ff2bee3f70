"""Prometheus metrics of a server, in a registry of their own. No label holds anything that a client chose."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from plaudit.serving.scheduler import Step
from plaudit.serving.scoring_request import Scored

__all__ = ["ServerMetrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKENS = tuple(float(2**power) for power in range(4, 17))


class ServerMetrics:
    """Counters, gauges and histograms of one server.

    Attributes:
        in_flight: Gauge of requests that are being answered.
        queued_items: Gauge of sequences that wait for a step.
        queued_tokens: Gauge of their tokens.
        weights: Gauge that is 1 for the version of each model's weights that is served now.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"plaudit_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"plaudit_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"plaudit_{name}", text, buckets=buckets, registry=self.registry)

        self._requests = counter("requests", "Requests that were answered.", "dialect", "route", "status")
        self._failures = counter("failures", "Requests that failed, by the kind of failure.", "failure")
        self._items = counter("items", "Sequences that were scored.")
        self._tokens = counter("tokens", "Tokens of the sequences that were scored.")
        self._distinct = counter("distinct_tokens", "Tokens that the models ran, shared prefixes counted once.")
        self._truncated = counter("truncated_items", "Sequences that were truncated.")
        self._steps = counter("steps", "Forward passes.")
        self._seconds = histogram("request_seconds", "Time from a request to its answer.", _SECONDS)
        self._queued = histogram("queue_seconds", "Time from a request to its first step.", _SECONDS)
        self._step_seconds = histogram("step_seconds", "Time of a step.", _SECONDS)
        self._step_tokens = histogram("step_distinct_tokens", "Distinct tokens of a step.", _TOKENS)
        self.in_flight = gauge("requests_in_flight", "Requests that are being answered.")
        self.queued_items = gauge("queued_items", "Sequences that wait for a step.")
        self.queued_tokens = gauge("queued_tokens", "Tokens of the sequences that wait for a step.")
        self.weights = gauge("weights", "1 for the weights that are served.", "model", "weight_version")

    def count_answer(self, dialect: str, route: str, status: int, seconds: float) -> None:
        """Count a request and the time of its answer."""
        self._requests.labels(dialect, route, str(status)).inc()
        self._seconds.observe(seconds)

    def count_failure(self, failure: str) -> None:
        """Count a request that failed."""
        self._failures.labels(failure).inc()

    def count_scored(self, scored: Scored) -> None:
        """Count the sequences of a request that was scored."""
        self._items.inc(len(scored.rewards))
        self._tokens.inc(sum(scored.tokens))
        self._truncated.inc(scored.truncated_items)
        self._queued.observe(scored.queued_seconds)

    def count_step(self, step: Step) -> None:
        """Count a step of a model."""
        self._steps.inc()
        self._distinct.inc(step.distinct_tokens)
        self._step_seconds.observe(step.seconds)
        self._step_tokens.observe(step.distinct_tokens)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
