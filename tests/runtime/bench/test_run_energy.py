"""Millijoules and notices in a benchmark; PyTorch may be missing here, as on a board."""

from __future__ import annotations

from pathlib import Path

import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.cli.bench import benchmark_text
from resdeploy.runtime.bench import energy_per_image as per_image
from resdeploy.runtime.bench import rounds
from resdeploy.runtime.bench import runner as runner
from resdeploy.runtime.bench.run import BenchmarkConfig, run_benchmark
from resdeploy.runtime.energy import trace
from tests.boards import ORIN_NANO, host_of, power_mode

QUICK = BenchmarkConfig(
    threads=1, seconds=0.01, without=("pytorch-compile", "pytorch-autocast", "ceilings")
)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rounds, runner):
        monkeypatch.setattr(module, "ROUNDS", 4)
    monkeypatch.setattr(runner, "RUNS", 2)
    monkeypatch.setattr(rounds, "WARM_UP_SECONDS", 0.01)
    monkeypatch.setattr(
        rounds, "STABLE_WITHIN", 1e9
    )  # or a busy machine gives notice that it was not


def test_energy_is_absent_where_nothing_measures_it(tiny_bundle: Bundle, tmp_path: Path) -> None:
    result = run_benchmark(tiny_bundle, QUICK, host=host_of(tmp_path, {}))
    assert all(line.energy is None for line in result.results)
    assert "mJ" not in benchmark_text(result)


def test_a_board_measures_energy_and_gives_notice(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WINDOW_SECONDS", "IDLE_WINDOW_SECONDS"):
        monkeypatch.setattr(per_image, name, 0.05)
    # The sensor never moves: neither what is left of before, nor what a busy machine missed counts.
    monkeypatch.setattr(per_image, "LEAD_SECONDS", 0.0)
    monkeypatch.setattr(trace, "MAX_GAP_SECONDS", 600.0)
    board = host_of(tmp_path, ORIN_NANO, power_mode("15W", 0))
    result = run_benchmark(tiny_bundle, QUICK, host=board)
    for line in result.results:
        assert line.energy is not None
        assert line.energy.watts == pytest.approx(5.016 * 2.1)
        assert line.energy.mj_per_image == pytest.approx(0, abs=1e-9)  # the sensor never moves
        assert line.energy.total_mj_per_image > 0
    assert result.notices == (
        "power mode 15W, not MAXN_SUPER",
        "jetson_clocks is off: clocks follow the load",
    )
    text = benchmark_text(result)
    assert "mJ/image" in text
    assert "energy of the module, measured by ina3221, less an idle power of 10.53 W" in text
    assert "notice: power mode 15W, not MAXN_SUPER" in text
    assert "NVIDIA Jetson Orin Nano" in text
