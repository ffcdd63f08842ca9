"""The one display of progress: bars on a terminal, lines in a log, with a clock of the test."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest
from rich.console import Console

from resdeploy import progress
from resdeploy.progress import ProgressDisplay

LINE_SECONDS = progress.LINE_SECONDS


@pytest.fixture(autouse=True)
def _lines(_private_folders: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write lines as for users; other tests have none."""
    monkeypatch.setattr(progress, "LINE_SECONDS", LINE_SECONDS)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run_stages(display: ProgressDisplay, clock: Clock) -> None:
    """Work as a command does: 3 s unseen, a stage that stops early, one that fails."""

    def wait(seconds: int) -> None:
        for _ in range(seconds):
            clock.now += 1
            display.tick()

    with display.stage("export", 0):
        wait(5)
        with display.stage("calibrating", 200) as advance:
            for _ in range(10):
                wait(1)
                advance(10)
        with display.stage("unseen", 9):
            clock.now += 0.5
            display.tick()
        with pytest.raises(ZeroDivisionError), display.stage("judging", 4) as advance:
            wait(2)
            advance(2)
            wait(3)
            _ = 1 / 0


def test_a_log_has_a_plain_line_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    run_stages(ProgressDisplay(clock=clock), clock)
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.splitlines() == [
        "export: working for 3 s",
        "calibrating: 0 % (0 of 200)",
        "calibrating: 15 % (30 of 200), 10.0/s, 16 s left",
        "calibrating: 30 % (60 of 200), 10.0/s, 13 s left",
        "calibrating: 45 % (90 of 200), 10.0/s, 10 s left",
        "calibrating: done in 10.0 s",
        "judging: 50 % (2 of 4), 1.0/s, 1 s left",
        "judging: stopped: 50 % (2 of 4), 1.0/s",
    ]  # the result of the command says how long it took


def lines_of_slow_work(capsys: pytest.CaptureFixture[str], inner: int) -> list[str]:
    """Return the lines of three items of 20 s each; each has an inner stage of `inner` items."""
    display = ProgressDisplay(clock=(clock := Clock()))
    with display.stage("export", 0), display.stage("judging", 3) as advance:
        for _ in range(3):
            with display.stage("inner", inner):
                clock.now += 17
            clock.now += 3
            display.tick()
            advance(1)
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("judging")]


def test_the_time_left_does_not_grow_while_an_item_is_unfinished(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert lines_of_slow_work(capsys, inner=0) == [
        "judging: 0 % (0 of 3)",
        "judging: 33 % (1 of 3), 20 s each, 20 s left",
        "judging: 66 % (2 of 3), 20 s each",
        "judging: done in 60.0 s",
    ]


def test_items_of_which_some_have_a_stage_of_their_own_have_no_time_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = lines_of_slow_work(capsys, inner=100)
    assert lines[1] == "judging: 33 % (1 of 3)"


def test_a_negative_total_is_an_unknown_one(capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay(clock=(clock := Clock()))
    with display.stage("round 2", -192) as advance:
        clock.now += 4
        advance(32)
        display.tick()
    assert capsys.readouterr().err.splitlines() == ["round 2: working for 4 s"]


def test_a_terminal_has_bars_that_end_full_or_say_why() -> None:
    clock, file = Clock(), io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, color_system=None)
    run_stages(ProgressDisplay(console, clock), clock)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    drawn = [" ".join(line.split()) for line in re.split("[\r\n]+", text)]
    full = "━" * 30
    assert f"calibrating {full} done in 10.0 s" in drawn
    assert f"calibrating {full[:9]} 30 % (60 of 200), 10.0/s, 13 s left" in drawn
    assert f"judging {full[:15]} stopped: 50 % (2 of 4), 1.0/s" in drawn
    assert any(line.startswith("export") and line.endswith("working for 5 s") for line in drawn)
    assert "unseen" not in text
    assert sys.stderr is not file


def test_short_work_shows_nothing_and_imports_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_is_terminal", lambda: True)
    monkeypatch.delitem(sys.modules, "rich.live", raising=False)
    with progress.progress_bar("reading", 3) as advance:
        advance(1)
    assert capsys.readouterr().err == ""
    assert "rich.live" not in sys.modules


def test_without_rich_a_terminal_has_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_is_terminal", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.live", None)
    clock = Clock()
    display = ProgressDisplay(clock=clock)
    with display.stage("building", 1000):
        clock.now += 4
        display.tick()
    assert capsys.readouterr().err.splitlines() == [
        "building: 0 % (0 of 1000)", "building: done in 4.0 s",
    ]  # fmt: skip


def test_a_thread_draws_while_the_work_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("START_SECONDS", "LINE_SECONDS", "TICK_SECONDS"):
        monkeypatch.setattr(progress, name, 0.01)
    display = ProgressDisplay()
    written = ""
    with display.stage("loading", 0):
        while "loading: working for 0 s\n" not in written:
            time.sleep(0.01)
            written += capsys.readouterr().err


def test_only_the_first_of_several_processes_shows_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "1")
    with progress.progress_bar("epoch 1", 9) as advance:
        advance(1)
    assert not progress._DISPLAY._stages
