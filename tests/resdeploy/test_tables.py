"""Tests of the text of tables and counts."""

from __future__ import annotations

import pytest

from resdeploy.tables import factor, percentage, plural, signed, two_digits


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 images"), (1, "1 image"), (1.0, "1 image"), (2, "2 images"), (0.5, "0.5 images"),
        (1_234_567, "1,234,567 images"),
    ],
)  # fmt: skip
def test_a_count_has_all_its_digits(count: float, text: str) -> None:
    assert plural(count, "image") == text


@pytest.mark.parametrize("noun", ["class", "box", "batch"])
def test_a_plural_may_need_two_letters(noun: str) -> None:
    assert plural(2, noun) == f"2 {noun}es"
    assert plural(2, "epoch") == "2 epochs"


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (100.0, 1, "100.0 %"), (99.97, 1, "99.9 %"), (99.94, 1, "99.9 %"), (99.999, 2, "99.99 %"),
        (99.6, 0, "99 %"), (0.0, 1, "0.0 %"), (0.03, 1, "< 0.1 %"), (0.06, 1, "0.1 %"),
        (50.0, 2, "50.00 %"), (100.0, 0, "100 %"), (120.0, 1, "120.0 %"),
    ],
)  # fmt: skip
def test_only_all_and_nothing_look_like_it(value: float, decimals: int, text: str) -> None:
    assert percentage(value, decimals) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1.00"), (4.318, "4.32"), (9.996, "10.0"), (13.39, "13.4"), (234.5, "234")],
)
def test_factors_have_three_digits(value: float, text: str) -> None:
    assert factor(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.7, "0.70"), (1.0, "1.0"), (9.96, "10"), (128.4, "128"), (4.33e-6, "4.3e-06"),
        (0.0, "0.0"), (3e9, "3.0e+09"),
    ],
)  # fmt: skip
def test_trailing_zeros_are_digits(value: float, text: str) -> None:
    assert two_digits(value) == text


def test_nothing_has_no_minus() -> None:
    assert (signed(-0.04, 1), signed(0.04, 1), signed(-0.06, 1)) == ("+0.0", "+0.0", "-0.1")
