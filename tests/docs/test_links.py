"""Links of the documentation resolve, and its lists of pages, schemas and errors are complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.site_hooks import COMMANDS, command_reference, on_page_content
from resdeploy import errors
from resdeploy.cli import NAMES, main
from tests.docs.pages import DOCS, PAGES, PARSER, ROOT, headings, inline, links

OPTIONS = {
    name: {o for p in main.commands[name].params for o in (*p.opts, *p.secondary_opts)}
    for name in NAMES
}
# Options of other programs that the text names, and those of every command.
FOREIGN = {
    "--gpus", "--health-cmd", "--model-control-mode", "--no-healthcheck", "--runtime",
    "--stop-timeout", "--system-site-packages", "--user",
}  # fmt: skip
GENERAL = {"-h", "--help", "--version"}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@each_page
def test_links_and_anchors_resolve(page: Path) -> None:
    for link in links(page):
        if re.match(r"(https?|mailto):", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link
        if page.parent == DOCS:  # the site has no pages of folders, nor pages from outside of docs/
            assert target.is_file(), link
            assert target.is_relative_to(DOCS) or target.suffix != ".md", link


@each_page
def test_commands_and_options_in_the_text_exist(page: Path) -> None:
    """Check code such as `verify --data` and `--data DIR`."""
    for code in (token.content for token in inline(page, "code_inline")):
        words = code.removeprefix("resdeploy ").split()
        assert words[0] in NAMES or not re.match(r"resdeploy [a-z]+$", code), code
        known = OPTIONS.get(words[0], set().union(FOREIGN, *OPTIONS.values())) | GENERAL
        parts = [part for word in words for part in word.partition("=")[0].split("/")]
        used = {part for part in parts if re.fullmatch(r"--?[a-z][\w-]*", part)}
        if words[0] in NAMES or words[0].startswith("--"):
            assert used <= known, code


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_the_site_has_the_lists_and_tables_of_the_page(page: Path) -> None:
    """The parser of MkDocs needs empty lines and indents that GitHub does not need."""
    markdown = pytest.importorskip("markdown")
    text = page.read_text(encoding="utf-8")
    site = markdown.markdown(text, extensions=["tables", "fenced_code", "attr_list"])
    assert not re.search("<th[^>]*></th>", site), "each column of a table has a name"
    for tag in ("<li", "<td", "<table", "<pre", "<h2", "<img", "<a "):
        assert site.count(tag) == PARSER.render(text).count(tag), tag


def test_the_navigation_lists_each_page_once() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    listed = re.findall(r"[\w-]+\.md\b", navigation)
    assert sorted(listed) == sorted([COMMANDS, *(page.name for page in DOCS.glob("*.md"))])


def test_code_in_tables_of_the_site_has_no_backslash_before_a_bar() -> None:
    cell, block = r"<td><code>a \| b</code> 5 ms, 5 kids</td>", r"<pre><code>a\|b</code></pre>"
    page = on_page_content(cell + block, None, None, None)
    assert page == r"<td><code>a | b</code> 5&nbsp;ms, 5 kids</td>" + block


def test_every_schema_is_listed() -> None:
    page = DOCS / "json-schemas.md"
    files = {f"schemas/{path.name}" for path in (DOCS / "schemas").glob("*.json")}
    assert {link for link in links(page) if link.startswith("schemas/")} == files
    for name in files:
        kind = re.search(r'"const": "(resdeploy\.[^"]+)"', (DOCS / name).read_text())
        assert kind
        assert f"| `{kind[1]}` |" in page.read_text()


def test_every_kind_of_error_has_a_remedy() -> None:
    kinds = sorted(kind.__name__ for kind in errors.ResdeployError.__subclasses__())
    kinds = [name for name in kinds if hasattr(errors, name)]  # others are parts of these
    named = [code.content for code in inline(DOCS / "troubleshooting.md", "code_inline")]
    assert [name for name in named if name in kinds] == kinds


def test_the_python_reference_names_objects_that_exist() -> None:
    names = re.findall(r"^::: (\S+)", (DOCS / "python.md").read_text(), re.MULTILINE)
    assert len(names) > 10
    for name in names:
        module, _, attribute = name.rpartition(".")
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()  # imports would take long
        assert re.search(rf"^(class|def) {attribute}\b", source, re.MULTILINE), name


def test_the_page_of_commands_has_every_option() -> None:
    sections = command_reference(main).split("\n## resdeploy ")[1:]
    assert [section.split()[0] for section in sections] == list(NAMES)
    for section, name in zip(sections, NAMES):
        for option in (option for option in OPTIONS[name] if option.startswith("--")):
            assert re.search(rf"<code>{option}\b|/ {option}\b", section), (name, option)
