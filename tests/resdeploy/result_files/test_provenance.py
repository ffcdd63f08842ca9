"""Tests of the command that a result records."""

from __future__ import annotations

import sys

import pytest

from resdeploy.result_files.provenance import command_line


@pytest.mark.parametrize(
    ("typed", "argv", "recorded"),
    [
        (
            ["/env/bin/python", "/env/bin/resdeploy", "bench", "my photos"],
            ["/env/bin/resdeploy", "bench", "my photos"],
            "resdeploy bench 'my photos'",
        ),
        (
            ["/env/bin/python", "-u", "-m", "benchmarks.latency", "--batch", "1"],
            ["/home/me/benchmarks/latency.py", "--batch", "1"],
            "python -m benchmarks.latency --batch 1",
        ),
        (["python3", "-m", "resdeploy"], ["/x/resdeploy/__main__.py"], "python -m resdeploy"),
        (
            ["resdeploy", "export", "/home/me/a.pth", "-o", "runs/b", "--triton=/srv/c", "x=/"],
            ["resdeploy", "export", "/home/me/a.pth", "-o", "runs/b", "--triton=/srv/c", "x=/"],
            "resdeploy export a.pth -o runs/b --triton=c x=",
        ),
        (["python3", "run.py", "-m", "x"], ["run.py", "-m", "x"], "run.py -m x"),
        ([], ["inside-an-application"], "inside-an-application"),
    ],
)
def test_records_the_command_as_typed(
    typed: list[str], argv: list[str], recorded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", typed)
    monkeypatch.setattr(sys, "argv", argv)
    assert command_line() == recorded
