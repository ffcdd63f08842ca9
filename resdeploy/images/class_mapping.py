"""The rule that decides which output of a network a class folder belongs to.

1. By name: the folder has the name of the label, or the same apart from upper and lower case,
   spaces, Unicode normalisation and leading zeros, or else `_` and `-` in place of spaces.
2. By number: all folders are numbers from 0 to N - 1, and folder k is output k of N.
3. By order, which is a guess: no folder has the name of a label, there are as many of both, and all
   folders have codes such as WordNet ids, or the network has no names.

Everything else is an error; the order of the same words in two languages, for example, differs.
"""

from __future__ import annotations

import difflib
import functools
import logging
import re
import unicodedata
from collections.abc import Callable, Sequence

from resdeploy.errors import DataError

logger = logging.getLogger(__name__)

SHOWN_PAIRS = 3
SPLITS = ("train", "val", "valid", "validation", "test")  # folders of splits, not of classes


def map_classes(
    folders: Sequence[str], labels: Sequence[str], *, guess: bool = True, owner: str = "the model"
) -> list[int]:
    """Return the index of the label of each class folder, and log all but equal names.

    Args:
        folders: Names of the folders, all different, sorted.
        labels: Labels of the outputs; several may be equal.
        guess: False to refuse folders that could only be matched by their order.
        owner: What has these labels, for messages.

    Raises:
        DataError: A folder fits no label or several, or several folders fit one label.
    """
    found = _by_name(folders, labels, owner)
    if None not in found:
        outputs = [output for output in found if output is not None]
        others = [pair for pair in zip(folders, outputs) if pair[0] != labels[pair[1]]]
        if others:
            log_once(f"class folders with similar names: {_pairs(others, labels)}")
        return outputs
    unknown = [folder for folder, output in zip(folders, found) if output is None]
    if len(unknown) == len(folders) and not set(map(_spelling, folders)).intersection(SPLITS):
        numbers = [class_number(folder) for folder in folders]
        if all(number is not None and number < len(labels) for number in numbers):
            outputs = [number for number in numbers if number is not None]
            _refuse_shared(folders, outputs, labels, owner)
            log_once(f"class folders by number: {_pairs(zip(folders, outputs), labels)}")
            return outputs
        coded = all(re.search("[0-9]", folder) for folder in folders)
        unnamed = tuple(labels) == default_labels(len(labels))
        if guess and len(folders) == len(labels) and (coded or unnamed):
            return _by_order(folders, labels, owner)
    raise _unknown(unknown[0], labels, owner)


def is_guess(folders: Sequence[str], labels: Sequence[str]) -> bool:
    """Return True if `map_classes` matches these folders only because it may guess."""
    try:
        map_classes(folders, labels, guess=False)
    except DataError:
        return True
    return False


@functools.cache
def log_once(message: str, level: int = logging.INFO) -> None:
    """Log a message, unless this process did before: several steps read the same folders."""
    logger.log(level, "%s", message)


def default_labels(classes: int) -> tuple[str, ...]:
    """Return labels for a network without names of classes."""
    return tuple(f"class {index}" for index in range(classes))


def class_number(name: str) -> int | None:
    """Return the number that a folder's name is, or None."""
    return int(name) if re.fullmatch("[0-9]{1,18}", name) else None


def sort_classes(names: Sequence[str]) -> tuple[str, ...]:
    """Return class names by their numbers if all are numbers, otherwise in the order of strings."""
    if all(class_number(name) is not None for name in names):
        return tuple(sorted(names, key=lambda name: (class_number(name), name)))
    return tuple(sorted(names))


def similar_names(names: Sequence[str]) -> tuple[str, str] | None:
    """Return two names that differ only in case, spaces, normalisation or zeros; None if none."""
    spellings: dict[str, str] = {}
    for name in names:
        if (other := spellings.setdefault(_spelling(name), name)) != name:
            return other, name
    return None


