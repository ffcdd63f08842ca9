"""Tests of the text of reports, and of files that are damaged or hostile."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resdeploy.benchmark_process.roofline import Ceilings, roofline
from resdeploy.bundle.analysis import Analysis, Remedy
from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.calibration_record import TargetResult
from resdeploy.bundle.manifest import Encoding, ExportWarning, Precision, write_manifest
from resdeploy.bundle.quality import quality_warnings
from resdeploy.cli.verify import verification_text
from resdeploy.errors import BundleError, DocumentError, OutputError
from resdeploy.json_documents import jsonable, parse
from resdeploy.pages.blocks import Commands, Facts, Figure, Page, Table, Text
from resdeploy.pages.markdown import to_markdown
from resdeploy.pages.template import to_html
from resdeploy.report.confusion import confusion_blocks
from resdeploy.report.contents import BundleContents
from resdeploy.report.latency import benchmark_section
from resdeploy.report.report import ReportInputs, make_page, report
from resdeploy.result_files.verification import Verification
from resdeploy.runtime.verification.verify import verify
from resdeploy.statistics import Verdict
from resdeploy.tables import DROP, markdown_cell
from tests.results import benchmark, comparison, timing

EVIL = "<script>alert('x')</script>"


def written(folder: Path, name: str, result: Any) -> str:
    path = folder / name
    path.write_text(json.dumps(result if isinstance(result, list | dict) else jsonable(result)))
    return str(path)


def page_of(**inputs: Any) -> Page:
    return make_page(ReportInputs(**inputs))


def test_a_verification_is_read_as_it_was_written(verification: Verification) -> None:
    assert parse(Verification, json.loads(json.dumps(jsonable(verification)))) == verification


def test_markdown_is_short_and_has_the_results(
    tiny_bundle: Bundle, verification: Verification, tmp_path: Path
) -> None:
    sources = [
        str(tiny_bundle.path),
        written(tmp_path, "v.json", verification),
        written(tmp_path, "b.json", [jsonable(benchmark())]),
    ]
    text = report(sources, output=None, markdown=True).markdown
    assert text.startswith("## tiny.bundle: pass\n")
    assert "4.32x" in text
    assert "calibrator" not in text.split("Calibration")[0]
    assert "resdeploy bench r34.bundle --output bench.json" in text
    assert "<svg" not in text
    assert len(text) < 10_000  # GitHub accepts comments of at most 65,536
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_the_worst_verdict_is_the_verdict_of_the_page(verification: Verification) -> None:
    failed = replace(
        verification,
        verdict=Verdict.FAIL,
        results=(replace(verification.results[0], verdict=Verdict.FAIL), *verification.results[1:]),
    )
    page = page_of(verifications=[verification, failed])
    assert page.verdict is Verdict.FAIL
    assert "Verification failed on 24 labelled images: fp32" in page.summary[1]
    undecided = replace(
        verification,
        verdict=Verdict.INCONCLUSIVE,
        results=tuple(replace(r, verdict=Verdict.INCONCLUSIVE) for r in verification.results),
    )
    assert "do not decide about fp32" in page_of(verifications=[undecided]).summary[0]
    assert page_of(benchmarks=[benchmark()]).verdict is None


def texts_of(result: Verification) -> list[str]:
    """Return the notes below the tables of a verification."""
    blocks = page_of(verifications=[result]).sections[0].blocks
    return [block.text for block in blocks if isinstance(block, Text)]


def test_the_note_about_more_images_names_each_backend_whose_number_differs(
    verification: Verification,
) -> None:
    lines = [
        replace(line, verdict=Verdict.INCONCLUSIVE, images_to_decide=270, drop=0.0)
        for line in verification.results
        if line.backend == "onnxruntime-cpu" and line.precision is Precision.INT8
    ]
    (cpu,) = (line for line in lines if line.encoding is Encoding.CPU)
    others = [line for line in lines if line is not cpu]
    lines = [replace(cpu, images_to_decide=87, drop=4.17), replace(cpu, backend="openvino")]
    undecided = replace(verification, results=(*lines, *others))
    note = texts_of(undecided)[0]
    assert note == (
        "About 270 labelled images decide whether the drop of int8-cpu on openvino and int8 (for "
        "TensorRT) is at most 50 points, if there is no drop, as on these; about 87 decide "
        "about int8-cpu on onnxruntime-cpu."
    )
    # One drop is not that of all graphs that need as many images.
    alike = tuple(replace(line, images_to_decide=270) for line in undecided.results)
    assert texts_of(replace(undecided, results=alike))[0].endswith(
        "whether the drop is at most 50 points, if the drops stay as on these."
    )
    one = tuple(replace(line, images_to_decide=1, drop=0.0) for line in undecided.results)
    assert texts_of(replace(undecided, results=one))[0].startswith("About 1 labelled image would")


def test_the_notes_say_what_the_images_may_have_chosen(verification: Verification) -> None:
    chosen = "If the training chose its epoch on these images, their top-1 accuracy may be "
    assert chosen + "overestimated." in texts_of(verification)
    used = texts_of(replace(verification, used_before=7))
    assert used[2].startswith("The export chose INT8 ranges or layers on 7 of the images, so ")


def test_golden_images_alone_have_no_accuracy(tiny_bundle: Bundle) -> None:
    page = page_of(verifications=[verify(tiny_bundle)])
    assert page.sections[0].title == "Agreement"
    assert page.verdict is Verdict.REPRODUCED
    (sentence,) = page.summary
    assert sentence.startswith("This machine computes what the export computed (24 golden images).")
    assert "says nothing about accuracy: by a rough estimate from the export, about " in sentence
    html_page = to_html(page).decode()
    assert '<div class="verdict reproduced"><p><strong>Reproduced</strong>: ' in html_page
    assert '.verdict.reproduced::before { content: "="; }' in html_page  # no tick


def test_a_bundle_alone_has_no_verdict(tiny_bundle: Bundle) -> None:
    page = page_of(bundles=[BundleContents("b", tiny_bundle.manifest, None)])
    assert page.verdict is None
    assert page.recommendation.startswith("Before you deploy, measure the accuracy")
    assert page.commands[0] == "resdeploy verify b --data FOLDER --json > verification.json"
    assert page.commands[0] in to_markdown(page)
    assert page.lead.startswith("resnet10 at 32 pixels, 3 classes, exported on 20")
    assert to_markdown(page).startswith("## b\n")


def test_the_calibration_has_the_targets_that_are_held(tiny_bundle: Bundle) -> None:
    """The others are in the warnings of the bundle."""
    target = TargetResult(
        encoding=Encoding.CPU, option="--min-agreement", limit=90, figure=100, bound=96, samples=81,
        origin=None, images_to_decide=None, verdict=Verdict.PASS,
    )  # fmt: skip
    targets = [target, replace(target, limit=99, verdict=Verdict.INCONCLUSIVE)]
    calibration = {**(tiny_bundle.manifest.calibration or {}), "targets": jsonable(targets)}
    manifest = replace(tiny_bundle.manifest, calibration=calibration)
    text = to_html(page_of(bundles=[BundleContents("b", manifest, None)])).decode()
    assert text.count("int8-cpu: held:") == 1
    assert "undecided" not in text


def test_the_sources_of_the_pre_processing_are_named(tiny_bundle: Bundle) -> None:
    page = page_of(bundles=[BundleContents("b", tiny_bundle.manifest, None)])
    assert "(from an option)" in to_html(page).decode()


def test_warnings_stand_between_the_verdict_and_the_advice(
    tiny_bundle: Bundle, verification: Verification
) -> None:
    doubts = tuple(
        ExportWarning(message=f"{name} is bad <b>", hint="mend | it", artifacts=(name,))
        for name in ("int8", "int8-cpu")
    )
    manifest = replace(tiny_bundle.manifest, warnings=doubts)
    name = verification.environment.bundle or ""
    measured = benchmark()
    measured = replace(measured, environment=replace(measured.environment, bundle=name))
    page = page_of(
        bundles=[BundleContents(name, manifest, None)],
        verifications=[replace(verification, warnings=doubts)],
        benchmarks=[replace(measured, warnings=doubts[:1])],
    )
    # Doubts of several sources are shown once, and a hint that two of them share, too.
    assert page.warnings == ((("int8 is bad <b>", "int8-cpu is bad <b>"), "mend | it"),)
    text = to_html(page).decode()
    assert text.count('<div class="warning" role="note">') == 1
    order = ('class="verdict', 'class="warning"', 'class="recommendation', 'class="summary')
    places = [text.index(name) for name in order]
    assert places == sorted(places)
    assert "int8-cpu is bad &lt;b&gt;" in text
    lines = to_markdown(page).splitlines()
    first = lines.index("> [!WARNING]")
    assert lines[first + 1] == "> **int8 is bad &lt;b&gt;**"
    assert not any(line.startswith("* ") for line in lines[:first])
    assert first < lines.index(f"**{page.recommendation}**")
    assert r"> mend \| it" in lines


def test_a_verified_report_shows_no_doubt_that_the_verification_answers(
    tiny_bundle: Bundle, verification: Verification
) -> None:
    agreements = dict.fromkeys(("fp32", "fp16", "int8"), 100.0) | {"int8-cpu": 80.0}
    artifacts = tuple(
        replace(a, parity=replace(a.parity, images=400, agreement=agreements[a.name]), quality=None)
        for a in tiny_bundle.manifest.artifacts
    )
    (doubt,) = quality_warnings(manifest := replace(tiny_bundle.manifest, artifacts=artifacts))
    manifest, name = replace(manifest, warnings=(doubt,)), verification.environment.bundle or ""
    bundles = [BundleContents(name, manifest, None)]
    measured = benchmark()
    timed = replace(measured.environment, bundle=name)
    measured = replace(measured, environment=timed, warnings=(doubt,))
    alone = page_of(bundles=bundles, benchmarks=[measured])
    assert alone.warnings == (((doubt.message,), doubt.hint),)
    page = page_of(bundles=bundles, benchmarks=[measured], verifications=[verification])
    assert page.verdict is Verdict.PASS
    assert page.warnings == ()


@pytest.mark.parametrize("is_answered", [False, True])
def test_the_layers_need_no_action_only_if_no_open_warning_is_about_the_graph(
    tiny_bundle: Bundle, verification: Verification, is_answered: bool
) -> None:
    """A verification answers that the images of the export are few, but not a target."""
    remedy = Remedy(
        encoding=Encoding.CPU, options=(), images=24, origin=None, agreement=100.0, sqnr_db=31.0
    )
    analysis = Analysis(encoding=Encoding.CPU, remedy=remedy, layers=(), histograms=())
    artifacts = tuple(replace(a, quality=None) for a in tiny_bundle.manifest.artifacts)
    manifest = replace(tiny_bundle.manifest, artifacts=artifacts)
    (few,) = quality_warnings(manifest)
    target = ExportWarning(message="int8-cpu: undecided", hint="", artifacts=("int8-cpu",))
    manifest = replace(manifest, warnings=(few,) if is_answered else (few, target))
    name = verification.environment.bundle or ""
    for verifications, is_open in (([], True), ([verification], not is_answered)):
        page = page_of(
            bundles=[BundleContents(name, manifest, analysis)], verifications=verifications
        )
        text = to_markdown(page)
        assert ("No action is needed" in text) is not is_open
        assert ("the warning about this graph has its own remedy" in text) is is_open
        assert bool(page.warnings) is is_open


def test_lines_about_several_bundles_name_them_once(tiny_bundle: Bundle) -> None:
    doubt = ExportWarning(message="int8 is bad", hint="mend it", artifacts=("int8",))
    manifest = replace(tiny_bundle.manifest, warnings=(doubt,))
    bundles = [BundleContents(name, manifest, None) for name in ("a.bundle", "b.bundle")]
    page = page_of(bundles=bundles)
    assert page.warnings == ((("a.bundle and b.bundle: int8 is bad",), "mend it"),)
    # These bundles are the same; so are their sections.
    titles = [section.title for section in page.sections[:-1]]
    assert titles[0] == "Graphs of a.bundle and b.bundle"
    assert len({*titles}) == len(titles)
    assert page.lead.startswith("a.bundle and b.bundle: resnet10 at 32 pixels, 3 classes, exported")
    assert page.lead.count("resnet10") == 1
    begins = [line.split(",")[0] for line in page.summary]
    assert {*begins} == {"At the export of a.bundle", "At the export of b.bundle"}
    named = tuple(
        replace(doubt, message=f"{name}: int8 is bad") for name in ("a.bundle", "b.bundle")
    )
    compared = page_of(bundles=bundles, comparisons=[replace(comparison(), warnings=named)])
    assert compared.warnings == page.warnings
    assert not [line for line in compared.summary if line.startswith("At the export")]


def test_a_warning_without_a_hint_has_no_remedy(verification: Verification) -> None:
    doubt = ExportWarning(message="few images", hint="")
    page = page_of(verifications=[replace(verification, warnings=(doubt,))])
    assert "Remedy" not in to_html(page).decode()
    assert "> [!WARNING]\n> **few images**\n\n" in to_markdown(page)


def test_the_baseline_has_no_agreement_with_itself(verification: Verification) -> None:
    (table,) = (
        block
        for block in page_of(verifications=[verification]).sections[0].blocks
        if isinstance(block, Table) and block.caption.startswith("Agreement with FP32")
    )
    assert table.rows[0] == ("fp32 on onnxruntime-cpu", "-", "-")
    assert "-" not in [cell for row in table.rows[1:] for cell in row]
    assert verification_text(verification).splitlines()[2].split()[7:9] == ["-", "-"]


def test_only_several_benchmarks_have_long_titles() -> None:
    alone = page_of(benchmarks=[benchmark()]).sections[0]
    assert alone.title == "Speed"
    text = alone.blocks[0]
    assert isinstance(text, Text)
    assert "one image per call (mode stream), " in text.text
    first, second, *_ = page_of(benchmarks=[benchmark(), benchmark()]).sections
    assert first.title.startswith("Speed: ")
    assert first.title.endswith(" (1)")  # a screen reader lists the tables by these titles
    assert second.title == f"{first.title[:-4]} (2)"


def test_text_from_outside_is_escaped(tiny_bundle: Bundle, verification: Verification) -> None:
    evil_manifest = replace(
        tiny_bundle.manifest,
        model={**tiny_bundle.manifest.model, "source": EVIL},
        provenance={**tiny_bundle.manifest.provenance, "command": EVIL},
    )
    evil_benchmark = replace(
        benchmark(), results=(timing(EVIL), timing("x|y @someone")), notices=(EVIL,)
    )
    evil_verification = replace(verification, labels=(EVIL, "a", "b"))
    page = page_of(
        bundles=[BundleContents(EVIL, evil_manifest, None)],
        benchmarks=[evil_benchmark],
        verifications=[evil_verification],
    )
    text = to_html(page).decode()
    assert "<script" not in text
    assert text.count(html.escape(EVIL).replace("&#x27;", "&#39;")) >= 4
    markdown = to_markdown(page)
    assert "<script" not in re.sub(r"```sh.*?```", "", markdown, flags=re.DOTALL)
    assert r"x\|y" in markdown
    assert "@someone" not in markdown


@pytest.mark.parametrize(
    ("words", "cell"),
    [
        ("a|b", r"a\|b"),
        ("<b> & _c_", r"&lt;b&gt; &amp; \_c\_"),
        ("two\nlines", "two lines"),
        ("@me #1", "@<!-- -->me #<!-- -->1"),
    ],
)
def test_markdown_cells_stay_text(words: str, cell: str) -> None:
    assert markdown_cell(words) == cell


def test_commands_cannot_leave_their_fence(verification: Verification) -> None:
    environment = replace(verification.environment, command="x\n```\n# heading")
    text = to_markdown(page_of(verifications=[replace(verification, environment=environment)]))
    assert "\n``````sh\nx ``` # heading\n``````\n" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "has no results"),
        ("3", "its schema is None"),
        ("[[]]", "its schema is None"),
        ('{"schema": "resdeploy.benchmark/9"}', r"its schema is 'resdeploy\.benchmark/9'"),
        ('{"schema": "resdeploy.benchmark/1"}', "has no environment"),
        ('{"schema": {"a": 1}}', "its schema is {'a': 1}"),
    ],
)
def test_a_file_without_results_is_one_error_line(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DocumentError, match=message) as caught:
        report([str(tmp_path / "x.json")], output=tmp_path / "r.html", markdown=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"calibration": {"method": 3}},
        {"provenance": {"date": "today", "command": ["x"]}},
    ],
)
def test_a_damaged_manifest_is_one_error_line(
    tiny_bundle: Bundle, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = tmp_path / "x.bundle"
    shutil.copytree(tiny_bundle.path, folder)
    write_manifest(folder, replace(tiny_bundle.manifest, **change))
    with pytest.raises(BundleError, match="the manifest is damaged"):
        report([str(folder)], output=None, markdown=True)


def test_an_existing_file_is_kept_without_force(tmp_path: Path) -> None:
    name = written(tmp_path, "b.json", benchmark())
    (tmp_path / "r.html").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        report([name], output=tmp_path / "r.html", markdown=False)
    assert (tmp_path / "r.html").read_text() == "mine"
    report([name], output=tmp_path / "r.html", markdown=False, force=True)
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")


def test_a_benchmark_with_missing_values_is_shown(tmp_path: Path) -> None:
    bare = timing(
        speedup=None, speedup_low=None, speedup_high=None, cold_start_s=None, limit_share=None,
        bound=None, peak_rss_bytes=None, file_bytes=None, quantiles_ms=(), round_ms=(),
    )  # fmt: skip
    document = replace(benchmark(), results=(bare,), work=None, ceilings=None)
    section = benchmark_section(document)
    assert not [block for block in section.blocks if isinstance(block, Figure)]
    times, resources = (block for block in section.blocks if isinstance(block, Table))
    assert times.rows[0][2:4] == ("-", "-")
    assert resources.rows[0][-1] == "-"


def test_stages_have_a_table() -> None:
    staged = timing(stages_ms={"decode": 1.25, "inference": 18.0})
    section = benchmark_section(replace(benchmark(), results=(staged, timing())))
    (table,) = [b for b in section.blocks if isinstance(b, Table) and "JPEG" in b.caption]
    assert table.head == ("contender", "decode", "inference")
    assert table.rows[0][1:] == ("1.25", "18.00")


class TablesOfAPage(HTMLParser):
    """Tables of an HTML page, as rows of cells; the head comes first."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th") and self.tables:
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.tables[-1][-1][-1] += data

    def columns(self, *names: str) -> list[list[float]]:
        """Return the numbers in these columns of the only table that has all of them."""
        (table,) = [rows for rows in self.tables if rows and set(names) <= set(rows[0])]
        places = [table[0].index(name) for name in names]
        number = re.compile(r"[-+]?[\d.]+")
        rows = [row for row in table[1:] if {row[i] for i in places} != {"-"}]
        return [[float(number.findall(row[i])[0]) for i in places] for row in rows]


