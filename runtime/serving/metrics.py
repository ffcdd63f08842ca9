"""What Prometheus can ask for, and the last seconds for the page."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from resdeploy.runtime.serving.batching.instance import BatchRecord

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
RECENT_SECONDS = 10.0
MOST_RECENT = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """What a model is like at the moment."""

    ready: bool
    depth: int
    backend: str
    artifact: str


class Metrics:
    """The figures of one server; all methods belong to its event loop."""

    def __init__(self) -> None:
        """Begin at zero."""
        self.requests = 0
        self.images = 0
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "resdeploy_requests", "Requests, by what became of them.",
            ["model", "endpoint", "outcome"], registry=self._registry,
        )  # fmt: skip
        self._images = Counter(
            "resdeploy_images", "Images that a model has seen.", ["model"], registry=self._registry
        )
        self._stages = Histogram(
            "resdeploy_stage_seconds", "Time that a request spends in a stage.",
            ["model", "stage"], buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self._batches = Histogram(
            "resdeploy_batch_images", "Images that ran together.",
            ["model"], buckets=SIZES, registry=self._registry,
        )  # fmt: skip
        self._depth = Gauge(
            "resdeploy_queue_images", "Images that have not started.",
            ["model"], registry=self._registry,
        )  # fmt: skip
        self._ready = Gauge(
            "resdeploy_ready", "1 where a verified backend serves.",
            ["model"], registry=self._registry,
        )  # fmt: skip
        self._backend = Gauge(
            "resdeploy_backend", "1 for the backend and graph in use.",
            ["model", "backend", "artifact"], registry=self._registry,
        )  # fmt: skip
        self._recent: deque[tuple[float, float, int]] = deque(maxlen=MOST_RECENT)
        self._states: Callable[[], dict[str, ModelState]] = dict

    def watch(self, states: Callable[[], dict[str, ModelState]]) -> None:
        """Ask `states` whenever somebody asks here."""
        self._states = states

    def batch(self, model: str, record: BatchRecord) -> None:
        """A batch ran."""
        self.images += record.images
        self._images.labels(model).inc(record.images)
        self._batches.labels(model).observe(record.images)
        self._stages.labels(model, "inference").observe(record.inference_seconds)
        queue = self._stages.labels(model, "queue")
        for seconds in record.queue_seconds:
            queue.observe(seconds)

    def decoded(self, model: str, seconds: float) -> None:
        """A request's pictures were decoded."""
        self._stages.labels(model, "decode").observe(seconds)

    def request(
        self, model: str, endpoint: str, outcome: str, seconds: float, images: int = 0
    ) -> None:
        """A request was answered; those that a model answered count for the page."""
        self.requests += 1
        self._requests.labels(model, endpoint, outcome).inc()
        if images:
            self._recent.append((time.monotonic(), seconds, images))

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        self._backend.clear()
        for name, state in self._states().items():
            self._depth.labels(name).set(state.depth)
            self._ready.labels(name).set(state.ready)
            if state.ready:
                self._backend.labels(name, state.backend, state.artifact).set(1)
        return generate_latest(self._registry)

    def recent(self) -> dict[str, Any]:
        """The last seconds: requests and images a second, median and 99th percentile."""
        since = time.monotonic() - RECENT_SECONDS
        while self._recent and self._recent[0][0] < since:
            self._recent.popleft()
        times = sorted(seconds for _, seconds, _ in self._recent)
        images = sum(count for _, _, count in self._recent)

        def percentile(share: float) -> float | None:
            return 1000 * times[min(int(share * len(times)), len(times) - 1)] if times else None

        return {
            "seconds": RECENT_SECONDS,
            "requests_per_second": len(times) / RECENT_SECONDS,
            "images_per_second": images / RECENT_SECONDS,
            "p50_ms": percentile(0.5),
            "p99_ms": percentile(0.99),
        }