def _spelling(name: str) -> str:
    """Return what similar names have in common: no case, single spaces, NFC, no leading zeros."""
    # Characters of the category Cf, such as the zero-width space, are invisible.
    visible = "".join(char for char in name if unicodedata.category(char) != "Cf")
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFD", visible).casefold())
    text = " ".join(text.split())
    number = class_number(text)
    return text if number is None else str(number)


def _loose_spelling(name: str) -> str:
    return _spelling(re.sub(r"(?<=[^\W_])[_-]+(?=[^\W_])", " ", name))  # not the sign of a number


def _by_name(folders: Sequence[str], labels: Sequence[str], owner: str) -> list[int | None]:
    """Return the output of each folder by the first spelling that fits any label, or None."""
    spellings: tuple[Callable[[str], str], ...] = (str, _spelling, _loose_spelling)
    found: dict[str, int] = {}
    for spell in spellings:
        outputs: dict[str, list[int]] = {}
        for output, label in enumerate(labels):
            outputs.setdefault(spell(label), []).append(output)
        for folder in folders:
            fitting = outputs.get(spell(folder), []) if folder not in found else []
            if len(fitting) > 1:
                first, second = fitting[:2]
                raise DataError(
                    f"the folder '{folder}' fits two labels of {owner}: output {first} "
                    f"('{labels[first]}') and output {second} ('{labels[second]}')",
                    f"name all folders by the numbers of their outputs, 0 to {len(labels) - 1}",
                )
            if fitting:
                found[folder] = fitting[0]
    known = [folder for folder in folders if folder in found]
    _refuse_shared(known, [found[folder] for folder in known], labels, owner)
    return [found.get(folder) for folder in folders]


def _by_order(folders: Sequence[str], labels: Sequence[str], owner: str) -> list[int]:
    def natural(name: str) -> str:
        return re.sub("[0-9]+", lambda number: number[0].zfill(18), name)

    by_number, by_string = sorted(folders, key=natural), sorted(folders)
    for first, second in zip(by_number, by_string):
        if first != second:
            raise DataError(
                f"no folder has the name of one of the {len(labels)} labels of {owner}, such as "
                f"'{labels[0]}', and their order is not clear: '{first}' or '{second}' first",
                f"name them like the labels, or by the numbers of their outputs, 0 to "
                f"{len(labels) - 1}",
            )
    outputs = [by_string.index(folder) for folder in folders]
    pairs = _pairs(zip(by_string, range(len(labels))), labels)
    log_once(
        f"no class folder has the name of a label of {owner}, so their order is a guess: {pairs}",
        logging.WARNING,
    )
    return outputs


def _refuse_shared(
    folders: Sequence[str], outputs: Sequence[int], labels: Sequence[str], owner: str
) -> None:
    owners: dict[int, str] = {}
    for folder, output in zip(folders, outputs):
        if (other := owners.setdefault(output, folder)) != folder:
            raise DataError(
                f"the folders '{other}' and '{folder}' both fit output {output} of {owner}, "
                f"'{labels[output]}'",
                "merge or rename them",
            )


def _unknown(folder: str, labels: Sequence[str], owner: str) -> DataError:
    near = difflib.get_close_matches(folder, labels, 1)
    return DataError(
        f"the folder '{folder}' is not one of the {len(labels)} classes of {owner}"
        + (f"; the nearest is '{near[0]}'" if near else f", such as '{labels[0]}'"),
        "name the folders like the labels, or all by the numbers of their outputs, 0 to "
        f"{len(labels) - 1}",
    )


def _pairs(pairs: Sequence[tuple[str, int]] | zip[tuple[str, int]], labels: Sequence[str]) -> str:
    listed = list(pairs)
    shown = [f"'{folder}' is '{labels[output]}'" for folder, output in listed[:SHOWN_PAIRS]]
    more = len(listed) - SHOWN_PAIRS
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
