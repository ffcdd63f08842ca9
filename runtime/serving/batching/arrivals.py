"""An estimate of how many requests arrive together, which decides if an idle engine waits."""

from __future__ import annotations

# Weights of the newest request in the moving mean and in the decaying maximum.
MEAN_WEIGHT = 0.1
MAXIMUM_WEIGHT = 0.02
# Two clients that send requests at the same time see 0.5 other requests on average.
MIN_MEAN_OTHERS = 0.4


class ArrivalEstimator:
    """Moving statistics of the number of concurrent requests."""

    def __init__(self) -> None:
        """Start with the expectation that requests arrive one at a time."""
        self._mean_others = 0.0
        self._max_concurrent = 1.0

    def observe(self, others: int) -> None:
        """Record a new request that arrived while `others` requests were unanswered."""
        self._mean_others += MEAN_WEIGHT * (others - self._mean_others)
        concurrent = others + 1
        self._max_concurrent = max(
            concurrent,
            self._max_concurrent + MAXIMUM_WEIGHT * (concurrent - self._max_concurrent),
        )

    def expects_more(self, concurrent: int) -> bool:
        """Return True if more than `concurrent` requests are likely to be present soon."""
        return self._mean_others >= MIN_MEAN_OTHERS and concurrent < round(self._max_concurrent)
