"""Progress of long work: callbacks for the code that works, and the one display of all commands.

On a terminal the display has a bar for each stage, with rate and time left, drawn by `rich`; in a
log, and without that package, it writes a line every few seconds. Work that takes less than a
second shows nothing, so `rich` is not even imported.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")
Advance = Callable[[int], None]
"""A callback for the number of items that were finished since the last call."""
Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""A callback for the name of the work and its number of items; 0 if that is not known."""

START_SECONDS = 1.0  # before a stage is shown
LINE_SECONDS = 3.0  # between two lines: so that one appears at least every 5 s
TICK_SECONDS = 0.2  # between two pictures of the bars


@contextmanager
def silent(what: str, total: int) -> Iterator[Advance]:
    """Display nothing."""
    yield lambda done: None


def named(progress: Progress, part: str) -> Progress:
    """Return a progress that adds the name of a part to that of the work."""
    return lambda what, total: progress(f"{what}, {part}", total)


def counted(
    items: Iterable[Item], advance: Advance, size: Callable[[Item], int] = lambda item: 1
) -> Iterator[Item]:
    """Yield each item, and count its `size` after its use."""
    for item in items:
        yield item
        advance(size(item))


@dataclass(slots=True, eq=False)
class _Stage:
    what: str
    total: int
    begin: float
    advanced: float = 0.0
    """Time of the last call of `advance`."""
    done: int = 0
    shown: bool = False
    uneven: bool = False
    """True if a part of the work has a stage of its own, so that other parts take less time."""

    def advance(self, done: int, now: float) -> None:
        self.done, self.advanced = min(self.total, self.done + done), now

    def status(self, now: float) -> str:
        """Return the finished share, the rate and the time left; or how long it has worked."""
        if not self.total:
            return f"working for {now - self.begin:.0f} s"
        text = f"{100 * self.done // self.total} % ({self.done} of {self.total})"
        seconds = self.advanced - self.begin  # without the unfinished item, which would seem slow
        if self.done and seconds > 0 and not self.uneven:
            rate = self.done / seconds
            each = f"{1 / rate:.0f} s each" if rate < 0.2 else f"{rate:.{_digits(rate)}f}/s"
            text += f", {each}"
            if (left := self.begin + self.total / rate - now) >= 0.5:  # else an item takes longer
                text += f", {left:.0f} s left"
        return text


def _digits(rate: float) -> int:
    return 0 if rate >= 100 else 1


class ProgressDisplay:
    """The running stages, of which the last one is the innermost, and their display on stderr."""

    def __init__(self, console: Any = None, clock: Callable[[], float] | None = None) -> None:
        """Draw on a console of `rich`, by default on stderr if that is a terminal.

        If `clock` is given, a function that returns seconds, the caller must call `tick`; otherwise
        a thread calls it.
        """
        self._console, self._clock = console, clock or time.monotonic
        self._ticking = clock is not None
        self.forget()

    def forget(self) -> None:
        """Start anew, without a stage; for a forked process, in which no thread draws."""
        self._lock = threading.RLock()
        self._stages: list[_Stage] = []
        self._live: Any = None
        self._last_line = 0.0
        sys.stdout = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
        sys.stderr = getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    @contextmanager
    def stage(self, what: str, total: int) -> Iterator[Advance]:
        """Show a stage inside the context; it is complete if the context ends without an error."""
        stage = _Stage(what, max(total, 0), self._clock())
        with self._lock:
            for outer in self._stages:
                outer.uneven = outer.uneven or bool(stage.total)
            self._stages.append(stage)
            if len(self._stages) == 1:
                self._last_line = stage.begin
                if not self._ticking:
                    self._ticking = True
                    threading.Thread(target=self._tick_until_done, daemon=True).start()
        try:
            yield lambda done: stage.advance(done, self._clock())
        except BaseException:
            self._end(stage, f"stopped: {stage.status(self._clock())}")
            raise
        stage.done = stage.total
        self._end(stage, f"done in {self._clock() - stage.begin:.1f} s")

    def tick(self) -> None:
        """Draw the bars, or write a line if the last one is old."""
        with self._lock:
            now = self._clock()
            old = [stage for stage in self._stages if now - stage.begin >= START_SECONDS]
            if not old:
                return
            if self._is_drawn():
                # The outermost stage is the command as a whole: it matters if there is no other.
                rows = [(stage, stage.status(now)) for stage in old[1:] or old]
                for stage, _ in rows:
                    stage.shown = True
                self._live.update(_bars(rows), refresh=True)
            elif now - self._last_line >= LINE_SECONDS:
                self._last_line, old[-1].shown = now, True
                _write_line(f"{old[-1].what}: {old[-1].status(now)}")

    def _end(self, stage: _Stage, outcome: str) -> None:
        with self._lock:
            self._stages[:] = [other for other in self._stages if other is not stage]
            if stage.shown and self._live is not None:
                if stage.total:
                    self._live.console.print(_bars([(stage, outcome)]))
            elif stage.shown and (self._stages or stage.total or outcome.startswith("stopped")):
                # The result of a command says how long the command as a whole took.
                _write_line(f"{stage.what}: {outcome}")
            if not self._stages:
                self.close()

    def close(self) -> None:
        """End all stages: Python aborts if a thread writes to stderr while it exits."""
        with self._lock:
            self._stages.clear()
            if self._live is not None:
                self._live.stop()
                self._live = None

    def _is_drawn(self) -> bool:
        """Return True if there is a terminal and `rich`; start to draw."""
        if self._live is None and (self._console or _is_terminal()):
            with suppress(ImportError):
                from rich.console import Console
                from rich.live import Live

                console = self._console or Console(stderr=True)
                # What is printed meanwhile appears above the bars.
                together = sys.stdout.isatty() and sys.stderr.isatty()
                self._live = Live(
                    console=console, auto_refresh=False, transient=True, redirect_stdout=together
                )
                self._live.start()
        return self._live is not None

    def _tick_until_done(self) -> None:
        while True:
            time.sleep(TICK_SECONDS)
            with self._lock:
                self.tick()
                if not self._stages:
                    self._ticking = False
                    return


def _bars(rows: list[tuple[_Stage, str]]) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    for stage, status in rows:
        bar = ProgressBar(stage.total or None, stage.done, width=30, pulse=not stage.total)
        grid.add_row(Text(stage.what), bar, Text(status))
    return grid


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _write_line(text: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads stderr any more
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


_DISPLAY = ProgressDisplay()
atexit.register(_DISPLAY.close)
os.register_at_fork(after_in_child=_DISPLAY.forget)


def progress_bar(what: str, total: int) -> AbstractContextManager[Advance]:
    """Show progress on stderr, with bars on a terminal or lines; of torchrun only in process 0."""
    if os.environ.get("RANK", "0") != "0":
        return silent(what, total)
    return _DISPLAY.stage(what, total)
