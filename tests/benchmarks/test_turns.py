"""Tests of the ceilings that benchmarks measure."""

from __future__ import annotations

import pytest

from benchmarks import turns


@pytest.mark.slow
def test_the_ceilings_are_those_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "CEILING_SECONDS", 0.0)
    ceilings = turns.measure_ceilings()
    assert ceilings is not None
    assert {"fp32", "int8"} <= set(ceilings.operations_per_second)
    assert ceilings.bytes_per_second is not None
