"""The share of a search that is done, and how long the search takes.

The number of candidates is not known in advance: each one that may still be the best has neighbours
to try. So the share refers to the candidates that are known so far, and can fall.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from resdeploy.tables import duration_text

logger = logging.getLogger(__name__)

# Duration of a search, as that of so many candidates on all images: 39 and 54 were measured, with a
# ResNet-18 on 96 and on 500 pictures of CIFAR-10; half and one and a half times for other networks.
USUAL_WORK = 20, 80
LEAST_EXTENSION = 1.25  # of a duration that was exceeded, so that few lines revise it


class SearchDuration:
    """Estimate of the duration of one search, which starts with this object."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._begin = clock, clock()
        self._longest = math.inf
        self._tried = self._raced = self._waiting = 0
        self._part = 0.0

    @property
    def seconds(self) -> float:
        """Duration of the search so far, in seconds."""
        return self._clock() - self._begin

    @property
    def share(self) -> float:
        """Finished share of the search, from 0 to 1, as far as its candidates are known."""
        known = self._tried + self._raced + self._waiting
        return (self._tried + self._part * self._raced) / known if known else 0.0

    def announce(self, once: float) -> None:
        """Log the usual duration if a candidate takes `once` seconds on all images."""
        shortest, self._longest = (count * once for count in USUAL_WORK)
        logger.info(
            "the search usually takes %s to %s here",
            duration_text(shortest), duration_text(self._longest),
        )  # fmt: skip

    def plan(self, tried: int, raced: int, waiting: int) -> None:
        """Record the numbers of candidates: tried, in the race that begins, and known to follow."""
        self._tried, self._raced, self._waiting, self._part = tried, raced, waiting, 0.0

    def advance(self, part: float) -> None:
        """Record the finished part of the current race, from 0 to 1."""
        self._part = part

    def check(self) -> None:
        """Revise the duration if it is exceeded."""
        seconds = self.seconds
        if seconds <= self._longest:
            return
        # Not before it is exceeded: most candidates that are known are dropped on few images.
        whole = seconds / self.share if self.share else 0.0
        self._longest = max(whole, LEAST_EXTENSION * seconds)
        logger.info(
            "the search takes longer than announced: %s so far, and about %s more if all "
            "candidates that are known now have to be tried",
            duration_text(seconds), duration_text(self._longest - seconds),
        )  # fmt: skip
