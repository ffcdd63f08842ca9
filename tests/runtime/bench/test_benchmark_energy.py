"""Tests of energy and notices in a benchmark; PyTorch may be missing, as on a board."""

from __future__ import annotations

from pathlib import Path

import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.cli.bench import benchmark_text
from resdeploy.runtime.bench import energy_per_image as per_image
from resdeploy.runtime.bench import rounds, stopping_rule
from resdeploy.runtime.bench.benchmark import BenchmarkConfig, run_benchmark
from resdeploy.runtime.energy import trace
from tests.boards import ORIN_NANO, host_of, power_mode

QUICK = BenchmarkConfig(
    threads=1,
    seconds=0.01,
    within=100.0,
    without=("pytorch-compile", "pytorch-autocast", "ceilings"),
)


def use_few_short_rounds(patch: pytest.MonkeyPatch, runs_per_contender: int = 1) -> None:
    """Shorten benchmarks; each run starts a process per contender, with PyTorch in 3 s."""
    for module in (rounds, stopping_rule):
        patch.setattr(module, "MIN_ROUNDS", 4)
    patch.setattr(stopping_rule, "RUNS", runs_per_contender)
    patch.setattr(rounds, "WARM_UP_SECONDS", 0.01)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    use_few_short_rounds(monkeypatch)
    # On a busy machine, times that are not stable would add a notice.
    monkeypatch.setattr(rounds, "STABLE_WITHIN", 1e9)


def test_there_is_no_energy_without_a_sensor(tiny_bundle: Bundle, tmp_path: Path) -> None:
    result = run_benchmark(tiny_bundle, QUICK, host=host_of(tmp_path, {}))
    assert all(line.energy is None for line in result.results)
    assert "mJ" not in benchmark_text(result)


def test_a_board_measures_energy_and_reports_notices(
    tiny_bundle: Bundle, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_checkpoint.parent)  # where the weights are found by their name
    for name in ("WINDOW_SECONDS", "IDLE_WINDOW_SECONDS"):
        monkeypatch.setattr(per_image, name, 0.05)
    # The reading never changes, so the lead time and gaps in the samples do not matter.
    monkeypatch.setattr(per_image, "LEAD_SECONDS", 0.0)
    monkeypatch.setattr(trace, "MAX_GAP_SECONDS", 600.0)
    board = host_of(tmp_path, ORIN_NANO, power_mode("15W", 0))
    result = run_benchmark(tiny_bundle, QUICK, host=board)
    for line in result.results:
        assert line.energy is not None
        assert line.energy.watts == pytest.approx(5.016 * 2.1)  # volts and amperes of ORIN_NANO
        assert line.energy.mj_per_image == pytest.approx(0, abs=1e-9)  # the reading never changes
        assert line.energy.total_mj_per_image > 0
    assert result.notices == (
        "the power mode is 15W; MAXN_SUPER is faster",
        "jetson_clocks is off, so the clocks follow the load",
    )
    text = benchmark_text(result)
    assert "mJ/image" in text
    assert "energy of the module, measured by ina3221, less an idle power of 10.53 W" in text
    assert "notice: the power mode is 15W; MAXN_SUPER is faster" in text
    assert "NVIDIA Jetson Orin Nano" in text
