"""Test of the turns that contenders take without restarts."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.turns import interleave
from resdeploy.progress import silent
from resdeploy.runtime.bench import rounds
from tests.runtime.bench.test_rounds import FakeContender


def test_contenders_take_turns_after_their_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "MIN_ROUNDS", 4)
    contenders: list[Any] = [FakeContender(10.0), FakeContender(5.0)]
    times = interleave(contenders, 0.4, silent)
    assert [len(rounds) for rounds in times] == [4, 4]
    assert contenders[0].turns == [rounds.WARM_UP_SECONDS] * 2 + [0.1] * 4
