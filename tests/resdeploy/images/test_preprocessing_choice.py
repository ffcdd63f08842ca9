"""Tests of the combination of sources: ranks, margins, channels, assumptions, contradictions."""

from __future__ import annotations

from typing import Any

import pytest

from resdeploy.errors import DataError
from resdeploy.images.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Channels,
    Interpolation,
    Preprocessing,
    ResizeMode,
)
from resdeploy.images.preprocessing_choice import (
    ASSUMED,
    StatedSettings,
    assumption,
    choose_preprocessing,
    describe_choice,
    resize_for,
)
from resdeploy.images.preprocessing_settings import PreprocessingSettings, settings_of

RUN = StatedSettings(
    settings=settings_of(Preprocessing(image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3)),
    place="the run",
    is_checkpoint=True,
)
SQUASH, NONE = ResizeMode.SQUASH, ResizeMode.NONE


def option(**settings: Any) -> StatedSettings:
    return stated("an option", is_option=True, **settings)


def stated(
    place: str, *, is_option: bool = False, is_checkpoint: bool = False, **settings: Any
) -> StatedSettings:
    return StatedSettings(
        settings=PreprocessingSettings(**settings), place=place, is_option=is_option,
        is_checkpoint=is_checkpoint,
    )  # fmt: skip


def choose(*sources: StatedSettings) -> Preprocessing:
    return choose_preprocessing(sources).preprocessing


def test_without_sources_all_is_assumed_and_is_imagenets() -> None:
    choice = choose_preprocessing([])
    assert choice.preprocessing == Preprocessing(image_size=224, resize=256)
    assert set(choice.origins.values()) == {ASSUMED}
    sentence = assumption(choice)
    assert sentence is not None
    for text in ("224 pixels", "shorter side 256", "bilinear", "RGB", "0.485,0.456,0.406", "0.229"):
        assert text in sentence


def test_nothing_is_assumed_of_a_run() -> None:
    choice = choose_preprocessing([RUN])
    assert settings_of(choice.preprocessing) == RUN.settings
    assert assumption(choice) is None
    assert choice.contradiction is None


def test_the_first_source_that_states_a_setting_is_taken() -> None:
    choice = choose_preprocessing(
        [
            option(interpolation=Interpolation.LANCZOS),
            stated("a file", interpolation=Interpolation.NEAREST, mean=(0.1, 0.2, 0.3)),
            stated("the checkpoint", mean=(0.5, 0.5, 0.5), std=(0.7, 0.8, 0.9)),
        ]
    )
    found = choice.preprocessing
    assert found.interpolation is Interpolation.LANCZOS
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.7, 0.8, 0.9))
    assert choice.origins["interpolation"] == "an option"
    assert choice.origins["mean"] == "a file"
    assert choice.origins["std"] == "the checkpoint"
    assert choice.origins["image_size"] == ASSUMED
    line = describe_choice(found, choice.origins)
    assert "lanczos with antialiasing (from an option)" in line
    assert "mean 0.1,0.2,0.3 (from a file)" in line
    assert "224 pixels, shorter side 256, RGB, values 0 to 1 (assumed)" in line


@pytest.mark.parametrize(
    ("size", "fraction", "resize"),
    [
        (224, 0.875, 256),
        (224, 0.95, 235),  # 235.8
        (224, 0.7, 320),  # 320.00000000000006 in floating point
        (224, 0.56, 400),  # 399.99999999999994 in floating point
        (288, 1.0, 288),
        ((160, 224), 0.875, (182, 256)),
    ],
)
def test_the_resize_is_the_size_by_the_crop_fraction_rounded_down(
    size: int | tuple[int, int], fraction: float, resize: int | tuple[int, int]
) -> None:
    assert resize_for(size, fraction) == resize
    for mode in (ResizeMode.SHORTER, SQUASH):
        source = option(image_size=size, crop_fraction=fraction, resize_mode=mode)
        assert choose(source).resize == resize


@pytest.mark.parametrize(
    ("run_size", "run_resize", "size", "resize"),
    [
        (32, 32, 36, 36),
        (224, 256, 288, 329),  # 329.1
        (224, 256, 224, 256),
        (224, 256, (160, 224), (182, 256)),
    ],
)
def test_another_size_changes_only_the_size_and_the_resize_in_proportion(
    run_size: int, run_resize: int, size: int | tuple[int, int], resize: int | tuple[int, int]
) -> None:
    run = Preprocessing(
        image_size=run_size, resize=run_resize, mean=(0.5,) * 3, std=(0.25,) * 3,
        interpolation=Interpolation.BICUBIC, reducing_gap=3.0,
    )  # fmt: skip
    source = StatedSettings(settings=settings_of(run), place="the run")
    expected = Preprocessing(
        image_size=size, resize=resize, mean=(0.5,) * 3, std=(0.25,) * 3,
        interpolation=Interpolation.BICUBIC, reducing_gap=3.0,
    )  # fmt: skip
    assert choose(option(image_size=size), source) == expected


def test_a_margin_is_that_of_its_resize_mode() -> None:
    file = stated("a file", image_size=224, resize=256, resize_mode=ResizeMode.SHORTER)
    assert choose(option(resize_mode=SQUASH), file).resize == 224
    assert choose(option(resize_mode=SQUASH, crop_fraction=0.875), file).resize == 256
    fraction = stated("a file", crop_fraction=0.9, resize_mode=ResizeMode.SHORTER)
    assert choose(option(resize_mode=SQUASH), fraction).resize == 224
    assert choose(option(resize_mode=NONE), fraction).resize == 224


