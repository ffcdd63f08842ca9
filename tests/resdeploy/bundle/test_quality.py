"""Doubts about the accuracy of a bundle, and the text of warnings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from resdeploy.bundle.analysis import FloatMixture, Remedy
from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import (
    Encoding,
    ExportWarning,
    GoldenOrigin,
    Manifest,
    Quality,
    QualityOrigin,
)
from resdeploy.bundle.quality import (
    FEWEST_IMAGES,
    NO_INT8_SHORTCUTS,
    QAT,
    action_text,
    export_figures,
    grouped_by_hint,
    named_warnings,
    open_warnings,
    quality_warnings,
    relevant_warnings,
    short_lines,
    warning_lines,
)
from resdeploy.report.layers import remedy_lines

GOOD = {"fp32": (100.0, 123.0), "fp16": (100.0, 67.0), "int8": (100.0, 33.0)}


def judged(bundle: Bundle, images: int = 32, **figures: tuple[float, float]) -> Manifest:
    """Return the bundle's manifest with other figures on the golden images."""
    known = {"int8_cpu": GOOD["int8"], **GOOD, **figures}
    artifacts = []
    for artifact in bundle.manifest.artifacts:
        agreement, sqnr_db = known[artifact.name.replace("-", "_")]
        parity = dataclasses.replace(
            artifact.parity, images=images, agreement=agreement, sqnr_db=sqnr_db
        )
        artifacts.append(dataclasses.replace(artifact, parity=parity, quality=None))
    return dataclasses.replace(bundle.manifest, artifacts=tuple(artifacts), warnings=())


def with_quality(manifest: Manifest, **values: Any) -> Manifest:
    fields = {"images": 400, "agreement": 99.0, "sqnr_db": 30.0, "origin": QualityOrigin.HELD_OUT}
    quality = Quality(**{**fields, **values})
    last = dataclasses.replace(manifest.artifacts[-1], quality=quality)
    return dataclasses.replace(manifest, artifacts=(*manifest.artifacts[:-1], last))


def test_a_good_bundle_has_no_warning(tiny_bundle: Bundle) -> None:
    assert quality_warnings(judged(tiny_bundle)) == []


def test_perfect_figures_of_a_few_images_are_a_warning(tiny_bundle: Bundle) -> None:
    (warning,) = quality_warnings(judged(tiny_bundle, images=FEWEST_IMAGES - 1))
    assert warning.message.startswith(
        "int8 (for TensorRT) and int8-cpu: compared with FP32 on no more than 28 "
    )
    assert 0.9**FEWEST_IMAGES < 0.05 < 0.9 ** (FEWEST_IMAGES - 1)
    several = with_quality(judged(tiny_bundle, images=1), images=400)
    (warning,) = quality_warnings(several)
    assert len(warning.artifacts) == 1


@pytest.mark.parametrize(
    ("name", "figures", "below"),
    [
        ("int8_cpu", (90.625, 30.0), "agreement"),
        ("int8_cpu", (100.0, 19.9), "SQNR"),
        ("int8_cpu", (90.6, 14.3), "agreement, SQNR"),
        ("int8", (93.75, 25.0), "agreement"),
        ("fp16", (93.75, 67.0), "agreement"),
        ("fp16", (100.0, 45.0), "SQNR"),
        ("fp32", (100.0, 70.0), "SQNR"),
        ("int8", (100.0, float("nan")), "SQNR"),
    ],
)
def test_a_warning_has_the_figures_below_their_limits_only(
    tiny_bundle: Bundle, name: str, figures: tuple[float, float], below: str
) -> None:
    (warning,) = quality_warnings(judged(tiny_bundle, 32, **{name: figures}))
    assert warning.artifacts == (name.replace("_", "-"),)
    agreement = f"{figures[0]:.1f} % have the same predicted class (limit "
    assert (agreement in warning.message) == ("agreement" in below)
    sqnr = f"the SQNR of the logits is {figures[1]:.1f} dB (limit "
    assert (sqnr in warning.message) == ("SQNR" in below)
    assert "on 32 golden images" in warning.message


@pytest.mark.parametrize(
    ("images", "changed", "doubtful"),
    [(32, 1, False), (32, 2, True), (60, 1, False), (60, 2, True), (400, 8, False), (400, 9, True)],
)
def test_one_image_is_no_evidence(
    tiny_bundle: Bundle, images: int, changed: int, doubtful: bool
) -> None:
    agreement = 100 * (images - changed) / images
    manifest = judged(tiny_bundle, images, int8_cpu=(agreement, 30.0))
    assert bool(quality_warnings(manifest)) is doubtful


