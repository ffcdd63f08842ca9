"""Metrics for Prometheus, and the statistics of the last seconds for the web page."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from resdeploy.runtime.serving.batching.interface import BatchRecord
from resdeploy.runtime.serving.schemas import ModelStats, Stats
from resdeploy.runtime.serving.triton.statistics import ModelTotals

# Buckets of the histograms, in seconds and in images.
SECONDS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
RECENT_SECONDS = 10.0
MAX_RECENT_REQUESTS = 20_000

Metric = TypeVar("Metric", Counter, Gauge, Histogram)


class Metrics:
    """Counters and histograms of one server; only its event loop may call the methods."""

    def __init__(self) -> None:
        self.requests = 0
        self.images = 0
        self.totals: defaultdict[str, ModelTotals] = defaultdict(ModelTotals)
        self._registry = CollectorRegistry()
        self._requests = self._add(
            Counter,
            "resdeploy_requests",
            "Requests by model, endpoint and outcome.",
            "endpoint",
            "outcome",
        )
        self._images = self._add(Counter, "resdeploy_images", "Images that a model has classified.")
        self._stages = self._add(
            Histogram,
            "resdeploy_stage_seconds",
            "Seconds that a request spends in each stage.",
            "stage",
            buckets=SECONDS,
        )
        self._batches = self._add(
            Histogram, "resdeploy_batch_images", "Images per batch.", buckets=SIZES
        )
        self._queued = self._add(
            Gauge, "resdeploy_queue_images", "Queued images, including those being decoded."
        )
        self._ready = self._add(
            Gauge, "resdeploy_ready", "1 if a verified backend serves the model, otherwise 0."
        )
        self._backend = self._add(
            Gauge, "resdeploy_backend", "1 for the backend and graph in use.", "backend", "artifact"
        )
        self._recent: deque[tuple[float, float, int]] = deque(maxlen=MAX_RECENT_REQUESTS)

    def count_batch(self, model: str, record: BatchRecord) -> None:
        self.images += record.images
        self.totals[model].count_batch(record)
        self._images.labels(model).inc(record.images)
        self._batches.labels(model).observe(record.images)
        self._stages.labels(model, "inference").observe(record.inference_seconds)
        queue = self._stages.labels(model, "queue")
        for seconds in record.queue_seconds:
            queue.observe(seconds)

    def count_decoding(self, model: str, seconds: float) -> None:
        """Record the seconds in which the pictures of one request were decoded."""
        self._stages.labels(model, "decode").observe(seconds)
        self.totals[model].add("compute_input", seconds)

    def count_request(
        self, model: str, endpoint: str, outcome: str, seconds: float, images: int
    ) -> None:
        """Count a request, and include it in the recent statistics if it classified images."""
        self.requests += 1
        self._requests.labels(model, endpoint, outcome).inc()
        if model:
            self.totals[model].add("success" if outcome in ("ok", "partial") else "fail", seconds)
        if images:
            self._recent.append((time.monotonic(), seconds, images))

    def exposition(self, models: list[ModelStats]) -> bytes:
        """Return all metrics, and the states of `models`, in the text format of Prometheus."""
        self._backend.clear()
        for model in models:
            self._queued.labels(model.name).set(model.queue)
            self._ready.labels(model.name).set(model.ready)
            if model.ready:
                self._backend.labels(model.name, model.backend, model.artifact).set(1)
        return generate_latest(self._registry)

    def recent_stats(self, models: list[ModelStats]) -> Stats:
        """Return rates and latencies of the last seconds, together with `models`."""
        since = time.monotonic() - RECENT_SECONDS
        while self._recent and self._recent[0][0] < since:
            self._recent.popleft()
        times = sorted(seconds for _, seconds, _ in self._recent)
        images = sum(count for _, _, count in self._recent)

        def percentile(fraction: float) -> float | None:
            return 1000 * times[min(int(fraction * len(times)), len(times) - 1)] if times else None

        return Stats(
            seconds=RECENT_SECONDS,
            requests_per_second=len(times) / RECENT_SECONDS,
            images_per_second=images / RECENT_SECONDS,
            p50_ms=percentile(0.5),
            p99_ms=percentile(0.99),
            models=models,
        )

    def _add(
        self, kind: type[Metric], name: str, text: str, *labels: str, **options: Any
    ) -> Metric:
        return kind(name, text, ["model", *labels], registry=self._registry, **options)