def test_a_crop_fraction_without_a_resize_is_refused() -> None:
    with pytest.raises(DataError, match="--crop-fraction has no effect without a resize"):
        choose(option(resize_mode=NONE, crop_fraction=0.5))


def test_mean_and_std_follow_the_order_of_the_channels() -> None:
    rgb = stated("a file", channels=Channels.RGB, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    found = choose(option(channels=Channels.BGR), rgb)
    assert (found.mean, found.std) == ((0.3, 0.2, 0.1), (0.6, 0.5, 0.4))
    # Those of an option are in the network's order already.
    found = choose(option(channels=Channels.BGR, mean=(0.1, 0.2, 0.3)), rgb)
    assert found.mean == (0.1, 0.2, 0.3)
    assert choose(option(channels=Channels.BGR)).mean == IMAGENET_MEAN[::-1]


def test_one_number_is_that_of_every_channel() -> None:
    found = choose(option(mean=(0.5,), std=(0.25,)))
    assert (found.mean, found.std) == ((0.5,) * 3, (0.25,) * 3)


def test_a_grey_input_has_one_number() -> None:
    assert choose(option(channels=Channels.GRAY), RUN).mean == (0.5,)
    found = choose_preprocessing([option(channels=Channels.GRAY)])
    # The averages of ImageNet's three channels, to three digits.
    assert found.preprocessing.mean == (round(sum(IMAGENET_MEAN) / 3, 3),)
    assert found.preprocessing.std == (round(sum(IMAGENET_STD) / 3, 3),)
    assert "mean 0.449" in (assumption(found) or "")
    with pytest.raises(DataError, match=r"grey, but mean 0.1,0.2,0.3 from an option has three"):
        choose(option(channels=Channels.GRAY, mean=(0.1, 0.2, 0.3)))


@pytest.mark.parametrize(
    ("sources", "reason"),
    [
        ([option(value_range=255)], "0 to 255, but mean 0.485,0.456,0.406 is for 0 to 1"),
        ([option(value_range=255), RUN], "mean 0.5,0.5,0.5 is for 0 to 1"),
        (
            [option(value_range=255, std=(1.0,) * 3), stated("entries", mean=(0.5,) * 3)],
            "mean 0.5,0.5,0.5 is for 0 to 1",
        ),
        ([option(mean=(123.7, 116.3, 103.5))], "from an option is above the largest pixel value 1"),
        ([stated("the checkpoint", image_size=224, resize=200)], "resize is 200, less than the"),
        ([option(image_size=320), stated("the checkpoint", resize=256)], "resize is 256, less"),
    ],
)
def test_impossible_settings_are_refused(sources: list[StatedSettings], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        choose(*sources)


def test_pixels_up_to_255_have_their_own_mean() -> None:
    source = option(value_range=255, mean=(103.5, 116.3, 123.7), std=(1.0,), channels=Channels.BGR)
    found = choose(source)
    assert (found.value_range, found.mean) == (255, (103.5, 116.3, 123.7))


def contradiction(*sources: StatedSettings) -> str | None:
    return choose_preprocessing(sources).contradiction


def test_an_option_that_contradicts_the_checkpoint_is_named_with_both_values() -> None:
    assert contradiction(option(image_size=(36, 48), resize_mode=SQUASH), RUN) == (
        "the pre-processing is not the checkpoint's: squashed to 36x48 (from an option) instead of "
        "covers 36x48 (from the run)"
    )
    assert contradiction(option(mean=(0.4,)), RUN) == (
        "the pre-processing is not the checkpoint's: mean 0.4,0.4,0.4 (from an option) instead of "
        "mean 0.5,0.5,0.5 (from the run)"
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_size": 64}, "64 pixels (from own.json) instead of 32 pixels (from the run)"),
        ({"crop_fraction": 0.8}, "shorter side 40 (from own.json) instead of shorter side 32"),
        (
            {"interpolation": Interpolation.BICUBIC},
            "bicubic with antialiasing (from own.json) instead of bilinear with antialiasing",
        ),
        ({"channels": Channels.BGR}, "BGR (from own.json) instead of RGB (from the run)"),
        ({"std": (0.5,)}, "std 0.5,0.5,0.5 (from own.json) instead of std 0.25,0.25,0.25"),
        ({"resize_mode": NONE}, "not resized (from own.json) instead of shorter side 32"),
    ],
)
def test_a_file_that_contradicts_the_checkpoint_is_named(
    settings: dict[str, Any], words: str
) -> None:
    sentence = contradiction(stated("own.json", **settings), RUN)
    assert sentence is not None
    assert words in sentence
    assert sentence.count(" instead of ") == 1


def test_what_repeats_the_checkpoint_or_only_changes_the_size_is_no_contradiction() -> None:
    same: dict[str, Any] = {"image_size": 32, "mean": (0.5,), "std": (0.25,) * 3}
    assert contradiction(option(**same), RUN) is None
    assert contradiction(stated("own.json", crop_fraction=1.0, **same), RUN) is None
    assert contradiction(option(image_size=64), RUN) is None
    assert contradiction(option(image_size=64)) is None
    # The file states a mean only: what is assumed beside it contradicts nothing.
    partial = stated("weights.pth", is_checkpoint=True, mean=(0.5,))
    assert contradiction(option(resize_mode=SQUASH, std=(0.3,)), partial) is None
