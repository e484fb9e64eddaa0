"""What the server counts, for Prometheus."""

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..transports.base import HttpResponse
from .store.jobs import JobStore

__all__ = ["Metrics"]

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_PREFIX = "imagelabs_"


class Metrics:
    """The counters of one server; nothing in them tells who asked or what for."""

    def __init__(self, store: JobStore) -> None:
        """Register the counters, and gauges that ask the store."""
        self._registry = CollectorRegistry()
        self._registry.register(_StoreGauges(store))
        self._jobs = Counter(
            _PREFIX + "jobs", "Jobs that workers ended.", ["outcome"], registry=self._registry
        )
        self._deaths = Counter(
            _PREFIX + "worker_deaths", "Workers that died.", registry=self._registry
        )
        self._queued = self._histogram("queued_seconds", "From submit to a worker.", _SECONDS)
        self._rendering = self._histogram("rendering_seconds", "In a worker.", _SECONDS)
        self._sizes = self._histogram("batch_size", "Jobs in a batch.", _SIZES)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(_PREFIX + name, text, buckets=buckets, registry=self._registry)

    def batch(self, waited: Sequence[float]) -> None:
        """Count a batch that begins; `waited` are the seconds that its jobs were queued."""
        self._sizes.observe(len(waited))
        for seconds in waited:
            self._queued.observe(seconds)

    def outcome(self, kind: str, seconds: float) -> None:
        """Count a job that is "done" or "failed" after so many seconds, or a worker that "died"."""
        if kind == "died":
            self._deaths.inc()
            return
        self._jobs.labels(kind).inc()
        self._rendering.observe(seconds)

    def response(self) -> HttpResponse:
        """Return everything in Prometheus' text format."""
        body = generate_latest(self._registry)
        headers = {
            "content-type": "text/plain; version=0.0.4; charset=utf-8",
            "content-length": str(len(body)),
        }
        return HttpResponse(200, headers, body)


class _StoreGauges(Collector):
    """What the store holds, counted when it is asked for."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def collect(self) -> Iterable[Metric]:
        counts = self._store.counts()
        for name, text, value in (
            ("queued_jobs", "Jobs that wait for a worker.", counts.queued),
            ("rendering_jobs", "Jobs that a worker has.", counts.rendering),
            ("kept_jobs", "Ended jobs that are still known.", counts.kept),
            ("kept_image_bytes", "Bytes of finished images.", counts.image_bytes),
            ("oldest_queued_seconds", "How long the first job has waited.", counts.oldest),
        ):
            yield GaugeMetricFamily(_PREFIX + name, text, value=value)
