"""The search for an engine in the cache, its build and its rebuild. The loading is a fake."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import BackendError
from resdeploy.progress import silent
from resdeploy.runtime.backends.base import Batches, OpenOptions
from resdeploy.runtime.backends.cuda import CudaDevice
from resdeploy.runtime.backends.tensorrt import build as building
from resdeploy.runtime.backends.tensorrt import open_engine
from resdeploy.runtime.backends.tensorrt.build import build, choose_artifact
from resdeploy.runtime.backends.tensorrt.builder import BuiltEngine
from resdeploy.runtime.backends.tensorrt.engine_cache import EngineCache
from resdeploy.runtime.backends.tensorrt.engine_key import key_parts
from resdeploy.runtime.backends.tensorrt.inspector import EngineLayer
from resdeploy.runtime.backends.tensorrt.open_engine import find_or_build
from resdeploy.runtime.backends.tensorrt.options import BuildOptions
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import Flavour, installed_version
from tests.fake_gpu import fake_tensorrt

GPU = CudaDevice(
    name="Orin", compute_capability="8.7", multiprocessors=16,
    integrated=True, driver_cuda="12.6",
)  # fmt: skip
CONV = EngineLayer(name="conv1", kind="CaskConvolution", input_types=("int8",))


class Builds:
    """A fake of the builder and the loader that counts builds and fails to load some engines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[str] = []
        self.timings: list[bytes | None] = []
        self.unloadable: set[bytes] = set()
        monkeypatch.setattr(building, "build_engine", self.build)
        monkeypatch.setattr(open_engine, "deserialize", self.load)

    def build(
        self, tensorrt: Any, graph: bytes, options: BuildOptions, *, timings: bytes | None,
        **more: Any,
    ) -> BuiltEngine:  # fmt: skip
        self.batches.append(str(options.batches))
        self.timings.append(timings)
        engine = f"engine {len(self.batches)}".encode()
        return BuiltEngine(engine=engine, timings=b"timings of " + engine, layers=(CONV,))

    def load(self, tensorrt: Any, data: bytes, options: Any) -> bytes:
        if data in self.unloadable:
            raise BackendError("tensorrt 10.3.0 cannot load the engine: another GPU", "")
        return data


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Builds:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    return Builds(monkeypatch)


def find(bundle: Bundle, batches: Batches | None = None, gpu: CudaDevice = GPU) -> Any:
    artifact = bundle.artifact("int8")
    engine, _ = find_or_build(
        fake_tensorrt(), b"graph", artifact, gpu, OpenOptions(batches=batches)
    )
    return engine


def test_builds_an_engine_once(builds: Builds, tiny_bundle: Bundle) -> None:
    assert find(tiny_bundle) == find(tiny_bundle) == b"engine 1"
    assert builds.batches == ["1,8,32"]


def test_runs_the_engine_that_was_built_last(builds: Builds, tiny_bundle: Bundle) -> None:
    find(tiny_bundle)
    assert find(tiny_bundle, Batches(1, 1, 1)) == b"engine 2"
    assert find(tiny_bundle) == b"engine 2"
    assert find(tiny_bundle, Batches()) == b"engine 1"


@pytest.mark.parametrize(
    "change",
    [{"name": "Thor"}, {"compute_capability": "11.0"}, {"multiprocessors": 8},
     {"driver_cuda": "13.0"}],
)  # fmt: skip
def test_another_gpu_or_driver_needs_another_engine(
    builds: Builds, tiny_bundle: Bundle, change: dict[str, Any]
) -> None:
    find(tiny_bundle)
    assert find(tiny_bundle, gpu=dataclasses.replace(GPU, **change)) == b"engine 2"