def test_the_numbers_on_a_page_are_those_of_the_json(verification: Verification) -> None:
    measured = benchmark()
    page = TablesOfAPage(
        to_html(page_of(benchmarks=[measured], verifications=[verification])).decode()
    )
    times, answers = jsonable(measured)["results"], jsonable(verification)["results"]
    shown = {
        ("p50 in ms", "p90 in ms", "p99 in ms", "images/s", "speed-up"): (
            times, ("p50_ms", "p90_ms", "p99_ms", "images_per_second", "speedup"),
        ),
        ("cold start",): (times, ("cold_start_s",)),
        ("top-1", DROP, "95 % bound"): (answers, ("top1", "drop", "drop_upper95")),
        ("agreement", "SQNR"): (answers[1:], ("agreement", "sqnr_db")),
    }  # fmt: skip
    for names, (lines, keys) in shown.items():
        exact = [[line[key] for key in keys] for line in lines]
        # A page rounds to one or two decimals.
        np.testing.assert_allclose(page.columns(*names), exact, atol=0.0501, rtol=0)


def test_the_roofline_has_a_line_per_ceiling_and_a_point_per_contender() -> None:
    section = benchmark_section(benchmark())
    figures = [block for block in section.blocks if isinstance(block, Figure)]
    (roofline,) = [figure for figure in figures if figure.caption.startswith("Roofline")]
    assert roofline.svg.count("<polyline") == 3
    assert roofline.svg.count('class="point') == 3
    colours = ['class="point line2"', 'class="point line1"', 'class="point line0"']
    assert sum(colour in roofline.svg for colour in colours) == 2  # of FP32 and of INT8
    known = benchmark().ceilings
    assert known
    rates = {n: rate for n, rate in known.operations_per_second.items() if n != "int8"}
    fewer = benchmark_section(
        replace(benchmark(), ceilings=replace(known, operations_per_second=rates))
    )
    figures = [block for block in fewer.blocks if isinstance(block, Figure)]
    assert any('class="point kind0"' in figure.svg for figure in figures)  # no line of its own
    nothing = Ceilings(operations_per_second={}, bytes_per_second=None)
    without = benchmark_section(replace(benchmark(), ceilings=nothing))
    assert len([b for b in without.blocks if isinstance(b, Figure)]) == len(figures) - 1


