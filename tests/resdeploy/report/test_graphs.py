"""Tests of the tables of a bundle's graphs, calibrators and layers in float."""

from __future__ import annotations

from dataclasses import replace

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.calibration_record import Score, TradeOffPoint
from resdeploy.bundle.manifest import Encoding, Manifest, Quality, QualityOrigin
from resdeploy.json_documents import jsonable
from resdeploy.pages.blocks import Figure, Table, Text
from resdeploy.report.contents import BundleContents, bundle_sections
from resdeploy.report.graphs import export_summary
from resdeploy.report.trade_off import trade_off_blocks


def with_quality(manifest: Manifest, **agreements: float) -> Manifest:
    """Return the manifest with the agreement of INT8 graphs on 128 other images."""
    artifacts = []
    for artifact in manifest.artifacts:
        agreement = agreements.get(artifact.name.replace("-", "_"))
        parity, quality = replace(artifact.parity, images=24, agreement=100.0), None
        if agreement is not None:
            quality = Quality(
                images=128, agreement=agreement, sqnr_db=30.0, origin=QualityOrigin.HELD_OUT
            )
        artifacts.append(replace(artifact, parity=parity, quality=quality))
    return replace(manifest, artifacts=tuple(artifacts))


def tables_of(manifest: Manifest) -> list[Table]:
    sections = bundle_sections([BundleContents("b", manifest, None)])
    blocks = [block for section in sections for block in section.blocks]
    return [block for block in blocks if isinstance(block, Table)]


def test_each_sentence_names_its_graphs_and_one_set_of_images(tiny_bundle: Bundle) -> None:
    other, golden = export_summary(with_quality(tiny_bundle.manifest, int8=100.0, int8_cpu=90.625))
    assert other == (
        "At the export, int8.onnx predicted the same class as FP32 for all of the 128 images not "
        "used by the calibration; int8-cpu.onnx for 90.62 %."
    )
    assert golden.startswith(
        "At the export, fp32.onnx and fp16.onnx predicted the same class as PyTorch for all of the "
        "24 golden images."
    )


def test_each_table_of_graphs_has_one_set_of_images(tiny_bundle: Bundle) -> None:
    tables = tables_of(with_quality(tiny_bundle.manifest, int8=100.0, int8_cpu=90.625))
    files, others, golden, *_ = tables
    assert files.head[:2] == ("graph", "made for")
    assert others.caption.startswith("INT8 graphs on 128 images not used by")
    assert [row[:2] for row in others.rows] == [
        ("int8.onnx", "100.00 %"), ("int8-cpu.onnx", "90.62 %"),
    ]  # fmt: skip
    assert golden.caption.startswith("All graphs on 24 golden images.")
    assert len(golden.rows) == len(tiny_bundle.manifest.artifacts)


def test_the_chosen_calibrator_is_the_first_by_the_rule_in_the_caption(
    tiny_bundle: Bundle,
) -> None:
    def score(name: str, agreement: float, sqnr_db: float, p5: float, divergence: float) -> Score:
        return Score(
            calibrator=name, encoding=Encoding.DLA, agreement=agreement,
            sqnr_db=sqnr_db,
            sqnr_db_p5=p5, divergence=divergence,
        )  # fmt: skip

    calibration = dict(tiny_bundle.manifest.calibration or {})
    calibration["method"] = {"dla": "image-97"}
    calibration["scoring_images"] = 128
    calibration["scores"] = [
        {
            "calibrator": s.calibrator, "encoding": "dla",
            "agreement": s.agreement, "sqnr_db": s.sqnr_db, "sqnr_db_p5": s.sqnr_db_p5,
            "divergence": s.divergence,
        }
        for s in (score("max", 96.1, 14.0, 6.0, 0.1), score("image-97", 95.3, 15.0, 6.5, 0.01))
    ]  # fmt: skip
    manifest = replace(tiny_bundle.manifest, calibration=calibration)
    (table,) = (t for t in tables_of(manifest) if t.caption.startswith("Calibrators"))
    assert "on 128 further images, which only choose the calibrator." in table.caption
    assert "max: the range of all values; image-97: the range that 97 % of" in table.caption
    assert "entropy" not in table.caption  # it was not tried
    assert (
        "highest score, the sum of SQNR, SQNR p5 and -10 log10 of the divergence" in table.caption
    )
    assert [row[:3] for row in table.rows] == [
        ("image-97", "41.5", "95.30 %"), ("max", "30.0", "96.10 %"),
    ]  # fmt: skip
    assert table.highlighted == {0}


