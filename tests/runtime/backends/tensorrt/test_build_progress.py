"""How far a build is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.runtime.backends.tensorrt.build_progress import BuildProgress


def test_children_fill_the_step_that_their_parent_is_at() -> None:
    phases = BuildProgress()
    assert phases.fraction() == 0
    phases.start("building", None, 4)
    phases.step("building")
    assert phases.fraction() == pytest.approx(1 / 4)
    phases.start("timing", "building", 10)
    for _ in range(5):
        phases.step("timing")
    assert phases.fraction() == pytest.approx(1 / 4 + 5 / 10 / 4)
    phases.finish("timing")
    phases.step("building")
    assert phases.fraction() == pytest.approx(2 / 4)


def test_after_cancelling_every_step_says_stop() -> None:
    phases = BuildProgress()
    phases.start("building", None, 4)
    assert phases.step("building")
    phases.cancel()
    assert not phases.step("building")
    assert not phases.step("of a phase that never began")


events = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.sampled_from("abc"), st.sampled_from(["a", "b", None])),
        st.tuples(st.just("step"), st.sampled_from("abc"), st.none()),
        st.tuples(st.just("finish"), st.sampled_from("abc"), st.none()),
    ),
    max_size=40,
)


@given(events, st.integers(-1, 5))
def test_the_fraction_never_falls_and_stays_within_bounds(
    reported: list[tuple[str, str, str | None]], steps: int
) -> None:
    """Whatever TensorRT reports, in whatever order."""
    phases = BuildProgress()
    before = 0.0
    for what, name, parent in reported:
        if what == "start":
            phases.start(name, parent if parent is None or parent < name else None, steps)
        elif what == "step":
            phases.step(name)
        else:
            phases.finish(name)
        assert before <= phases.fraction() <= 1
        before = phases.fraction()