@pytest.mark.parametrize("bound", [-0.3, 0.0, 0.004, 0.5])
def test_a_bound_of_nothing_is_said_in_words(verification: Verification, bound: float) -> None:
    results = tuple(
        replace(r, verdict=Verdict.PASS, drop_upper95=bound) for r in verification.results
    )
    passed = replace(verification, verdict=Verdict.PASS, results=results)
    (sentence,) = page_of(verifications=[passed]).summary
    if bound < 0.005:
        assert sentence.startswith("No graph is less accurate than FP32 (95 % confidence, ")
    else:
        assert sentence.startswith("No graph is more than 0.50 points less accurate than FP32 (")


def test_a_fast_contender_with_a_wide_interval_is_not_called_the_fastest() -> None:
    measured = benchmark()
    (sentence,) = page_of(benchmarks=[measured]).summary
    assert sentence.startswith("The fastest contender is onnxruntime-cpu with int8-cpu: ")
    wide = replace(measured.results[1], speedup_high=44.8, round_ms=(66.0, 8.0) * 7 + (8.0,))
    noisy = replace(measured, results=(measured.results[0], wide, measured.results[2]))
    (sentence,) = page_of(benchmarks=[noisy]).summary
    assert sentence.startswith(
        "Smallest latency, though not with certainty: onnxruntime-cpu with int8-cpu: "
    )
    assert sentence.endswith(
        " The speed-up of fp32 on onnxruntime-cpu is known only within a factor of more than 2, "
        "so measure again on an idle machine."
    )


