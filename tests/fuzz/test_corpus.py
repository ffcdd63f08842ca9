"""Every input that a fuzzer once found, and every seed, is read or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_is_read_or_refused(target: str) -> None:
    inputs = sorted((CORPUS / target).iterdir())
    assert inputs, "a target without a corpus tests nothing"
    for path in inputs:
        TARGETS[target](path.read_bytes())
