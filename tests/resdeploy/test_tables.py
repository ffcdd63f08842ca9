"""Tests of the text of tables and counts."""

from __future__ import annotations

import pytest

from resdeploy.tables import plural


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 images"), (1, "1 image"), (1.0, "1 image"), (2, "2 images"), (0.5, "0.5 images"),
        (1_234_567, "1234567 images"),
    ],
)  # fmt: skip
def test_a_count_has_all_its_digits(count: float, text: str) -> None:
    assert plural(count, "image") == text
