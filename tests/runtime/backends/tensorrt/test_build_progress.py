"""The progress of a build."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.runtime.backends.tensorrt.build_progress import BuildProgress


def test_child_phases_fill_one_step_of_their_parent() -> None:
    progress = BuildProgress()
    assert progress.fraction() == 0
    progress.start("building", None, 4)
    progress.step("building")
    assert progress.fraction() == pytest.approx(1 / 4)
    progress.start("timing", "building", 10)
    for _ in range(5):
        progress.step("timing")
    assert progress.fraction() == pytest.approx(1 / 4 + 5 / 10 / 4)
    progress.finish("timing")
    progress.step("building")
    assert progress.fraction() == pytest.approx(2 / 4)


def test_step_returns_false_after_cancel() -> None:
    progress = BuildProgress()
    progress.start("building", None, 4)
    assert progress.step("building")
    progress.cancel()
    assert not progress.step("building")
    assert not progress.step("of a phase that never began")


events = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.sampled_from("abc"), st.sampled_from(["a", "b", None])),
        st.tuples(st.just("step"), st.sampled_from("abc"), st.none()),
        st.tuples(st.just("finish"), st.sampled_from("abc"), st.none()),
    ),
    max_size=40,
)


@given(events, st.integers(-1, 5))
def test_fraction_never_decreases(reported: list[tuple[str, str, str | None]], steps: int) -> None:
    """Any events of TensorRT, in any order."""
    progress = BuildProgress()
    before = 0.0
    for what, name, parent in reported:
        if what == "start":
            progress.start(name, parent if parent is None or parent < name else None, steps)
        elif what == "step":
            progress.step(name)
        else:
            progress.finish(name)
        assert before <= progress.fraction() <= 1
        before = progress.fraction()
