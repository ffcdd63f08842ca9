"""Tests of the rule that decides when a server is ready."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from resdeploy.runtime.serving.readiness import Readiness


@dataclass
class FakeModel:
    """A model with an engine that can answer, or without one."""

    ready: bool


def test_a_server_is_ready_while_all_its_models_are() -> None:
    first, second = FakeModel(True), FakeModel(False)
    models: list[Any] = [first, second]
    readiness = Readiness(models)
    assert readiness.is_model_ready(models[0])
    assert not readiness.is_model_ready(models[1])
    assert not readiness.is_server_ready()
    second.ready = True
    assert readiness.is_server_ready()


def test_nothing_is_ready_while_the_server_stops() -> None:
    models: list[Any] = [FakeModel(True)]
    readiness = Readiness(models)
    readiness.draining = True
    assert not readiness.is_model_ready(models[0])
    assert not readiness.is_server_ready()
