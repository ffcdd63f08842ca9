"""Tests of the HTML that a page becomes."""

from __future__ import annotations

import pytest

from resdeploy.pages.blocks import Matrix, Page, Section, Table
from resdeploy.pages.template import to_html

pytest.importorskip("jinja2")


def test_no_line_ends_between_a_number_and_its_sign_or_its_unit() -> None:
    page = Page(title="t", summary=("cat (< 1 %), 12 dB in 3 files",), sections=())
    assert "<li>cat (&lt;\u00a01\u00a0%), 12\u00a0dB in 3 files</li>" in to_html(page).decode()


def test_tables_of_two_sections_have_distinct_names() -> None:
    table = Table(caption="Files. All are the same.", head=("a",), rows=(("1",),))
    sections = tuple(Section(title=f"Graphs of {name}", blocks=(table,)) for name in "ab")
    text = to_html(Page(title="t", summary=(), sections=sections)).decode()
    for name in "ab":
        assert text.count(f'aria-label="Graphs of {name}: Files"') == 1


def test_a_class_without_images_has_no_recall() -> None:
    matrix = Matrix(caption="Confusion matrix.", labels=("a", "b"), counts=((1, 2), (0, 0)))
    page = Page(title="t", summary=(), sections=(Section(title="s", blocks=(matrix,)),))
    rows = to_html(page).decode().replace("\u00a0", " ").split("<tr>")
    assert ">33.3</td>" in rows[-2]
    assert ">-</td>" in rows[-1]
    assert "%" not in rows[-1]
