"""Tests of the rule that decides which output of a network a class folder belongs to."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from resdeploy.errors import DataError
from resdeploy.images.class_mapping import default_labels, map_classes, similar_names, sort_classes

CIFAR = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    "lorry", "van",
)  # fmt: skip
COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
LETTERS = tuple("abcdefghijkl")


@pytest.fixture(autouse=True)
def _all_messages(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "resdeploy")


def test_equal_names_are_matched_without_a_message(caplog: pytest.LogCaptureFixture) -> None:
    assert map_classes(("cat", "dog"), ("dog", "emu", "cat")) == [2, 0]
    assert not caplog.records


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("Cat", "cat"),
        ("cat ", "cat"),
        (" fire  truck", "fire truck"),
        ("fire\u00a0truck", "fire truck"),
        ("fire_truck", "fire truck"),
        ("T-Shirt", "t_shirt"),
        (DECOMPOSED, COMPOSED),
        (COMPOSED.upper(), DECOMPOSED),
        ("STRASSE", "straße"),
        ("zero\u200bwidth", "zerowidth"),
        ("007", "7"),
    ],
)
def test_similar_names_are_matched_and_printed(
    folder: str, label: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert map_classes([folder], ("other", label, "third")) == [1]
    assert f"'{folder}' is '{label}'" in caplog.text


def test_an_equal_name_comes_before_a_similar_one() -> None:
    assert map_classes(("A", "a"), ("a", "A")) == [1, 0]
    assert map_classes(("t-shirt",), ("t shirt", "t-shirt")) == [1]


@pytest.mark.parametrize(
    ("folders", "labels", "message"),
    [
        (("crane",), ("crane", "dog", "crane"), r"fits two labels .* output 0 .* and output 2 "),
        (("CAT",), ("Cat", "cat"), r"'CAT' fits two labels .*'Cat'.*'cat'"),
        (("t_shirt",), ("t shirt", "t-shirt"), r"'t_shirt' fits two labels"),
        (("Cat", "cat"), ("cat", "dog"), r"'Cat' and 'cat' both fit output 0 .*'cat'"),
        ((DECOMPOSED, COMPOSED), ("caf\u00e9", "dog"), "both fit output 0"),
        (("0", "00"), ("cat", "dog"), r"'0' and '00' both fit output 0"),
    ],
)
def test_an_ambiguous_name_is_an_error_that_names_both(
    folders: Sequence[str], labels: Sequence[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        map_classes(folders, labels)


@pytest.mark.parametrize("width", [1, 4])
def test_numbered_folders_are_the_outputs_with_these_numbers(
    width: int, caplog: pytest.LogCaptureFixture
) -> None:
    folders = sorted(f"{number:0{width}d}" for number in range(12))
    assert map_classes(folders, CIFAR) == [int(folder) for folder in folders]
    assert "by number: " in caplog.text
    assert " is 'airplane'" in caplog.text
    assert "and 9 more" in caplog.text


def test_numbered_folders_may_be_a_part_of_the_classes() -> None:
    assert map_classes(("10", "2"), CIFAR) == [10, 2]


def test_numbers_decide_between_equal_labels() -> None:
    assert map_classes(("0", "1", "2"), ("crane", "dog", "crane")) == [0, 1, 2]


def test_labels_that_are_numbers_are_matched_by_name() -> None:
    assert map_classes(("1", "10", "2"), ("10", "2", "1")) == [2, 0, 1]


@pytest.mark.parametrize(
    "folders",
    [
        tuple(str(number) for number in range(1, 13)),  # counted from 1
        ("0", "1", "cat"),
        ("-1", "0"),
        ("\u0661", "\u0662"),  # digits of another script, which only people read as numbers
        ("3" * 19, "4" * 4000),
    ],
)
def test_other_numbers_are_an_error(folders: Sequence[str]) -> None:
    with pytest.raises(DataError, match=r"0 to 11|not one of the 12|order is not clear"):
        map_classes(sorted(folders), CIFAR)


def test_unknown_names_are_matched_by_order_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    folders = [f"n{number:08d}" for number in range(12)]
    assert map_classes(folders, CIFAR) == list(range(12))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "their order is a guess: 'n00000000' is 'airplane'" in caplog.text


def test_words_have_an_order_only_if_the_network_has_no_names() -> None:
    """Words of another language are not in the order of the labels."""
    assert map_classes(("blue", "green", "red"), default_labels(3)) == [0, 1, 2]
    with pytest.raises(DataError, match="'blau' is not one of"):
        map_classes(("blau", "grün", "rot"), ("blue", "green", "red"))


def test_codes_with_zeros_have_a_clear_order() -> None:
    assert map_classes(("class01", "class02", "class10"), ("x", "y", "z")) == [0, 1, 2]


def test_an_order_that_is_not_clear_is_an_error() -> None:
    """Natural order puts class2 before class10, but many programs sort them as strings."""
    folders = sorted(f"class{number}" for number in range(1, 13))
    with pytest.raises(DataError, match="order is not clear: 'class2' or 'class10' first"):
        map_classes(folders, CIFAR)


def test_the_order_is_not_guessed_if_forbidden_or_if_a_name_is_known() -> None:
    for folders, guess in ((LETTERS, False), (("cat", *LETTERS[1:]), True)):
        with pytest.raises(DataError, match="is not one of the 12 classes of net"):
            map_classes(folders, CIFAR, guess=guess, owner="net")


def test_folders_of_splits_are_not_taken_for_two_classes() -> None:
    with pytest.raises(DataError, match="'Train' is not one of"):
        map_classes(("Train", "Validation"), ("cat", "dog"))


def test_a_sign_is_no_space() -> None:
    with pytest.raises(DataError, match="'-1' is not one of"):
        map_classes(("-1",), ("0", "1"))


def test_an_unknown_name_is_an_error_with_the_nearest_label() -> None:
    with pytest.raises(DataError, match=r"'aeroplane' .*; the nearest is 'airplane'") as caught:
        map_classes(("aeroplane", "cat"), CIFAR)
    assert "0 to 11" in str(caught.value.hint)


def test_classes_are_sorted_as_numbers_only_if_all_are_numbers() -> None:
    assert sort_classes(["10", "2", "01"]) == ("01", "2", "10")
    assert sort_classes(["10", "2", "x"]) == ("10", "2", "x")


def test_similar_names_are_found() -> None:
    assert similar_names(("cat", "Dog", "dog")) == ("Dog", "dog")
    assert similar_names(("1", "01")) == ("1", "01")
    assert similar_names(("a_b", "a b")) is None
