"""The picture of the decision tree has the questions and answers of the text beside it."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from tests.docs.pages import DOCS

SVG = "{http://www.w3.org/2000/svg}"
GO_ON = "go on."


def text_tree() -> list[tuple[str, list[tuple[str, str]]]]:
    """Return each question of the list with its answers and their exits."""
    page = (DOCS / "int8-accuracy.md").read_text(encoding="utf-8").replace("`", "")
    tree = list[tuple[str, list[tuple[str, str]]]]()
    for line in page.partition("## The decision tree")[2].partition("\n## ")[0].splitlines():
        if question := re.match(r"\d+\. \*\*(.+?)\*\*", line):
            tree.append((question[1], []))
        elif answer := re.match(rf" +\* (.+?): (?:\*\*(.+?)\*\*|({re.escape(GO_ON)})$)", line):
            tree[-1][1].append((answer[1], answer[2] or answer[3]))
    return tree


def picture_tree() -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the same of the picture, whose groups are in this order."""
    tree = list[tuple[str, list[tuple[str, str]]]]()
    for group in ElementTree.parse(DOCS / "int8-tree.svg").getroot().iter(f"{SVG}g"):
        texts = group.findall(f"{SVG}text")
        labels = [text for text in texts if "s" in text.get("class", "").split()]
        words = " ".join(text.text or "" for text in texts if text not in labels)
        if group.get("class") == "q":
            tree.append((words, []))
        else:
            tree[-1][1].append((labels[0].text or "", words or GO_ON))
    return tree


def test_the_picture_has_the_words_of_the_text() -> None:
    tree = text_tree()
    assert len(tree) == 7
    assert sum(exit_ != GO_ON for _, answers in tree for _, exit_ in answers) == 10
    assert picture_tree() == tree
