"""The share of a search follows its candidates, and a duration that is exceeded is revised."""

from __future__ import annotations

import logging

import pytest

from resdeploy.export.preprocessing_search.duration import USUAL_WORK, SearchDuration

LONGER = "the search takes longer than announced"


class Clock:
    """Clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_the_share_is_that_of_the_known_candidates() -> None:
    duration = SearchDuration(Clock())
    assert duration.share == 0
    duration.plan(0, raced=10, waiting=10)
    duration.advance(0.5)
    assert duration.share == pytest.approx(0.25)
    duration.plan(10, raced=10, waiting=20)  # some of them have neighbours of their own
    assert duration.share == pytest.approx(0.25)
    duration.plan(40, raced=0, waiting=0)
    assert duration.share == 1


def test_a_duration_is_revised_once_it_is_exceeded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "resdeploy")
    clock = Clock()
    duration = SearchDuration(clock)
    duration.plan(0, raced=10, waiting=10)
    duration.announce(once=2.0)
    assert "the search usually takes 40 s to 3 min here" in caplog.text
    duration.advance(1.0)
    clock.seconds += 2.0 * USUAL_WORK[1]
    duration.check()
    assert LONGER not in caplog.text
    clock.seconds += 20
    for _ in range(3):
        duration.check()
    assert caplog.text.count(LONGER) == 1  # half is done
    assert "longer than announced: 3 min so far, and about 3 min more" in caplog.text
    clock.seconds += 180
    duration.check()
    assert caplog.text.count(LONGER) == 1
    clock.seconds += 10
    duration.check()
    assert caplog.text.count(LONGER) == 2
