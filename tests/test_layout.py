"""The layout: links to stages, sizes of folders, unique names, docstrings, mirrored tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import resdeploy

PACKAGE = Path(resdeploy.__file__).parent
ROOT = PACKAGE.parent
STAGES = ("train", "export", "calibration", "runtime")
CODE_FOLDERS = ("resdeploy", *STAGES, "benchmarks")
LONGEST_MODULE = 400
LARGEST_FOLDER = 16

FORBID = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {forbidden!r}:
            raise ImportError(name + " must not be imported here")
sys.meta_path.insert(0, Refuse())
"""

in_a_clone = pytest.mark.skipif(
    "site-packages" in PACKAGE.parts, reason="a wheel holds copies instead of links, and no tests"
)


def find_modules() -> list[Path]:
    """Return every module outside of tests; the links in the package lead to the same files."""
    links = {PACKAGE / stage for stage in STAGES}
    return sorted(
        path
        for folder in CODE_FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if links.isdisjoint(path.parents)
    )


MODULES = find_modules() if (ROOT / "tests").is_dir() else []
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
PACKAGES = sorted({path.parent for path in MODULES})


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@in_a_clone
@pytest.mark.parametrize("stage", STAGES)
def test_link_points_to_its_sibling_folder(stage: str) -> None:
    link = PACKAGE / stage
    assert link.is_symlink()
    assert link.resolve() == (ROOT / stage).resolve()


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("resdeploy.runtime", ("torch", "onnx", "onnx_ir", "sklearn", "matplotlib")),
        ("resdeploy.runtime.bench.worker", ("torch", "onnx", "onnx_ir")),
        ("resdeploy.calibration.observer", ("torch", "onnx", "onnx_ir")),
        ("resdeploy.cli.main", ("torch", "onnx", "onnxruntime", "numpy", "PIL", "tensorrt")),
    ],
)
def test_module_imports_without(module: str, forbidden: tuple[str, ...]) -> None:
    code = FORBID.format(forbidden=set(forbidden)) + f"import {module}\n"
    code += f"assert not set(sys.modules) & set({forbidden!r})\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_runtime_serves_without_torch_or_onnx(tiny_bundle: object) -> None:
    from resdeploy.bundle.bundle import Bundle

    assert isinstance(tiny_bundle, Bundle)
    code = FORBID.format(forbidden={"torch", "onnx", "onnx_ir"}) + (
        "from resdeploy.runtime import load\n"
        f"model = load({str(tiny_bundle.path)!r})\n"
        "print(model.run(model.bundle.golden().images).shape)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert answer.stdout.strip() == "(24, 3)"


@in_a_clone
@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_is_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE


@in_a_clone
@pytest.mark.parametrize("folder", PACKAGES, ids=name_of)
def test_folder_holds_a_few_modules(folder: Path) -> None:
    modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    packages = [path for path in folder.iterdir() if (path / "__init__.py").is_file()]
    assert len(modules) <= LARGEST_FOLDER
    assert len(modules) + len(packages) >= 2, "a layer that holds one thing only is empty"


@in_a_clone
def test_public_names_mean_one_thing() -> None:
    # A command is called like the function that it calls. Each backend offers the first functions,
    # each script the next, each set of ceilings the last.
    shared = {
        "check_availability", "installed_version", "open_artifact", "main", "prepare", "copy_probe",
    }  # fmt: skip
    names = Counter(
        node.name
        for path, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not (path.parent.name == "cli" and path.stem == node.name)
    )
    assert sorted(name for name, count in names.items() if count > 1 and name not in shared) == []


# Openings of docstrings that say neither what a function does nor what an object is.
RIDDLES = {
    "what", "whether", "how", "who", "whose", "which", "it", "its", "of", "that", "those", "these",
    "this", "they", "them", "he", "she", "where", "when", "why", "so", "such",
}  # fmt: skip
NOUN_OPENINGS = {"a", "all", "an", "any", "each", "every", "no", "some", "the"}


def docstrings_of(tree: ast.Module) -> list[tuple[ast.AST, int, str]]:
    """Return the docstrings of modules, classes, functions and fields with owner and line."""
    found: list[tuple[ast.AST, int, str]] = []
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for before, statement in zip([node, *body], body):
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                found.append((before, statement.lineno, statement.value.value))
    return found


@in_a_clone
@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_docstrings_open_with_what_they_describe(path: Path) -> None:
    riddles = []
    for owner, line, text in docstrings_of(TREES[path]):
        words = text.split()
        first = words[0].strip("`.,:;").lower() if words else ""
        is_function = isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef)
        is_property = is_function and any(
            isinstance(decorator, ast.Name) and "property" in decorator.id
            for decorator in owner.decorator_list  # type: ignore[attr-defined]
        )
        if not first or first in RIDDLES or first == "todo":
            riddles.append(f"line {line}: {text[:60]}")
        elif is_function and not is_property and first in NOUN_OPENINGS:
            riddles.append(f"line {line}: a function's docstring begins with a verb: {text[:60]}")
    assert riddles == []


# Folders of tests that go through several modules.
ACROSS = {"aarch64", "contract", "deploy", "journeys", "pythons"}


@in_a_clone
def test_folders_of_tests_mirror_the_modules() -> None:
    tests = ROOT / "tests"
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")} - {Path()}
    code = {path.relative_to(ROOT) for path in PACKAGES}
    assert sorted(str(folder) for folder in folders - code if folder.parts[0] not in ACROSS) == []
