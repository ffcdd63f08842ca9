"""Labels in a wrong order are found, and networks that are merely bad are not accused."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from resdeploy.errors import DataError
from resdeploy.label_check import assign_greedily, check_labels, refuse_wrong_labels
from resdeploy.statistics import IntArray

NAMES = [f"class {index}" for index in range(10)]
CAT, DOG = 3, 5


def answers(
    labels: IntArray, classes: int, accuracy: float, seed: int = 0, confused: float = 0.0
) -> IntArray:
    """Return predictions of a network; `confused` is the share of cats and dogs that it swaps."""
    generator = np.random.default_rng(seed)
    wrong = generator.random(len(labels)) > accuracy
    predicted = np.where(wrong, generator.integers(0, classes, len(labels)), labels)
    swapped = generator.random(len(labels)) < confused
    predicted[swapped & (labels == CAT)] = DOG
    predicted[swapped & (labels == DOG)] = CAT
    return predicted


def drawn(images: int, classes: int, seed: int = 0) -> IntArray:
    return np.random.default_rng(seed).integers(0, classes, images)


def numbers_as_strings(classes: int) -> IntArray:
    return np.array(sorted(range(classes), key=str))


PERMUTATIONS: dict[str, Callable[[int], IntArray]] = {
    "shifted by one": lambda classes: np.roll(np.arange(classes), 1),
    "shifted by three": lambda classes: np.roll(np.arange(classes), -3),
    "reversed": lambda classes: np.arange(classes)[::-1],
    "numbers as strings": numbers_as_strings,
    "strings as numbers": lambda classes: np.argsort(numbers_as_strings(classes)),
    "in another order": lambda classes: np.random.default_rng(1).permutation(classes),
}


@pytest.mark.parametrize("name", PERMUTATIONS)
@pytest.mark.parametrize(
    ("images", "classes", "accuracy"),
    [(5000, 10, 0.8), (300, 10, 0.8), (5000, 100, 0.7), (20000, 1000, 0.75), (600, 12, 0.55)],
)
def test_finds_a_permutation(name: str, images: int, classes: int, accuracy: float) -> None:
    table = PERMUTATIONS[name](classes)
    labels = drawn(images, classes)
    check = check_labels(labels, table[answers(labels, classes, accuracy)], classes)
    moved = {true: got for true, got in enumerate(table.tolist()) if true != got}
    wrong = {true for true in moved if check.moved.get(true) != moved[true]}
    assert len(wrong) <= 0.02 * classes  # a class may have too few images
    assert check.explained / images > accuracy - 0.05


@pytest.mark.parametrize("name", ["shifted by one", "reversed", "numbers as strings"])
def test_finds_a_regular_permutation_with_one_image_per_class(name: str) -> None:
    labels = np.random.default_rng(0).permutation(1000)[:200]
    table = PERMUTATIONS[name](1000)
    check = check_labels(labels, table[answers(labels, 1000, 0.7)], 1000)
    assert check.explained > 120 > 10 > check.correct
    assert len(check.moved) > 950  # the others are where they belong, such as "0"


def test_any_permutation_with_one_image_per_class_is_no_better_than_chance() -> None:
    labels = np.random.default_rng(0).permutation(1000)[:200]
    table = PERMUTATIONS["in another order"](1000)
    check = check_labels(labels, table[answers(labels, 1000, 0.7)], 1000)
    assert check.no_better_than_chance


@pytest.mark.parametrize("images", [200, 1000, 50000])
def test_finds_two_swapped_classes(images: int) -> None:
    labels = drawn(images, 10)
    swapped = np.arange(10)
    swapped[[CAT, DOG]] = DOG, CAT
    check = check_labels(labels, swapped[answers(labels, 10, 0.8)], 10)
    assert check.moved == {CAT: DOG, DOG: CAT}
    assert check.better_than_chance


def test_finds_two_swapped_classes_among_1000() -> None:
    labels = np.repeat(np.arange(1000), 50)
    swapped = np.arange(1000)
    swapped[[281, 282]] = 282, 281
    check = check_labels(labels, swapped[answers(labels, 1000, 0.75)], 1000)
    assert check.moved == {281: 282, 282: 281}


def test_finds_swapped_classes_of_two() -> None:
    labels = drawn(100, 2)
    assert check_labels(labels, 1 - answers(labels, 2, 0.8), 2).moved == {0: 1, 1: 0}


def test_finds_a_shift_among_some_of_the_classes() -> None:
    labels = drawn(500, 50) * 20
    check = check_labels(labels, (answers(labels, 1000, 0.7) + 1) % 1000, 1000)
    assert check.moved[0] == 1
    assert check.moved[980] == 981


# Networks that must not be accused


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("images", "classes", "accuracy", "confused"),
    [
        (5000, 10, 0.22, 0.0),  # 30 % with the lucky guesses
        (300, 10, 0.22, 0.0),
        (5000, 10, 0.3, 0.4),  # more cats are called dogs than cats, and the other way round
        (20, 10, 0.9, 0.0),
        (20, 10, 1.0, 0.0),
        (60, 3, 0.5, 0.0),
        (400, 2, 0.4, 0.0),
        (1000, 1000, 0.2, 0.0),
    ],
)
def test_a_bad_network_is_not_accused(
    images: int, classes: int, accuracy: float, confused: float, seed: int
) -> None:
    labels = drawn(images, classes, seed)
    check = check_labels(labels, answers(labels, classes, accuracy, seed, confused), classes)
    assert not check.no_better_than_chance
    assert not check.moved


def test_a_network_that_confuses_cats_and_dogs_is_not_accused() -> None:
    labels = drawn(5000, 10)
    assert not check_labels(labels, answers(labels, 10, 0.8, confused=0.45), 10).moved


def test_one_photograph_of_each_of_200_classes_is_enough() -> None:
    labels = np.random.default_rng(0).permutation(1000)[:200]
    check = check_labels(labels, answers(labels, 1000, 0.7), 1000)
    assert check.better_than_chance
    assert not check.moved


def test_a_confusion_with_a_class_without_images_is_no_permutation() -> None:
    # ImageNet has "sunglass" and "sunglasses". The data may hold only one of them.
    labels = np.repeat([836, 207], 200)
    predicted = answers(labels, 1000, 0.9)
    predicted[:130] = 837
    check = check_labels(labels, predicted, 1000)
    assert not check.moved
    assert check.better_than_chance


@pytest.mark.parametrize("right", [0, 100, 200])
def test_one_class_alone_proves_nothing(right: int, caplog: pytest.LogCaptureFixture) -> None:
    labels = np.full(200, 4)
    predicted = np.where(np.arange(200) < right, 4, 7)
    with caplog.at_level(logging.WARNING):
        refuse_wrong_labels(labels, predicted, NAMES, "x")
    assert "200 images of 1 of the 10 classes are too few to tell" in caplog.text


def test_constant_predictions_are_chance_and_no_permutation() -> None:
    labels = np.arange(300) % 10
    check = check_labels(labels, np.full(300, 2), 10)
    assert check.no_better_than_chance
    assert not check.moved
    # Four times as many images of one class: 80 % accuracy is chance.
    unbalanced = np.arange(20000) % 5 // 4
    check = check_labels(unbalanced, np.zeros(20000, int), 2)
    assert check.no_better_than_chance
    assert check.correct == check.chance == 16000


@pytest.mark.parametrize("images", [1, 2, 3, 8])
def test_few_images_are_a_warning(images: int, caplog: pytest.LogCaptureFixture) -> None:
    labels = np.arange(images)
    with caplog.at_level(logging.WARNING):
        refuse_wrong_labels(labels, (labels + 1) % 10, NAMES, "x")
    assert (
        "too few to tell whether the labels of x are right and the network is trained"
        in caplog.text
    )


def test_a_network_with_one_class_is_not_judged(caplog: pytest.LogCaptureFixture) -> None:
    refuse_wrong_labels(np.zeros(5, int), np.zeros(5, int), ["only"], "x")
    assert not caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "images"), [(2, 60), (3, 24), (10, 40), (10, 500), (100, 200)])
def test_random_answers_are_rarely_better_than_chance(classes: int, images: int) -> None:
    # The test has 95 % confidence; its normal approximation may add a little.
    draws, better, skilled = 400, 0, 0
    for seed in range(draws):
        labels, random = drawn(images, classes, seed), drawn(images, classes, draws + seed)
        better += check_labels(labels, random, classes).better_than_chance
        # A kappa of 0.2 may be missed in 1 of 1000.
        poor = check_labels(labels, answers(labels, classes, 0.2, seed), classes)
        skilled += poor.no_better_than_chance
    assert better <= 0.08 * draws
    assert skilled <= 2


def test_chance_agrees_with_shuffled_labels() -> None:
    generator = np.random.default_rng(0)
    labels = generator.choice(4, 90, p=[0.7, 0.1, 0.1, 0.1])
    predicted = generator.choice(4, 90, p=[0.5, 0.3, 0.2, 0.0])
    shuffled = [(generator.permutation(labels) == predicted).sum() for _ in range(4000)]
    assert check_labels(labels, predicted, 4).chance == pytest.approx(np.mean(shuffled), abs=0.2)


# Messages


def test_the_error_has_figures_and_pairs() -> None:
    labels = np.arange(500) % 10
    with pytest.raises(DataError) as caught:
        refuse_wrong_labels(labels, (labels + 1) % 10, NAMES, "photos")
    assert str(caught.value) == (
        "the labels of photos are not in the order of the network's classes: its predictions are "
        "correct for 0.0 % of 500 images, but for 100.0 % if labels are renamed (10 of 10: "
        "'class 0' -> 'class 1', 'class 1' -> 'class 2', 'class 2' -> 'class 3', 'class 3' -> "
        "'class 4' and 6 more)"
    )
    assert "order of the labels" in str(caught.value.hint)


def test_the_error_of_chance_says_what_else_it_could_be() -> None:
    labels, predicted = drawn(500, 10, 0), drawn(500, 10, 1)
    with pytest.raises(
        DataError, match=r"500 images, no more than by chance \(\d+\.\d % if the labels were sh"
    ) as caught:
        refuse_wrong_labels(labels, predicted, NAMES, "photos")
    for cause in ("order", "mean and std", "weights are trained"):
        assert cause in str(caught.value.hint)
    refuse_wrong_labels(labels, predicted, NAMES, "photos", only_order=True)


# The assignment


def total_of(counts: np.ndarray) -> int:
    """Return the sum of the assigned counts (K, K), after a check that no class is given twice."""
    table = {(i, j): int(counts[i, j]) for i, j in np.argwhere(counts).tolist()}
    chosen = assign_greedily(table)
    given = [got for got in chosen.values() if got is not None]
    assert len(set(given)) == len(given)
    assert set(chosen) == {true for true, _ in table}
    return sum(table.get((true, got), 0) for true, got in chosen.items() if got is not None)


@given(arrays(np.int64, st.tuples(*[st.shared(st.integers(1, 8))] * 2), elements=st.integers(0, 9)))
@example(np.zeros((4, 4), dtype=np.int64))
def test_the_assignment_has_half_of_the_best_sum(counts: np.ndarray) -> None:
    best = counts[linear_sum_assignment(counts, maximize=True)].sum()
    assert best / 2 <= total_of(counts) <= best


@given(st.permutations(range(8)), st.data())
def test_the_assignment_of_a_network_that_is_right_in_most_cases_is_the_best(
    order: list[int], data: st.DataObject
) -> None:
    counts = data.draw(arrays(np.int64, (8, 8), elements=st.integers(0, 3)))
    counts[np.arange(8), order] += counts.sum(axis=1) + counts.sum(axis=0)[order] + 1
    assert total_of(counts) == counts[linear_sum_assignment(counts, maximize=True)].sum()


def test_identity_is_preferred_among_equals() -> None:
    assert assign_greedily({(0, 1): 5, (0, 0): 5, (1, 1): 5, (2, 1): 9, (1, 0): 1}) == {
        2: 1, 0: 0, 1: None,
    }  # fmt: skip


def test_the_best_of_many_candidates_must_be_better_than_the_best_by_chance() -> None:
    labels = drawn(96, 3, 0)
    tried = [drawn(96, 3, seed) for seed in range(1, 51)]
    best = max(tried, key=lambda predicted: int((predicted == labels).sum()))
    assert check_labels(labels, best, 3).better_than_chance
    assert not check_labels(labels, best, 3, alternatives=len(tried)).better_than_chance
    assert check_labels(labels, labels, 3, alternatives=300).better_than_chance