def point(
    encoding: Encoding,
    layers: tuple[str, ...],
    ms: float | None,
    *,
    images: int = 128,
    **others: bool,
) -> TradeOffPoint:
    return TradeOffPoint(
        encoding=encoding, calibrator="max", layers=layers, float_share_percent=3.0 * len(layers),
        agreement=99.0 + len(layers) / 10, drop=None, images=images, p50_ms=ms,
        chosen=others.get("chosen", False),
    )  # fmt: skip


def test_every_point_of_the_trade_off_has_its_number_in_the_table() -> None:
    points = (
        point(Encoding.FLOAT, (), 9.0, chosen=True),
        point(Encoding.CPU, (), 5.0),
        replace(point(Encoding.CPU, (), 5.0), calibrator="mse"),  # is in a table of its own
        point(Encoding.CPU, ("a",), 6.0, images=256, chosen=True),
        point(Encoding.CPU, ("a",), 6.0),
        point(Encoding.CPU, ("a", "b"), 7.0),
        point(Encoding.CPU, ("a", "b", "c"), None),  # not timed
    )
    figure, table = trade_off_blocks(points)
    assert isinstance(figure, Figure)
    assert isinstance(table, Table)
    assert [(row[0], row[-1]) for row in table.rows] == [
        ("1: int8-cpu.onnx", "256"), ("2: fp32.onnx", "-"), ("3: all in INT8", "128"),
        ("4: 2 layers in float", "128"),
    ]  # fmt: skip
    for number in "1234":
        assert f">{number}</text>" in figure.svg
    assert "dark" not in figure.caption  # a border is light on a dark page


def test_an_int8_graph_that_is_not_faster_than_fp32_is_named() -> None:
    slow = (
        point(Encoding.FLOAT, (), 5.5, chosen=True),
        point(Encoding.CPU, ("a",), 6.3, chosen=True),
    )
    assert trade_off_blocks(slow)[-1] == Text(
        text="With so many layers in float, int8-cpu.onnx was not faster than fp32.onnx (6.30 and "
        "5.50 ms)."
    )


def test_a_graph_without_an_agreement_has_only_a_latency(tiny_bundle: Bundle) -> None:
    unjudged = replace(point(Encoding.CPU, (), 5.0, images=0, chosen=True), agreement=None)
    points = (point(Encoding.FLOAT, (), 9.0, chosen=True), unjudged)
    calibration = {**(tiny_bundle.manifest.calibration or {}), "points": jsonable(points)}
    files, *_ = tables_of(replace(tiny_bundle.manifest, calibration=calibration))
    latencies = {row[0]: row[2] for row in files.rows}
    assert (latencies["fp32.onnx"], latencies["int8-cpu.onnx"]) == ("9.00 ms", "5.00 ms")
    content = BundleContents("b", replace(tiny_bundle.manifest, calibration=calibration), None)
    table = bundle_sections([content], timed=True)[0].blocks[0]
    assert isinstance(table, Table)
    assert "latency" not in table.head
    assert "Latency" not in table.caption
    assert trade_off_blocks((*points, point(Encoding.CPU, ("a",), 6.0))) != ()


def test_a_bundle_without_a_search_has_no_trade_off() -> None:
    points = (
        point(Encoding.FLOAT, (), 9.0, chosen=True),
        point(Encoding.CPU, (), 5.0, chosen=True),
    )
    assert trade_off_blocks(points) == ()
