"""Candidates: their neighbours, and the options of `export` that express them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from click import Command
from click.testing import CliRunner

from resdeploy.cli.options.console import CommandResult, command
from resdeploy.cli.options.preprocessing import preprocessing_options, take_settings
from resdeploy.export.preprocessing_search.candidates import (
    LARGE_SIZES,
    describe,
    describe_common,
    export_options,
    neighbours,
    starting_points,
)
from resdeploy.images.preprocessing import CropOffset, Preprocessing
from resdeploy.images.preprocessing_choice import StatedSettings, choose_preprocessing


def parse_options(text: str) -> Preprocessing:
    """Return the pre-processing that `export` would use with these options."""
    chosen: list[Preprocessing] = []

    @preprocessing_options(default_size="as stated")
    def collect(**settings: Any) -> CommandResult:
        stated = replace(take_settings(settings), image_size=settings["image_size"])
        source = StatedSettings(settings=stated, place="an option", is_option=True)
        chosen.append(choose_preprocessing([source]).preprocessing)
        return CommandResult(None, "")

    parser: Command = command(collect)
    result = CliRunner().invoke(parser, text.split())
    assert result.exit_code == 0, result.output
    return chosen[0]


EVERY = {
    candidate
    for gray in (False, True)
    for start in starting_points(224, gray=gray)
    for candidate in (start, *neighbours(start, LARGE_SIZES))
}


@pytest.mark.parametrize("gray", [False, True])
def test_the_open_settings_are_named_whatever_they_are(gray: bool) -> None:
    starts = starting_points(224, gray=gray)
    common, unsettled = describe_common(starts)
    assert "normalisation (" in unsettled
    assert "224 px" in common
    floored = replace(starts[0], crop_offset=CropOffset.DOWN)
    _, unsettled = describe_common([starts[0], floored])
    assert unsettled == "crop offset (rounded down or usual)"


def test_options_express_every_candidate() -> None:
    for candidate in EVERY:
        assert parse_options(export_options(candidate)) == candidate, describe(candidate)
    floored = replace(starting_points(224, gray=False)[0], crop_offset=CropOffset.DOWN)
    assert parse_options(export_options(floored)) == floored


def test_descriptions_differ() -> None:
    assert len({describe(candidate) for candidate in EVERY}) == len(EVERY)


@pytest.mark.parametrize("gray", [False, True])
def test_neighbours_reach_every_geometry(gray: bool) -> None:
    (first, *_), reached = starting_points(224, gray=gray), set[Preprocessing]()
    new = {first}
    while new:
        reached |= new
        new = {other for one in new for other in neighbours(one, (224, 256))} - reached
    # Two sizes, four crops and the squashed picture, and two filters.
    assert len(reached) == 2 * 5 * 2
