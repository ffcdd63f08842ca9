"""The search for TensorRT under its module names."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from resdeploy.errors import BackendError
from resdeploy.runtime.backends.base import Unavailability
from resdeploy.runtime.backends.cuda import CudaDevice
from resdeploy.runtime.backends.tensorrt import tensorrt_or_rtx
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import (
    KEPT_MESSAGES,
    Flavour,
    check_availability,
    dims_to_tuple,
    installed_version,
    load_tensorrt,
)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    load_tensorrt.cache_clear()
    yield
    load_tensorrt.cache_clear()


class Severity:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class Logger:
    Severity = Severity


def fake_module(version: str = "10.3.0.26") -> Any:
    return SimpleNamespace(__name__="tensorrt", __version__=version, ILogger=Logger)


def install(monkeypatch: pytest.MonkeyPatch, **modules: Any) -> None:
    """Make only `modules` importable; None stands for a folder without code."""

    def find(name: str) -> Any:
        if name not in modules:
            return None
        return SimpleNamespace(origin=None if modules[name] is None else f"{name}.py")

    def load(name: str) -> Any:
        if isinstance(modules[name], Exception):
            raise modules[name]
        return modules[name]

    monkeypatch.setattr(tensorrt_or_rtx, "find_spec", find)
    monkeypatch.setattr(tensorrt_or_rtx, "import_module", load)


def test_each_flavour_imports_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tensorrt=fake_module(), tensorrt_rtx=fake_module("1.7.1.116"))
    assert load_tensorrt(Flavour.TENSORRT).version == "10.3.0.26"
    assert load_tensorrt(Flavour.RTX).version == "1.7.1.116"


def test_finds_rtx_under_its_aarch64_name(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tensorrt_rtx_bindings=fake_module("1.7.1.116"))
    assert installed_version(Flavour.RTX) == "1.7.1.116"


def test_a_folder_of_stubs_is_not_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tensorrt=None)
    with pytest.raises(BackendError, match="tensorrt is not installed") as caught:
        load_tensorrt(Flavour.TENSORRT)
    assert "--system-site-packages" in str(caught.value.hint)


def test_installed_stubs_are_not_tensorrt() -> None:
    spec = find_spec("tensorrt")
    if spec is None or spec.origin is not None:
        pytest.skip("there are no stubs here, or there is a TensorRT")
    assert installed_version(Flavour.TENSORRT) is None


@pytest.mark.parametrize(
    "error", [ImportError("libcudart.so.12: cannot open\nmore"), OSError("libnvinfer.so.10: gone")]
)
def test_import_error_names_the_missing_library(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    install(monkeypatch, tensorrt=error)
    with pytest.raises(BackendError, match=r"does not load: lib\w+\.so\.\d+: \w+") as caught:
        load_tensorrt(Flavour.TENSORRT)
    assert "\n" not in str(caught.value)
    assert installed_version(Flavour.TENSORRT) is None
    monkeypatch.setattr(tensorrt_or_rtx, "check_gpu_availability", lambda: None)
    found = check_availability(Flavour.TENSORRT)
    assert found is not None
    assert "does not load" in found.reason


def test_checks_the_gpu_before_it_loads_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tensorrt=RuntimeError("it must not be loaded"))
    monkeypatch.setattr(
        tensorrt_or_rtx, "check_gpu_availability", lambda: Unavailability("no GPU", "buy one")
    )
    assert check_availability(Flavour.TENSORRT) == Unavailability("no GPU", "buy one")


@pytest.mark.parametrize(
    ("capability", "known"), [("8.6", True), ("12.0", True), ("9.0", False), ("7.5", False)]
)
def test_rtx_supports_rtx_gpus_from_ampere_on(capability: str, known: bool) -> None:
    gpu = CudaDevice(
        name="GPU", compute_capability=capability, multiprocessors=1, integrated=False,
        driver_cuda="13.0",
    )  # fmt: skip
    api = SimpleNamespace(ComputeCapability=SimpleNamespace(SM75=0, SM86=1, SM120=2))
    found = tensorrt_or_rtx._check_rtx_gpu(api, gpu)
    assert (found is None) is known
    if found is not None:
        assert f"compute capability {capability}" in found.reason


def test_keeps_errors_and_layers_of_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, tensorrt=fake_module())
    tensorrt = load_tensorrt(Flavour.TENSORRT)
    assert tensorrt.last_error() == "it gave no reason"
    log: Any = tensorrt.log
    with caplog.at_level(logging.DEBUG, "resdeploy"):
        for number in range(2 * KEPT_MESSAGES):
            message = f"error\n   {number}"
            log.log(Severity.ERROR, message)
        log.log(Severity.WARNING, "a warning")
        log.log(Severity.VERBOSE, "chatter")
        log.log(Severity.VERBOSE, "Name: conv1, LayerType: correlation, Inputs: [")
    assert tensorrt.last_error() == f"error {2 * KEPT_MESSAGES - 1}"
    assert len(tensorrt.errors) == KEPT_MESSAGES
    assert "a warning" in caplog.text
    assert "chatter" not in caplog.text
    assert list(tensorrt.layer_log) == ["Name: conv1, LayerType: correlation, Inputs: ["]


def test_converts_shapes_that_are_not_iterable() -> None:
    class Dims:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> int:
            return (3, 4)[index]

    dims: Any = Dims()
    assert dims_to_tuple(dims) == (3, 4)