def test_the_share_of_the_limit_follows_from_the_points_of_the_roofline() -> None:
    measured = benchmark()
    work, ceilings = measured.work, measured.ceilings
    assert work
    assert ceilings
    limit = roofline(work, ceilings, "int8", 1)
    assert limit
    # The mean of all calls is another than the median of the rounds.
    fast = replace(
        measured.results[2], round_ms=(limit.ms / 1.9,), limit_share=1.9, images_per_second=1.0
    )
    section = benchmark_section(replace(measured, results=(fast,)))
    tables = {block.caption.partition(".")[0]: block for block in section.blocks
              if isinstance(block, Table)}  # fmt: skip
    ((_, rate, intensity),) = tables["Points of the roofline"].rows
    assert ceilings.bytes_per_second
    highest = min(float(intensity) * ceilings.bytes_per_second / 1e9, 600)
    assert float(rate) / highest == pytest.approx(1.9, rel=0.01)
    assert "A share above 100 %: the limit counts all data" in tables["Resources"].caption


def test_pairs_with_as_many_errors_as_the_last_row_are_counted() -> None:
    cells = [(0, index, 7 if index < 10 else 6) for index in range(1, 14)]
    *_, table = confusion_blocks([str(i) for i in range(14)], {"int8-cpu": cells}, "int8-cpu")
    assert isinstance(table, Table)
    assert len(table.rows) == 10
    assert table.caption.endswith("number of images. 3 other pairs also have 6 images.")


def test_facts_that_results_share_are_shown_once(verification: Verification) -> None:
    later = replace(verification.environment, date="2027-01-01T00:00:00+00:00")
    page = page_of(verifications=[verification, replace(verification, environment=later)])
    text = to_html(page).decode()
    assert text.count("<dt>versions</dt>") == 1
    assert text.count("<dt>date</dt>") == 2
    assert "2027-01-01" in text
    # The commands of all do not stand under the heading of the last.
    shared, commands, *_ = page.sections[-1].blocks
    assert isinstance(shared, Facts)
    assert isinstance(commands, Commands)
