"""Whether requests usually come together: only then may an idle engine wait for more of them."""

from __future__ import annotations

# How fast the memory of how many requests come together fades: of the mean, and of the most.
SMOOTHING = 0.1
FADING = 0.02
# Two clients that ask at the same time, again and again, meet 0.5 others on average.
ENOUGH = 0.4


class ArrivalEstimator:
    """How many requests there are at a time, lately."""

    def __init__(self) -> None:
        """Expect nobody."""
        self._met = 0.0  # others that a request meets on average
        self._most = 1.0  # at a time

    def meet(self, others: int) -> None:
        """Learn from a request that came while so many others were not answered yet."""
        self._met += SMOOTHING * (others - self._met)
        present = others + 1
        self._most = max(present, self._most + FADING * (present - self._most))

    def expected(self, present: int) -> bool:
        """Whether more requests than these are likely to come at once."""
        return self._met >= ENOUGH and present < round(self._most)
