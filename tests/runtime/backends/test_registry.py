"""The choice of engines and artifacts, and the errors if none can run."""

from __future__ import annotations

import dataclasses

import onnxruntime
import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import BackendError
from resdeploy.runtime.backends import registry
from resdeploy.runtime.backends.onnxruntime import cpu as onnxruntime_cpu
from resdeploy.runtime.backends.registry import candidates
from tests.fakes import make_engine

# ONNX Runtime before 1.30, as on JetPack 6, does not run TensorRT's encoding.
RUNS = onnxruntime_cpu.artifacts(onnxruntime.__version__)


def names(bundle: Bundle, **choice: str) -> list[str]:
    return [candidate.artifact.name for candidate in candidates(bundle, **choice)]


def test_fastest_artifact_comes_first(tiny_bundle: Bundle) -> None:
    assert names(tiny_bundle) == [n for n in ("int8-cpu", "fp32", "fp16", "int8") if n in RUNS]


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("fp32", ["fp32"]), ("fp16", ["fp16"]), ("int8", ["int8-cpu", "int8"])],
)
def test_selects_a_precision(tiny_bundle: Bundle, precision: str, expected: list[str]) -> None:
    assert names(tiny_bundle, precision=precision) == [n for n in expected if n in RUNS]


def test_unknown_backend_lists_the_known_ones(tiny_bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="no backend 'abacus'") as caught:
        candidates(tiny_bundle, "abacus")
    assert "onnxruntime-cpu" in str(caught.value.hint)


def test_missing_precision_gives_the_export_option(tiny_bundle: Bundle) -> None:
    first = tiny_bundle.manifest.artifacts[:1]
    bundle = Bundle(tiny_bundle.path, dataclasses.replace(tiny_bundle.manifest, artifacts=first))
    with pytest.raises(BackendError, match="no int8 graph for this backend, only fp32") as caught:
        candidates(bundle, precision="int8")
    assert "--int8" in str(caught.value.hint)


def test_without_engines_the_hint_says_what_to_install(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "ENGINES", (make_engine(installed=False),))
    with pytest.raises(BackendError, match="no backend can run here: fake is not") as caught:
        candidates(tiny_bundle)
    assert caught.value.hint == "get it"


def test_chosen_backend_gives_its_reason(tiny_bundle: Bundle) -> None:
    engine = next(engine for engine in registry.ENGINES if engine.name == "tensorrt")
    if engine.check_availability() is None:
        pytest.skip("TensorRT runs on this machine")
    with pytest.raises(BackendError, match="tensorrt cannot run here: ") as caught:
        candidates(tiny_bundle, "tensorrt")
    assert caught.value.hint


def test_auto_skips_engines_that_are_not_automatic(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = dataclasses.replace(make_engine("slow"), automatic=False)
    monkeypatch.setattr(registry, "ENGINES", (slow, make_engine("quick")))
    assert [c.engine.name for c in candidates(tiny_bundle)] == ["quick"]
    assert [c.engine.name for c in candidates(tiny_bundle, "slow")] == ["slow"]


def test_candidates_keep_the_order_of_engines(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = (make_engine("fast", ("int8", "fp16")), make_engine("slow", ("fp32",)))
    monkeypatch.setattr(registry, "ENGINES", engines)
    found = [(c.engine.name, c.artifact.name) for c in candidates(tiny_bundle)]
    assert found == [("fast", "int8"), ("fast", "fp16"), ("slow", "fp32")]
    assert [c.engine.name for c in candidates(tiny_bundle, "slow")] == ["slow"]