@pytest.mark.parametrize(("changed", "decides"), [(4, False), (12, True)])
def test_a_warning_says_if_its_images_do_not_decide(
    tiny_bundle: Bundle, changed: int, decides: bool
) -> None:
    """Four of 128 are 3.1 %, of which the 95 % interval ends above and begins below 2 %."""
    manifest = judged(tiny_bundle, 128, int8_cpu=(100 * (128 - changed) / 128, 30.0))
    (warning,) = quality_warnings(manifest)
    assert ("; with so few images, this can be chance)" in warning.message) is not decides


def test_images_that_did_not_calibrate_come_first(tiny_bundle: Bundle) -> None:
    manifest = with_quality(judged(tiny_bundle), agreement=97.0)
    assert export_figures(manifest.artifacts[-1])[0].agreement == 97.0
    (warning,) = quality_warnings(manifest)
    assert (
        "int8-cpu deviates from FP32 on 400 images not used by the calibration: 97.0 %"
        in warning.message
    )
    folds = with_quality(manifest, agreement=97.0, origin=QualityOrigin.CROSS_VALIDATION)
    (warning,) = quality_warnings(folds)
    assert "on 400 cross-validated images" in warning.message
    # Good figures on calibration images do not hide bad ones on others.
    for golden, first in (((90.625, 33.0), "90.6 % have"), ((100.0, 13.0), "the SQNR of")):
        (warning,) = quality_warnings(with_quality(judged(tiny_bundle, int8_cpu=golden)))
        assert f"on 32 golden images: {first}" in warning.message
        assert "400" not in warning.message  # the figures of one set of images


def test_two_golden_images_do_not_outweigh_many_others(tiny_bundle: Bundle) -> None:
    assert quality_warnings(with_quality(judged(tiny_bundle, int8_cpu=(93.75, 33.0)))) == []


def test_synthetic_images_are_named(tiny_bundle: Bundle) -> None:
    manifest = judged(tiny_bundle, int8=(90.0, 30.0))
    golden = dataclasses.replace(manifest.golden, origin=GoldenOrigin.SYNTHETIC)
    (warning,) = quality_warnings(dataclasses.replace(manifest, golden=golden))
    assert "on 32 synthetic images" in warning.message


def test_the_hint_names_the_options_and_the_graphs_in_float(tiny_bundle: Bundle) -> None:
    bad = (90.0, 30.0)
    (warning,) = quality_warnings(judged(tiny_bundle, int8_cpu=bad))
    for option in ("more images like those to classify (now 32)", "--min-agreement 99", "--qat"):
        assert option in warning.hint
    in_float = ", or use a graph in float (--precision fp16 on a GPU or fp32)"
    assert warning.hint.endswith(in_float)
    both = quality_warnings(judged(tiny_bundle, int8=bad, int8_cpu=bad))
    assert {w.hint for w in both} == {warning.hint}  # which is printed once
    (gpu,) = quality_warnings(judged(tiny_bundle, int8=bad))
    assert gpu.hint == f"before you use it on a GPU, {warning.hint}"
    quantised = quality_warnings(judged(tiny_bundle, fp16=bad, int8=bad, int8_cpu=bad))
    assert quantised[-1].hint.endswith(", or use a graph in float (--precision fp32)")
    every = dict.fromkeys((*GOOD, "int8_cpu"), bad)
    assert "or use" not in "".join(
        w.hint for w in quality_warnings(judged(tiny_bundle, 32, **every))
    )


def test_the_hint_names_the_option_that_limited_the_calibration_images(tiny_bundle: Bundle) -> None:
    manifest = judged(tiny_bundle, int8_cpu=(90.0, 30.0))
    for available, option in ((600, "--calibration-images"), (40, "--calibration-data")):
        known = {**(manifest.calibration or {}), "images": 32, "available": available}
        (warning,) = quality_warnings(dataclasses.replace(manifest, calibration=known))
        assert f"(now 32) with {option}" in warning.hint


def test_the_hint_is_the_action_of_the_report_where_it_applies(tiny_bundle: Bundle) -> None:
    bad = (90.0, 30.0)
    manifest = judged(tiny_bundle, int8=bad, int8_cpu=bad)
    remedy = Remedy(
        encoding=Encoding.TENSORRT, options=("--calibrator auto", QAT), images=32, origin=None,
        agreement=90.0, sqnr_db=30.0,
    )  # fmt: skip
    action = (
        "export another bundle with --calibrator auto, and see with resdeploy compare if it is "
        "better; if that is not enough, train with simulated quantisation (resdeploy train DATA "
        "--qat --init RUN) and export the new run"
    )
    assert action_text(remedy) == action
    assert f"Action, because of the agreement: {action}." in remedy_lines(remedy)
    hints = [warning.hint for warning in quality_warnings(manifest, remedy)]
    assert all(hint.startswith(f"{action}, or use") for hint in hints)
    assert "calibrate on more" not in "".join(hints)
    shortcuts = dataclasses.replace(remedy, options=(NO_INT8_SHORTCUTS,))
    first, second = (warning.hint for warning in quality_warnings(manifest, shortcuts))
    assert first.startswith("export another bundle without --int8-shortcuts, and see")
    assert second.startswith("calibrate on more")  # int8-cpu has no such option
    dla = dataclasses.replace(remedy, encoding=Encoding.DLA)
    assert all(w.hint.startswith("calibrate on") for w in quality_warnings(manifest, dla))
    missed = FloatMixture(
        layers=("a",), candidates=2, float_share_percent=9.0, agreement=90.0, sqnr_db=30.0,
        latency_ratio=None, latency_ratio_low=None, latency_ratio_high=None,
    )  # fmt: skip
    nothing = dataclasses.replace(remedy, options=(), mixture=missed)
    in_float = "use a graph in float (--precision fp16 on a GPU or fp32)"
    assert [w.hint for w in quality_warnings(manifest, nothing)] == 2 * [in_float]
    done = dataclasses.replace(remedy, options=())
    assert quality_warnings(manifest, done) == quality_warnings(manifest)


