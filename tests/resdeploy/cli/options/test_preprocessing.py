"""Tests of the options of the pre-processing: their names, settings and wrong values."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from resdeploy.cli import main
from resdeploy.cli.options.preprocessing import preprocessing_options, take_settings
from resdeploy.images.preprocessing import REDUCING_GAP, Channels, Interpolation, ResizeMode
from resdeploy.images.preprocessing_settings import (
    NOTHING_STATED,
    PreprocessingSettings,
    option_for,
)

NAMES = (
    "--mean", "--std", "--image-size", "--resize", "--crop-fraction", "--interpolation",
    "--channels", "--value-range", "--preprocessing",
)  # fmt: skip


@pytest.mark.parametrize(
    ("command", "default"), [("export", "as stated, or 224"), ("train", "else fits the images")]
)
def test_each_command_says_its_own_default_size(command: str, default: str) -> None:
    text = " ".join(CliRunner().invoke(main, [command, "--help"]).output.split())
    assert default in text[text.index("--image-size N|HxW") :][:250]


def parse(*arguments: str) -> tuple[PreprocessingSettings, dict[str, Any]]:
    """Return the settings and the other options of a command with these arguments."""
    found: list[Any] = []

    @click.command()
    @preprocessing_options(default_size="as stated")
    def collect(**options: Any) -> None:
        found.extend((take_settings(options), options))

    result = CliRunner().invoke(collect, arguments)
    if result.exit_code:
        raise ValueError(result.output)
    return found[0], found[1]


@pytest.mark.parametrize("command", ["export", "train"])
def test_the_options_have_the_names_that_scripts_use(command: str) -> None:
    options = {name for parameter in main.commands[command].params for name in parameter.opts}
    assert options.issuperset(NAMES)


def test_without_options_nothing_is_stated() -> None:
    assert parse()[0] == NOTHING_STATED
    assert set(parse()[1].values()) == {None}


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        ("--mean 0.1,0.2,0.3", "mean", (0.1, 0.2, 0.3)),
        ("--mean=-1,0,2.5e1", "mean", (-1.0, 0.0, 25.0)),
        ("--std 0.5", "std", (0.5,)),
        ("--resize pad", "resize_mode", ResizeMode.PAD),
        ("--crop-fraction 0.875", "crop_fraction", 0.875),
        ("--interpolation lanczos", "interpolation", Interpolation.LANCZOS),
        ("--no-antialias", "antialias", False),
        ("--antialias", "antialias", True),
        ("--channels gray", "channels", Channels.GRAY),
        ("--value-range 255", "value_range", 255),
        ("--reduced-decoding", "reducing_gap", REDUCING_GAP),
    ],
)
def test_an_option_becomes_its_setting_alone(arguments: str, field: str, value: Any) -> None:
    option = arguments.replace("=", " ").replace("--no-", "--").split()[0]
    assert option_for(field) == option
    assert parse(*arguments.split())[0] == PreprocessingSettings(**{field: value})


@pytest.mark.parametrize(
    ("size", "expected"), [("224", 224), ("160x224", (160, 224)), ("64X96", (64, 96))]
)
def test_a_size_is_one_side_or_height_and_width(size: str, expected: Any) -> None:
    assert parse("--image-size", size)[1]["image_size"] == expected


@pytest.mark.parametrize(
    "arguments",
    [
        "--mean 1,2", "--mean 1,2,3,4", "--mean 1,,2", "--mean a,b,c", "--mean nan,0,0",
        "--mean 1e999,0,0", "--std 0,1,1", "--std=-1", "--image-size 7", "--image-size 1025",
        "--image-size 0x64", "--image-size 32x", "--image-size 32x32x3", "--image-size 3.2",
        "--image-size \uff12", "--resize warp", "--crop-fraction 0", "--crop-fraction 1.01",
        "--crop-fraction nan", "--interpolation box", "--channels cmyk", "--value-range 127",
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused(arguments: str) -> None:
    with pytest.raises(ValueError, match="Invalid value for"):
        parse(*arguments.split())
