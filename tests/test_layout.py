"""The layout: links to the stages, sizes of modules and folders, unique names, docstrings."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import resdeploy
from resdeploy.bundle.bundle import Bundle

PACKAGE = Path(resdeploy.__file__).parent
ROOT = PACKAGE.parent
STAGES = ("train", "export", "calibration", "runtime")
CODE_FOLDERS = ("resdeploy", *STAGES, "benchmarks")
LONGEST_MODULE = 400  # lines
LARGEST_FOLDER = 16  # modules

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


def run_without(forbidden: set[str], code: str) -> str:
    """Return the output of Python code in a new process that must not import some packages."""
    code += f"\nimport sys; assert not set(sys.modules) & {forbidden!r}"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@in_a_clone
@pytest.mark.parametrize("stage", STAGES)
def test_link_points_to_its_sibling_folder(stage: str) -> None:
    link = PACKAGE / stage
    assert link.is_symlink()
    assert link.resolve() == (ROOT / stage).resolve()


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("resdeploy.runtime", {"torch", "onnx", "onnx_ir", "sklearn", "matplotlib"}),
        ("resdeploy.runtime.bench.backend_worker", {"torch", "onnx", "onnx_ir"}),
        ("resdeploy.calibration.observer", {"torch", "onnx", "onnx_ir"}),
        ("resdeploy.images.decoder_process", {"PIL"}),  # the server imports it
    ],
)
def test_module_imports_no_heavy_package(module: str, forbidden: set[str]) -> None:
    run_without(forbidden, f"import {module}")


def test_no_command_imports_a_heavy_package_before_it_runs() -> None:
    heavy = {"torch", "onnx", "onnxruntime", "numpy", "PIL", "tensorrt"}
    code = "from resdeploy.cli import main\nprint(len(list(main.commands.values())))"
    assert run_without(heavy, code) == "16\n"


def test_runtime_infers_without_torch_or_onnx(tiny_bundle: Bundle) -> None:
    code = (
        "from resdeploy.runtime import load\n"
        f"model = load({str(tiny_bundle.path)!r})\n"
        "print(model.run(model.bundle.golden().images).shape)"
    )
    assert run_without({"torch", "onnx", "onnx_ir"}, code) == "(24, 3)\n"


@in_a_clone
def test_modules_are_short_enough_to_read() -> None:
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert [str(path) for path, lines in sizes.items() if lines > LONGEST_MODULE] == []


@in_a_clone
def test_folders_hold_a_few_modules() -> None:
    for folder in PACKAGES:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        packages = [path for path in folder.iterdir() if (path / "__init__.py").is_file()]
        assert len(modules) <= LARGEST_FOLDER, folder
        assert len(modules) + len(packages) >= 2, f"{folder} holds only one module or package"


@in_a_clone
def test_public_names_are_unique() -> None:
    # Every backend has the first three functions, every script `main`, every worker `prepare`, and
    # every module of ceilings `copy_probe`. A command has the name of the function that it calls,
    # and `python_api` those of commands.
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
        and path.stem != "python_api"
    )
    assert sorted(name for name, count in names.items() if count > 1 and name not in shared) == []


@in_a_clone
def test_one_module_starts_python() -> None:
    """Only scripts of the benchmarks do so, too; they run in a clone."""
    starting = {
        path.relative_to(ROOT)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.executable"
    }
    assert {str(path) for path in starting if path.parts[0] != "benchmarks"} == {
        "resdeploy/machine/python_process.py"
    }


# First words of docstrings that say neither what a function does nor what an object is.
UNCLEAR_WORDS = {
    "what", "whether", "how", "who", "whose", "which", "it", "its", "of", "that", "those", "these",
    "this", "they", "them", "he", "she", "where", "when", "why", "so", "such", "todo",
}  # fmt: skip
# First words of a noun phrase, which describes an object, but not a function.
DETERMINERS = {"a", "all", "an", "any", "each", "every", "no", "some", "the"}


def docstrings_of(tree: ast.Module) -> list[tuple[ast.AST, int, str]]:
    """Return the docstrings of modules, classes, functions and fields with owner and line."""
    found: list[tuple[ast.AST, int, str]] = []
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for owner, statement in zip([node, *body], body):
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    found.append((owner, statement.lineno, text))
    return found


def is_described_by_a_verb(owner: ast.AST) -> bool:
    """Return True for a function that is not a property."""
    return isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef) and not any(
        isinstance(decorator, ast.Name) and "property" in decorator.id
        for decorator in owner.decorator_list
    )


@in_a_clone
def test_docstrings_begin_with_a_clear_word() -> None:
    unclear = []
    for path, tree in TREES.items():
        for owner, line, text in docstrings_of(tree):
            first = text.split(maxsplit=1)[0].strip("`.,:;").lower() if text.strip() else ""
            if first in UNCLEAR_WORDS | {""} or (
                first in DETERMINERS and is_described_by_a_verb(owner)
            ):
                unclear.append(f"{path}:{line}: {text[:60]}")
    assert unclear == []


# Folders of tests that use several modules together.
ACROSS = {
    "aarch64", "chaos", "contract", "deploy", "docs", "examples", "fuzz", "journeys",
    "pythons",
}  # fmt: skip


@in_a_clone
def test_folders_of_tests_mirror_the_modules() -> None:
    tests = ROOT / "tests"
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")} - {Path()}
    mirrored = {folder for folder in folders if folder.parts[0] not in ACROSS}
    assert mirrored - {path.relative_to(ROOT) for path in PACKAGES} == set()
