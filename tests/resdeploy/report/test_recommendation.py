"""Tests of the advice of reports: what to deploy, or what to measure before."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Encoding, ExportWarning, Precision
from resdeploy.bundle.quality import DEVIATES, NO_BETTER
from resdeploy.json_documents import to_text
from resdeploy.machine.device import Device
from resdeploy.report.contents import BundleContents
from resdeploy.report.report import ReportInputs, make_page
from resdeploy.result_files.benchmark import Benchmark
from resdeploy.result_files.verification import ArtifactResult, Verification
from resdeploy.statistics import Verdict
from tests.results import benchmark, timing


def advice_of(
    verification: Verification, results: Sequence[ArtifactResult], measured: Benchmark
) -> tuple[str, tuple[str, ...]]:
    """Return the advice of a page about these results of the bundle and machine of both."""
    judged = replace(verification, results=tuple(results))
    page = make_page(ReportInputs(verifications=[judged], benchmarks=[measured]))
    return page.recommendation, page.commands


def own_benchmark(verification: Verification, **environment: Any) -> Benchmark:
    own, measured = verification.environment, benchmark()
    facts = {name: getattr(own, name) for name in ("bundle", "model", "image_size", "device")}
    return replace(measured, environment=replace(measured.environment, **{**facts, **environment}))


def passed_on_onnxruntime(verification: Verification) -> list[ArtifactResult]:
    """Return the results without those of OpenVINO, which is not installed everywhere."""
    lines = (line for line in verification.results if line.backend == "onnxruntime-cpu")
    return [replace(line, verdict=Verdict.PASS) for line in lines]


def test_the_fastest_file_that_passed_is_to_be_deployed(verification: Verification) -> None:
    results = passed_on_onnxruntime(verification)
    measured = own_benchmark(verification)
    sentence, commands = advice_of(verification, results, measured)
    assert sentence == (
        "Deploy int8-cpu.onnx with onnxruntime-cpu: of the files for this machine that passed the "
        "verification, it is the fastest:"
    )
    name = verification.environment.bundle
    assert commands == (f"resdeploy serve {name} --backend onnxruntime-cpu --precision int8",)
    # A file that did not pass is no candidate, however fast it is.
    slower = [r for r in results if r.encoding is not Encoding.CPU]
    failed = [replace(r, verdict=Verdict.FAIL) for r in results if r.encoding is Encoding.CPU]
    sentence, _ = advice_of(verification, [*slower, *failed], measured)
    assert sentence.startswith("Deploy fp32.onnx with onnxruntime-cpu: ")
    sentence, commands = advice_of(verification, failed, measured)
    assert sentence.startswith("Deploy no file on this machine: ")
    assert not commands


def test_equally_fast_files_are_in_the_order_of_serve(verification: Verification) -> None:
    results = passed_on_onnxruntime(verification)
    measured = own_benchmark(verification)
    eager, _, int8 = measured.results
    fp32 = timing(ms=18.3)
    sentence, _ = advice_of(verification, results, replace(measured, results=(eager, fp32, int8)))
    assert sentence.startswith("Deploy int8-cpu.onnx with onnxruntime-cpu: ")
    assert "none is more than 3 % faster" in sentence


@pytest.mark.parametrize("is_decided", [True, False])
def test_candidates_are_compared_within_rounds(
    verification: Verification, is_decided: bool
) -> None:
    """Wide intervals of the speed-ups against PyTorch do not make a slower file equally fast."""
    measured = own_benchmark(verification)
    eager, _, slow = measured.results
    fast = replace(slow, contender="openvino", p50_ms=0.6 * slow.p50_ms)
    # The machine was slower in the second run: the ratios within rounds are not concerned.
    load = [1.0] * 8 + [4.0] * 7
    ratio = [0.6] * 15 if is_decided else [0.5, 1.4] * 7 + [0.5]
    eager, rounds = (
        replace(eager, round_ms=tuple(time * share for time, share in zip(eager.round_ms, load))),
        tuple(time * share for time, share in zip(slow.round_ms, load)),
    )
    slow, fast = (
        replace(line, round_ms=times, speedup_low=2.0, speedup_high=12.0)
        for line, times in (
            (slow, rounds),
            (fast, tuple(time * share for time, share in zip(rounds, ratio))),
        )
    )
    environment = replace(measured.environment, runs=(8, 7))
    measured = replace(measured, environment=environment, results=(eager, slow, fast))
    (int8,) = (r for r in passed_on_onnxruntime(verification) if r.encoding is Encoding.CPU)
    passed = [int8, replace(int8, backend="openvino")]
    sentence, commands = advice_of(verification, passed, measured)
    assert sentence.startswith("Deploy int8-cpu.onnx with openvino: ")
    assert ("it is the fastest" in sentence) is is_decided
    doubt = "does not decide whether int8-cpu.onnx with onnxruntime-cpu ("
    assert (doubt in sentence) is not is_decided
    assert "--backend openvino" in commands[0]
    summary = make_page(ReportInputs(benchmarks=[measured])).summary[0]
    assert ("The fastest contender is openvino " in summary) is is_decided


def test_a_standing_warning_about_an_offered_file_is_explained(verification: Verification) -> None:
    doubt = ExportWarning(message=f"int8-cpu {DEVIATES}", hint="", artifacts=("int8-cpu",))
    (int8,) = (r for r in passed_on_onnxruntime(verification) if r.encoding is Encoding.CPU)
    lines = (replace(int8, verdict=OPEN_VERDICT), replace(int8, backend="openvino"))
    judged = replace(verification, results=lines, warnings=(doubt,))
    inputs = ReportInputs(verifications=[judged])
    explained = "int8-cpu.onnx with openvino (with this backend, 24 labelled images answer the "
    assert explained in make_page(inputs).recommendation
    # FP32 on ONNX Runtime is what the others are compared with.
    reference = replace(lines[1], backend="onnxruntime-cpu", verdict=Verdict.REPRODUCED)
    inputs.verifications = [replace(judged, results=(reference, lines[1]))]
    assert "onnxruntime-cpu (the reference) and int8-cpu" in make_page(inputs).recommendation
    inputs.verifications = [replace(judged, warnings=())]
    assert explained not in make_page(inputs).recommendation


def test_the_commands_name_the_file_of_the_verification(
    verification: Verification, tmp_path: Path
) -> None:
    file = tmp_path / "my results.json"
    lines = tuple(passed_on_onnxruntime(verification))
    file.write_text(to_text(replace(verification, results=lines)))
    inputs = ReportInputs()
    inputs.add(str(file))
    assert make_page(inputs).commands[-1] == (
        f"resdeploy report {verification.environment.bundle} '{file}' benchmark.json"
    )


def test_a_passed_backend_that_was_not_timed_is_timed_first(verification: Verification) -> None:
    results = passed_on_onnxruntime(verification)
    fp32 = next(r for r in results if (r.precision, r.encoding) == ("fp32", Encoding.FLOAT))
    measured = own_benchmark(verification)
    elsewhere = [*results, replace(fp32, backend="openvino")]
    sentence, commands = advice_of(verification, elsewhere, measured)
    assert sentence == (
        "Before you deploy, measure also the latency of fp32.onnx with openvino, which passed the "
        "verification; the last command writes a page that names the file to deploy:"
    )
    name = verification.environment.bundle
    again = f"resdeploy report {name} verification.json benchmark.json"
    assert commands == (f"resdeploy bench {name} --also openvino --output benchmark.json", again)
    # A machine with a GPU is not used for its CPU.
    gpu = [replace(fp32, backend="gpu"), replace(fp32, backend="gpu", encoding=Encoding.TENSORRT)]
    _, commands = advice_of(verification, [*elsewhere, *gpu], measured)
    assert commands == (f"resdeploy bench {name} --output benchmark.json", again)


def test_untimed_files_are_named_with_their_backend(verification: Verification) -> None:
    results = passed_on_onnxruntime(verification)
    # Times of another bundle or machine say nothing about these files.
    for other in ({"bundle": "other.bundle"}, {"device": Device(cpu="another")}):
        sentence, commands = advice_of(verification, results, own_benchmark(verification, **other))
        assert re.fullmatch(  # neither int8.onnx nor fp16.onnx, which are for GPUs
            r"Deploy one of these, which passed the verification: "
            r"(fp32|int8-cpu)\.onnx with onnxruntime-cpu and (fp32|int8-cpu)\.onnx with "
            r"onnxruntime-cpu\. These commands time them; the last command writes a page that "
            r"names the file to deploy:",
            sentence,
        )
        assert [line.split()[1] for line in commands] == ["bench", "report"]


PASS, FAIL, OPEN_VERDICT = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
ALONE = "Deploy fp32.onnx with onnxruntime-cpu: no other file for this machine passed the "


@pytest.mark.parametrize(
    ("fp32", "int8", "openvino", "begin", "commands"),
    [
        (Verdict.REPRODUCED, FAIL, FAIL, ALONE, ["serve"]),
        (
            Verdict.REPRODUCED, OPEN_VERDICT, FAIL,
            "Deploy only fp32.onnx with onnxruntime-cpu for now: 24 labelled images do not decide "
            "about int8-cpu.onnx with onnxruntime-cpu. The first command serves it, the second ",
            ["serve", "verify", "bench", "report"],
        ),
        (
            FAIL, OPEN_VERDICT, OPEN_VERDICT,
            "Deploy no file on this machine yet: 24 labelled images do not decide about "
            "int8-cpu.onnx with onnxruntime-cpu and int8-cpu.onnx with openvino. Verify with more;",
            ["verify", "bench", "report"],
        ),
        (
            Verdict.REPRODUCED, PASS, OPEN_VERDICT,
            "Deploy int8-cpu.onnx with onnxruntime-cpu: of the files for this machine that passed "
            "the verification, it is the fastest:",
            ["serve"],
        ),
        (FAIL, FAIL, FAIL, "Deploy no file on this machine: none that is made for it ", []),
    ],
)  # fmt: skip
def test_the_advice_names_files_about_which_the_images_do_not_decide(
    verification: Verification,
    fp32: Verdict,
    int8: Verdict,
    openvino: Verdict,
    begin: str,
    commands: list[str],
) -> None:
    verdicts = {Encoding.FLOAT: fp32, Encoding.CPU: int8, Encoding.TENSORRT: FAIL}
    lines = [
        replace(line, verdict=verdicts[line.encoding])
        for line in passed_on_onnxruntime(verification)
        if line.precision is not Precision.FP16
    ]
    cpu = next(line for line in lines if line.encoding is Encoding.CPU)
    lines.append(replace(cpu, backend="openvino", verdict=openvino))
    sentence, found = advice_of(verification, lines, own_benchmark(verification))
    assert sentence.startswith(begin)
    assert [line.split()[1] for line in found] == commands
    for line in found:
        assert ("--max-drop 50" in line) is (line.split()[1] == "verify")  # as before
        times = line.split()[1] == "bench" and openvino is not FAIL
        assert ("--also openvino" in line) is times


def test_a_network_that_has_learned_nothing_is_trained_again(
    tiny_bundle: Bundle, verification: Verification
) -> None:
    doubt = ExportWarning(message=f"the network is {NO_BETTER}: 25 %", hint="train again")
    manifest = replace(tiny_bundle.manifest, warnings=(doubt,))
    name = verification.environment.bundle or ""
    bundles = [BundleContents(name, manifest, None)]
    passed = replace(verification, warnings=(doubt,))
    for inputs in (
        ReportInputs(bundles=bundles),
        ReportInputs(bundles=bundles, verifications=[verification]),
        ReportInputs(verifications=[passed], benchmarks=[own_benchmark(verification)]),
        ReportInputs(benchmarks=[replace(benchmark(), warnings=(doubt,))]),
    ):
        page = make_page(inputs)
        assert page.recommendation == (
            "Train again, because the network is no better than always predicting one class."
        )
        assert not page.commands
    other = BundleContents("other.bundle", tiny_bundle.manifest, None)
    assert make_page(
        ReportInputs(bundles=[*bundles, other])
    ).commands  # the warning names its bundle
