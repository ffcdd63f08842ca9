"""Verification with golden images and with labelled folders."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import (
    Encoding,
    ExportWarning,
    GoldenOrigin,
    Precision,
    graph_name,
)
from resdeploy.bundle.quality import NO_BETTER, quality_warnings
from resdeploy.cli.verify import next_step, verification_text
from resdeploy.errors import BackendError, BundleError, DataError
from resdeploy.filesystem import sha256
from resdeploy.images.class_folders import hold_out, names_digest, read_image_folder
from resdeploy.images.folder import read_batches
from resdeploy.report.accuracy import verification_section
from resdeploy.result_files.verification import Verification
from resdeploy.runtime.backends import registry
from resdeploy.runtime.backends.onnxruntime import cpu as onnxruntime_cpu
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.runtime.verification.golden_check import (
    INT8_FLOOR_DB,
    INT8_MARGIN_DB,
    check_golden,
    floor_db,
    run_batches,
)
from resdeploy.runtime.verification.verify import verify
from resdeploy.statistics import Verdict
from tests.fakes import ColourBackend, GoldenBackend, colour_engine, make_engine
from tests.samples import rename_folders, write_images

RUNS_INT8 = pytest.mark.skipif(
    "int8" not in onnxruntime_cpu.artifacts(onnxruntime.__version__),
    reason="ONNX Runtime before 1.30 does not run int8.onnx",
)


def by_encoding(result: Verification) -> dict[tuple[str, str], Verdict]:
    return {(r.precision.value, r.encoding.value): r.verdict for r in result.results}


def with_doubts(bundle: Bundle, *others: ExportWarning) -> Bundle:
    """Return the bundle as if its export had found both INT8 graphs doubtful."""
    artifacts = tuple(
        dataclasses.replace(a, parity=dataclasses.replace(a.parity, agreement=80.0), quality=None)
        if a.precision is Precision.INT8
        else a
        for a in bundle.manifest.artifacts
    )
    manifest = dataclasses.replace(bundle.manifest, artifacts=artifacts)
    warnings = (*others, *quality_warnings(manifest))
    return Bundle(bundle.path, dataclasses.replace(manifest, warnings=warnings))


# Golden images


def test_every_artifact_is_reproduced_on_golden_images(tiny_bundle: Bundle) -> None:
    result = verify(tiny_bundle)
    assert result.verdict is Verdict.REPRODUCED  # which is no statement about accuracy
    assert result.images == 24
    assert result.max_drop is None
    expected = {
        ("fp32", "float"): Verdict.REPRODUCED,
        ("fp16", "float"): Verdict.REPRODUCED,
        ("int8", "cpu"): Verdict.REPRODUCED,
    }
    if "int8" in onnxruntime_cpu.artifacts(onnxruntime.__version__):
        expected["int8", "tensorrt"] = Verdict.REPRODUCED
    assert by_encoding(result) == expected


def test_verifies_only_the_chosen_precision(tiny_bundle: Bundle) -> None:
    assert set(by_encoding(verify(tiny_bundle, precision="fp16"))) == {("fp16", "float")}


def test_an_engine_with_wrong_logits_fails(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = (make_engine(), make_engine("broken", factor=0.9))
    monkeypatch.setattr(registry, "ENGINES", engines)
    result = verify(tiny_bundle)
    assert [r.verdict for r in result.results] == [Verdict.REPRODUCED, Verdict.FAIL]
    assert result.verdict is Verdict.FAIL


def test_floors_follow_the_export(tiny_bundle: Bundle) -> None:
    int8 = tiny_bundle.artifact("int8-cpu")
    assert floor_db(int8) == int8.parity.sqnr_db - INT8_MARGIN_DB
    ruined = dataclasses.replace(int8, parity=dataclasses.replace(int8.parity, sqnr_db=4.0))
    assert floor_db(ruined) == INT8_FLOOR_DB
    assert floor_db(tiny_bundle.artifact("fp32")) > floor_db(tiny_bundle.artifact("fp16"))


def test_nan_does_not_pass(tiny_bundle: Bundle) -> None:
    golden = tiny_bundle.golden()
    backend = GoldenBackend(golden, factor=float("nan"))
    assert not check_golden(backend, tiny_bundle.artifact("fp32"), golden).passed


def test_run_batches_concatenates_batches_of_any_size(tiny_bundle: Bundle) -> None:
    golden = tiny_bundle.golden()
    for batch in (1, 5, 24, 100):
        np.testing.assert_array_equal(
            run_batches(GoldenBackend(golden), golden.images, batch), golden.logits
        )


def test_the_limit_is_printed_beside_every_figure(tiny_bundle: Bundle, image_data: Path) -> None:
    for result in (verify(tiny_bundle), verify(tiny_bundle, data=image_data)):
        text = verification_text(result)
        for line in result.results:
            assert line.golden_sqnr_db >= line.golden_limit_db
            assert f"{line.golden_sqnr_db:.1f} dB, limit {line.golden_limit_db:.1f} dB" in text


def test_says_how_many_images_would_decide(tiny_bundle: Bundle, image_data: Path) -> None:
    text = verification_text(verify(tiny_bundle))
    assert "verdict: reproduced" in text
    # The score bound of no change in n images is z^2 / (n + z^2), which is 1 % at n = 268.
    fp32 = verification_text(verify(tiny_bundle, precision="fp32"))
    assert (
        "accuracy is not judged: by a rough estimate from the export, about 270 labelled images "
        "decide whether the drop is at most 1 " in fp32
    )
    passed = verify(tiny_bundle, data=image_data, precision="fp16", max_drop=50)
    assert passed.verdict is Verdict.PASS
    enough = (
        "labelled images would have been enough to decide whether the drop of fp16 is at most 50 "
    )
    assert enough in verification_text(passed)
    few = verification_text(dataclasses.replace(passed, images=1))
    text = "decide whether the drop of fp16 is at most 50 points, if there is no drop"
    assert text in few
    never = verification_text(verify(tiny_bundle, precision="fp32", max_drop=0))
    assert (
        "not even 10,000,000 labelled images decide whether the drop is at most 0 points" in never
    )


def test_fewer_images_suffice_if_fewer_predictions_changed(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest

    def needed(agreement: float) -> int:
        artifacts = tuple(
            dataclasses.replace(a, parity=dataclasses.replace(a.parity, agreement=agreement))
            for a in manifest.artifacts
        )
        bundle = Bundle(tiny_bundle.path, dataclasses.replace(manifest, artifacts=artifacts))
        (line,) = verify(bundle, precision="fp32").results
        assert line.images_to_decide is not None
        return line.images_to_decide

    assert 270 == needed(100) < needed(99) < needed(90)


@pytest.mark.parametrize("max_drop", [-1.0, 100.1, float("nan"), float("inf")])
def test_the_largest_drop_is_a_percentage(tiny_bundle: Bundle, max_drop: float) -> None:
    with pytest.raises(ValueError, match="0 to 100 points are allowed"):
        verify(tiny_bundle, max_drop=max_drop)


def test_warnings_about_other_graphs_are_left_out(tiny_bundle: Bundle) -> None:
    doubts = (
        ExportWarning(message="int8-cpu is bad", hint="mend it", artifacts=("int8-cpu",)),
        ExportWarning(message="all is bad", hint="mend all"),
    )
    manifest = dataclasses.replace(tiny_bundle.manifest, warnings=doubts)
    bundle = Bundle(tiny_bundle.path, manifest)
    assert verify(bundle).warnings == doubts
    fp32 = verify(bundle, precision="fp32")
    assert fp32.warnings == doubts[1:]
    text = verification_text(fp32)
    assert "warning: all is bad\n  hint: mend all\n" in text
    assert "verdict: reproduced, with 1 warning, compared with PyTorch on 24 golden images" in text
    judge = (
        "resdeploy verify x.bundle --data FOLDER, which judges the accuracy on its images; then "
    )
    assert next_step(verify(tiny_bundle), "x.bundle") == f"{judge}resdeploy serve x.bundle"
    assert next_step(fp32, "x.bundle") == "resdeploy serve x.bundle"


@RUNS_INT8
def test_labelled_images_answer_the_doubts_about_the_graphs_that_pass(
    tiny_bundle: Bundle, image_data: Path
) -> None:
    general = ExportWarning(message="the images differ", hint="mend it")
    bundle = with_doubts(tiny_bundle, general)
    golden = verify(bundle, backend="onnxruntime-cpu")
    names = {graph_name(line.precision, line.encoding) for line in golden.results}
    about_int8 = [w for w in bundle.manifest.warnings[1:] if set(w.artifacts) <= names]
    assert golden.warnings == (general, *about_int8)
    passed = verify(bundle, data=image_data, backend="onnxruntime-cpu", max_drop=50)
    assert passed.verdict is Verdict.PASS
    assert passed.warnings == (general,)
    assert passed.answered == tuple(about_int8)
    text = verification_text(passed)
    assert text.count(
        "\nthe accuracy on these images settles a warning of the export: int8"
    ) == len(about_int8)
    assert (
        "\nverdict: pass, on 24 images; limit: a drop of 50 points; the warning above is " in text
    )
    assert "about something else: follow its hint\n" in text
    assert next_step(passed, "x.bundle") == "resdeploy serve x.bundle"
    few = verify(bundle, data=image_data, backend="onnxruntime-cpu", max_drop=1)
    assert few.warnings == (general, *about_int8)  # they are not decided


def test_a_network_that_learned_nothing_is_not_served(
    tiny_bundle: Bundle, image_data: Path
) -> None:
    doubt = ExportWarning(message=f"the network is {NO_BETTER}: 25 %", hint="train again")
    bundle = with_doubts(tiny_bundle, doubt)
    for result in (verify(bundle), verify(bundle, data=image_data, max_drop=50)):
        assert next_step(result, "x.bundle") == (
            "train again, because the network is no better than always predicting one class"
        )


def test_synthetic_images_prove_arithmetic_only(tiny_bundle: Bundle) -> None:
    golden = dataclasses.replace(tiny_bundle.manifest.golden, origin=GoldenOrigin.SYNTHETIC)
    bundle = Bundle(tiny_bundle.path, dataclasses.replace(tiny_bundle.manifest, golden=golden))
    text = verification_text(verify(bundle, precision="fp32"))
    assert "on 24 synthetic images: arithmetic only, not accuracy\n" in text


# Labelled folders


def test_top1_follows_from_the_logits(tiny_bundle: Bundle, image_data: Path) -> None:
    images = read_image_folder(image_data / "val")
    (batch,) = read_batches(images.files, tiny_bundle.manifest.preprocessing, 100)
    backend = OnnxRuntimeCpu(tiny_bundle.read("fp32.onnx"), Encoding.FLOAT)
    right = backend.run(batch.images).argmax(1) == images.labels
    result = verify(tiny_bundle, data=image_data, precision="fp32")
    assert result.images == 24
    assert result.results[0].top1 == pytest.approx(100 * right.mean())
    assert result.results[0].baseline_top1 == result.results[0].top1
    assert result.verdict is Verdict.REPRODUCED  # the baseline has no drop against itself


def test_the_baseline_must_pass_the_golden_check(
    tiny_bundle: Bundle, image_data: Path, tmp_path: Path
) -> None:
    # The graph of another network, with its sha256 in the manifest.
    pytest.importorskip("torch")
    from resdeploy.export.graph.to_onnx import to_bytes, to_onnx
    from tests.samples import make_classifier

    copy = shutil.copytree(tiny_bundle.path, tmp_path / "copy.bundle")
    graph = to_bytes(to_onnx(make_classifier(seed=1), 32))
    (copy / "fp32.onnx").write_bytes(graph)
    fp32 = dataclasses.replace(tiny_bundle.artifact("fp32"), bytes=len(graph), sha256=sha256(graph))
    bundle = Bundle(copy, dataclasses.replace(tiny_bundle.manifest, artifacts=(fp32,)))
    result = verify(bundle, data=image_data, precision="fp32", max_drop=100)
    assert result.verdict is Verdict.FAIL
    assert result.results[0].sqnr_db < 20


def test_uses_the_val_folder(tiny_bundle: Bundle, image_data: Path) -> None:
    whole = verify(tiny_bundle, data=image_data, precision="fp16", max_drop=100)
    direct = verify(tiny_bundle, data=image_data / "val", precision="fp16", max_drop=100)
    # The environments differ: they hold the date and the temperature.
    assert dataclasses.replace(whole, environment=direct.environment) == direct


def test_drop_is_the_difference_and_below_its_bound(tiny_bundle: Bundle, image_data: Path) -> None:
    for line in verify(tiny_bundle, data=image_data, max_drop=100).results:
        assert line.top1 is not None
        assert line.baseline_top1 is not None
        assert line.drop == pytest.approx(line.baseline_top1 - line.top1)
        assert line.drop is not None
        assert line.drop_upper95 is not None
        assert line.drop_upper95 >= line.drop


def test_few_images_are_inconclusive(tiny_bundle: Bundle, image_data: Path) -> None:
    result = verify(tiny_bundle, data=image_data, max_drop=0.5)
    verdicts = by_encoding(result)
    assert verdicts["fp32", "float"] is Verdict.REPRODUCED  # against itself
    assert verdicts["fp16", "float"] is Verdict.INCONCLUSIVE
    assert result.verdict is Verdict.INCONCLUSIVE


def undecided(tiny_bundle: Bundle, image_data: Path, *names: str) -> Verification:
    """Return a result in which only the graphs `names` are undecided."""
    found = verify(tiny_bundle, data=image_data, backend="onnxruntime-cpu", max_drop=50)
    results = tuple(
        dataclasses.replace(line, verdict=Verdict.INCONCLUSIVE)
        if graph_name(line.precision, line.encoding) in names
        else line
        for line in found.results
    )
    return dataclasses.replace(found, results=results, verdict=Verdict.INCONCLUSIVE)


@RUNS_INT8
def test_a_graph_for_tensorrt_that_is_undecided_does_not_keep_a_cpu_from_serving(
    tiny_bundle: Bundle, image_data: Path
) -> None:
    result = undecided(tiny_bundle, image_data, "int8")
    assert "\nverdict: inconclusive for int8 (for TensorRT), on " in verification_text(result)
    assert next_step(result, "x.bundle") == (
        "resdeploy serve x.bundle, which does not use int8 (for TensorRT) on this machine; before "
        "other machines do, verify with more labelled images"
    )


@RUNS_INT8
def test_a_graph_that_serves_here_is_not_used_while_it_is_undecided(
    tiny_bundle: Bundle, image_data: Path
) -> None:
    result = undecided(tiny_bundle, image_data, "int8", "int8-cpu")
    names = "int8-cpu and int8 (for TensorRT)"
    assert f"\nverdict: inconclusive for {names}, on " in verification_text(result)
    assert next_step(result, "x.bundle") == (
        f"verify with more labelled images before you use {names}; until then: resdeploy serve "
        "x.bundle --backend onnxruntime-cpu --precision fp32"
    )
    fp32 = undecided(tiny_bundle, image_data, "fp32")
    assert next_step(fp32, "x.bundle") == "verify with more labelled images before you use fp32"
    for bound, words in (
        (1.95, ", or accept a drop of 1.95 points with --max-drop 2;"),
        (9.0, ";"),
    ):
        lines = tuple(dataclasses.replace(line, drop_upper95=bound) for line in result.results)
        found = dataclasses.replace(result, results=lines, max_drop=1.0)
        assert f"before you use {names}{words} until then" in next_step(found, "x.bundle")


@RUNS_INT8
def test_the_graph_that_needs_the_most_images_is_named(
    tiny_bundle: Bundle, image_data: Path
) -> None:
    found = verify(tiny_bundle, data=image_data, backend="onnxruntime-cpu")
    results = tuple(
        dataclasses.replace(
            line,
            images_to_decide=900 if line.encoding is Encoding.TENSORRT else 300,
            verdict=Verdict.INCONCLUSIVE if line.precision is Precision.INT8 else line.verdict,
        )
        for line in found.results
    )
    text = verification_text(dataclasses.replace(found, results=results))
    assert "about 900 labelled images decide whether the drop of int8 (for TensorRT) is" in text
    assert text.rstrip().endswith("drop, as on these; about 300 decide about fp16 and int8-cpu")


def test_counts_images_used_for_calibration(tiny_bundle: Bundle, image_data: Path) -> None:
    calibration = tiny_bundle.manifest.calibration
    assert calibration is not None
    used = [*calibration["image_sha256"], *calibration["selection_sha256"]]
    result = verify(tiny_bundle, data=image_data / "train", precision="fp32")
    assert result.used_before == len(used) == 32 + calibration["scoring_images"]
    assert f"INT8 ranges or layers on {len(used)} images" in verification_text(result)
    assert verify(tiny_bundle, data=image_data / "val", precision="fp32").used_before == 0


def test_only_the_held_out_images_of_the_training_are_judged(
    tiny_bundle: Bundle, image_data: Path
) -> None:
    """Check that the accuracy is not that on images which the network has learned."""
    data = image_data / "train"
    val = hold_out(read_image_folder(data), 0)[1]
    record = {"seed": 0, "sha256": names_digest(val, data)}

    def with_record(held_out: object) -> Bundle:
        model = {**tiny_bundle.manifest.model, "held_out": held_out}
        manifest = dataclasses.replace(tiny_bundle.manifest, model=model)
        return dataclasses.replace(tiny_bundle, manifest=manifest)

    assert verify(with_record(record), data=data, precision="fp32").images == 12
    with pytest.raises(BundleError, match=r"model\.held_out: .*seed is -1"):
        verify(with_record({**record, "seed": -1}), data=data, precision="fp32")


def test_counts_and_skips_unreadable_images(
    tiny_bundle: Bundle, image_data: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(image_data / "val", tmp_path / "val")
    (data / "blue" / "000.png").write_bytes(b"")
    (data / "blue" / "001.png").rename(data / "blue" / "001.tif")
    result = verify(tiny_bundle, data=data, precision="fp32")
    assert (result.images, result.unreadable, result.passed_over) == (22, 1, {".tif": 1})
    assert "passed over 1 file (.tif 1)" in verification_text(result)
    section = str(verification_section(result))
    assert "Passed over 1 file (.tif 1)." in section
    for picture in data.rglob("*.png"):
        picture.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 23 images can be decoded: .* is empty"):
        verify(tiny_bundle, data=data)


def test_rejects_folders_that_are_no_labels(
    tiny_bundle: Bundle, image_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_data / "val" / "red", tmp_path / "data" / "crimson")
    with pytest.raises(DataError, match=r"'crimson' is not one of the 3 classes of .*bundle"):
        verify(tiny_bundle, data=tmp_path / "data")


def test_rejects_labels_in_another_order(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "ENGINES", (colour_engine(),))
    write_images(tmp_path / "data", 8, seed=5)
    (line,) = verify(tiny_bundle, data=tmp_path / "data").results
    assert (line.top1, line.verdict) == (100, Verdict.REPRODUCED)
    renamed = rename_folders(tmp_path / "data", tmp_path / "renamed")
    with pytest.raises(
        DataError, match=r"correct for 0.0 % of 24 images, but for 100.0 %"
    ) as caught:
        verify(tiny_bundle, data=renamed)
    assert str(renamed) in str(caught.value)
    assert "3 of 3: 'blue' -> 'red', 'green' -> 'blue', 'red' -> 'green'" in str(caught.value)


def test_rejects_labels_on_which_fp32_is_no_better_than_chance(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "ENGINES", (colour_engine(),))
    write_images(tmp_path / "data", 60, seed=0)
    constant = Bundle(tmp_path / "constant.bundle", tiny_bundle.manifest)
    shutil.copytree(tiny_bundle.path, constant.path)
    with pytest.raises(DataError, match="no more than by chance") as caught:
        verify(constant, data=tmp_path / "data")
    assert "mean and std" in str(caught.value.hint)


def test_a_graph_that_fails_the_golden_check_is_no_reason_to_doubt_the_labels(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = dataclasses.replace(
        colour_engine(),
        open=lambda bundle, artifact, options: ColourBackend(
            dataclasses.replace(bundle.golden(), logits=-bundle.golden().logits)
        ),
    )
    monkeypatch.setattr(registry, "ENGINES", (engine,))
    write_images(tmp_path / "data", 8, seed=5)
    renamed = rename_folders(tmp_path / "data", tmp_path / "renamed")
    assert verify(tiny_bundle, data=renamed).verdict is Verdict.FAIL


def test_rejects_an_unknown_backend(tiny_bundle: Bundle) -> None:
    with pytest.raises(BackendError):
        verify(tiny_bundle, backend="abacus")


def test_precisions_are_listed_in_order(tiny_bundle: Bundle) -> None:
    order = [r.precision for r in verify(tiny_bundle).results]
    assert order == sorted(order, key=list(Precision).index)