def test_labelled_images_answer_the_doubts_about_the_graphs_that_pass(tiny_bundle: Bundle) -> None:
    bad = (90.0, 30.0)
    manifest = judged(tiny_bundle, int8=bad, int8_cpu=bad)
    about_network = ExportWarning(message="the network is new", hint="train")
    target = ExportWarning(message="missed", hint="relax", artifacts=("int8",))
    doubts = quality_warnings(manifest)
    found = open_warnings(manifest, [about_network, target, *doubts], {"int8"})
    assert found == [about_network, target, doubts[1]]
    assert open_warnings(manifest, doubts, ()) == doubts


@pytest.mark.parametrize(
    ("message", "short"),
    [
        ("int8-cpu deviates from FP32 on 1,920 images: 97.0 %",
         "int8-cpu deviates from FP32 on 1,920 images"),
        ("int8-cpu: undecided: 99.1 % on 1,920 images, at least 98 %",
         "int8-cpu: undecided: 99.1 % on 1,920 images"),
        ("short: it is", "short: it is"),
    ],
)  # fmt: skip
def test_a_short_warning_ends_before_its_figures(message: str, short: str) -> None:
    warning = ExportWarning(message=message, hint="mend it")
    assert short_lines([warning], Path("a/report.html")) == [
        f"warning: {short}", "  figures and remedies: a/report.html"
    ]  # fmt: skip
    assert short_lines([], Path("a")) == []


def test_the_hint_names_only_options_that_change_the_graph(tiny_bundle: Bundle) -> None:
    manifest = judged(tiny_bundle, int8_cpu=(90.0, 30.0))
    *others, last = manifest.artifacts
    dla = dataclasses.replace(last, encoding=Encoding.DLA, file="int8-dla.onnx")
    (warning,) = quality_warnings(dataclasses.replace(manifest, artifacts=(*others, dla)))
    assert "--min-agreement" not in warning.hint
    assert "train with --qat" in warning.hint
    learned = {**(manifest.calibration or {}), "method": {"tensorrt": "learned"}}
    (warning,) = quality_warnings(dataclasses.replace(manifest, calibration=learned))
    assert "--qat" not in warning.hint


def test_lines_repeat_neither_a_hint_nor_a_message() -> None:
    first = ExportWarning(message="a is bad", hint="mend it")
    second = ExportWarning(message="b is bad", hint="mend it", artifacts=("int8",))
    other = ExportWarning(message="c is bad", hint="throw it away")
    assert warning_lines([first, other, second, first]) == [
        "warning: a is bad", "warning: b is bad", "  hint: mend it",
        "warning: c is bad", "  hint: throw it away",
    ]  # fmt: skip
    assert grouped_by_hint([second, first]) == [(("b is bad", "a is bad"), "mend it")]
    assert warning_lines([]) == []
    assert warning_lines([ExportWarning(message="a", hint="")]) == ["warning: a"]
    bundles = ("x.bundle", "y.bundle")
    named = [w for name in bundles for w in named_warnings(name, [first])]
    assert warning_lines([*named, *named, *named_warnings("z", [first])], bundles) == [
        "warning: x.bundle and y.bundle: a is bad", "warning: z: a is bad", "  hint: mend it",
    ]  # fmt: skip
    assert named_warnings("x.bundle", [second])[0].message == "x.bundle: b is bad"


def test_only_warnings_about_the_graph_are_relevant(tiny_bundle: Bundle) -> None:
    general = ExportWarning(message="a", hint="b")
    int8 = ExportWarning(message="c", hint="d", artifacts=("int8",))
    manifest = dataclasses.replace(tiny_bundle.manifest, warnings=(general, int8))
    assert relevant_warnings(manifest, ["int8"]) == (general, int8)
    assert relevant_warnings(manifest, ["int8-cpu"]) == (general,)