def test_rebuilds_an_engine_that_does_not_load(
    builds: Builds, tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    find(tiny_bundle)
    builds.unloadable = {b"engine 1"}
    assert find(tiny_bundle) == b"engine 2"
    assert "cannot load the engine: another GPU; it is built again" in caplog.text
    assert find(tiny_bundle) == b"engine 2"
    assert len(EngineCache().records()) == 1


def test_fails_if_a_new_engine_does_not_load(builds: Builds, tiny_bundle: Bundle) -> None:
    builds.unloadable = {b"engine 1"}
    with pytest.raises(BackendError, match="cannot load the engine"):
        find(tiny_bundle)
    assert builds.batches == ["1,8,32"]


def test_reuses_the_timing_cache(builds: Builds, tiny_bundle: Bundle) -> None:
    find(tiny_bundle)
    find(tiny_bundle, Batches(1, 1, 1))
    assert builds.timings == [None, b"timings of engine 1"]


def test_merges_the_timing_caches_of_parallel_builds(
    builds: Builds, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        building, "merge_timings", lambda tensorrt, ours, theirs: ours + b" and " + theirs
    )
    build = builds.build

    def build_in_parallel(*arguments: Any, **more: Any) -> BuiltEngine:
        key = {"version": "10.3.0", "gpu": dataclasses.asdict(GPU)}
        EngineCache("timings").store(key, b"those of another")
        return build(*arguments, **more)

    monkeypatch.setattr(building, "build_engine", build_in_parallel)
    find(tiny_bundle)
    monkeypatch.setattr(building, "build_engine", build)
    find(tiny_bundle, Batches(1, 1, 1))
    assert builds.timings[1] == b"timings of engine 1 and those of another"


def keep(bundle: Bundle, version: str = "10.3.0", gpu: CudaDevice = GPU, **options: Any) -> None:
    """Store an engine that was built on another machine or with other options."""
    tensorrt = dataclasses.replace(fake_tensorrt(), version=version)
    parts = key_parts(tensorrt, bundle.artifact("int8"), gpu, BuildOptions(**options))
    EngineCache().store(parts, f"{version} {gpu.name}".encode())


THOR = dataclasses.replace(GPU, name="Thor")


@pytest.mark.parametrize(
    ("version", "gpu", "options", "can_run"),
    [
        ("10.1.0", GPU, {"version_compatible": True}, True),
        ("11.0.0", GPU, {"version_compatible": True}, False),
        ("10.1.0", GPU, {}, False),
        ("10.3.0", THOR, {"hardware_compatible": True}, True),
        ("10.3.0", THOR, {}, False),
        ("10.1.0", THOR, {"version_compatible": True}, False),
        ("10.1.0", THOR, {"version_compatible": True, "hardware_compatible": True}, True),
    ],
)
def test_finds_compatible_engines(
    builds: Builds,
    tiny_bundle: Bundle,
    version: str,
    gpu: CudaDevice,
    options: dict[str, Any],
    can_run: bool,
) -> None:
    keep(tiny_bundle, version, gpu, **options)
    assert find(tiny_bundle) == (f"{version} {gpu.name}".encode() if can_run else b"engine 1")


def test_prefers_an_engine_for_this_gpu(builds: Builds, tiny_bundle: Bundle) -> None:
    find(tiny_bundle)
    keep(tiny_bundle, "10.3.0", GPU, hardware_compatible=True)
    assert find(tiny_bundle) == b"engine 1"


def test_an_unusable_timing_cache_does_not_stop_a_build(
    builds: Builds, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    find(tiny_bundle, Batches(1, 1, 1))
    EngineCache("timings").folder.chmod(0o777)
    assert find(tiny_bundle) == b"engine 1"
    assert find(tiny_bundle, Batches(2, 2, 2)) == b"engine 2"
    assert len(EngineCache().records()) == 2


def test_parallel_callers_build_once(
    builds: Builds, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = builds.build

    def slow(*arguments: Any, **more: Any) -> BuiltEngine:
        # This is usually long enough for all callers to wait; later ones find the same engine.
        time.sleep(0.2)
        return quick(*arguments, **more)

    monkeypatch.setattr(building, "build_engine", slow)
    with ThreadPoolExecutor(6) as pool:
        engines = list(pool.map(lambda _: find(tiny_bundle), range(6)))
    assert engines == [b"engine 1"] * 6
    assert builds.batches == ["1,8,32"]


def test_key_parts_are_complete(tiny_bundle: Bundle) -> None:
    artifact = tiny_bundle.artifact("int8")
    parts = key_parts(fake_tensorrt(), artifact, GPU, BuildOptions())
    assert list(parts) == ["onnx_sha256", "flavour", "version", "revision", "gpu", "options"]
    assert set(parts["gpu"]) == {
        "name", "compute_capability", "multiprocessors", "integrated", "driver_cuda",
    }  # fmt: skip
    assert set(parts["options"]) == {field.name for field in dataclasses.fields(BuildOptions)}


def test_rtx_key_does_not_depend_on_the_gpu(tiny_bundle: Bundle) -> None:
    tensorrt = fake_tensorrt(Flavour.RTX)
    artifact = tiny_bundle.artifact("int8")
    here, elsewhere = (key_parts(tensorrt, artifact, gpu, BuildOptions()) for gpu in (GPU, None))
    assert here == elsewhere


# Real builds with TensorRT-RTX

needs_rtx = pytest.mark.skipif(
    installed_version(Flavour.RTX) is None, reason="tensorrt-rtx has no wheel for this machine"
)


@needs_rtx
@pytest.mark.parametrize("name", ["fp32", "fp16", "int8"])
def test_caches_a_real_engine(
    tiny_bundle: Bundle, name: str, tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    artifact = tiny_bundle.artifact(name)
    first = build(tiny_bundle, artifact, Flavour.RTX, BuildOptions())
    second = build(tiny_bundle, artifact, Flavour.RTX, BuildOptions())
    third = build(tiny_bundle, artifact, Flavour.RTX, BuildOptions(), force=True)
    assert [report.cached for report in (first, second, third)] == [False, True, False]
    assert first.key == second.key == third.key
    assert first.engine.stat().st_size == third.bytes
    assert (first.convs, first.int8_convs) == (artifact.convs, artifact.int8_convs)


@needs_rtx
def test_warns_of_fewer_int8_convolutions(
    tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    float_graph = dataclasses.replace(
        tiny_bundle.artifact("int8"), file="fp16.onnx", sha256=tiny_bundle.artifact("fp16").sha256
    )
    report = build(tiny_bundle, float_graph, Flavour.RTX, BuildOptions())
    assert report.int8_convs == 0
    assert "runs only 0 convolutions in INT8, but fp16.onnx asks for" in caplog.text


@needs_rtx
def test_rebuilds_a_damaged_engine(
    tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    artifact = tiny_bundle.artifact("int8")
    first = build(tiny_bundle, artifact, Flavour.RTX, BuildOptions())
    first.engine.write_bytes(first.engine.read_bytes()[:-1] + b"x")
    assert not build(tiny_bundle, artifact, Flavour.RTX, BuildOptions(), progress=silent).cached


def test_chooses_the_fastest_or_the_given_graph(tiny_bundle: Bundle) -> None:
    assert choose_artifact(tiny_bundle, None).name == "int8"
    assert [choose_artifact(tiny_bundle, p.precision).name for p in tiny_bundle.manifest.artifacts][
        :2
    ] == ["fp32", "fp16"]
