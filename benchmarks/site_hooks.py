"""Hooks of MkDocs: the page of all commands, and files outside of `docs/` that pages link to.

MkDocs calls these functions by their names (mkdocs.org, user guide, "Events"). `make docs` builds
the site.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import click

from resdeploy.cli import main

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = "commands.md"
HEAD = """# Commands

The same texts as `resdeploy COMMAND --help`, made from the command line itself. Each option is
followed by its values."""
BLOCK = re.compile("(<pre>.*?</pre>)", re.DOTALL)
UNIT = re.compile(r"(?<=\d) (?=%|(?:dB|ms|s|[kMG]i?B)\b)")
CODE = re.compile("<code>([^<]*)</code>")
CELL = re.compile("<td.*?</td>", re.DOTALL)
HYPHENATED = re.compile(r"(?<![\w./=&-])[\w./=-]*(?:-\w|\w-)[\w./=-]*")
OUTPUT = "<!-- run -->"  # mark of `benchmarks.tutorial`
LONGEST_WORD = 32  # characters that fit on a line of a phone
# A link in `docs/` to a file of the repository, such as `../deploy/ci/resdeploy.yml`.
OUTSIDE = re.compile(r"(?<=\]\()\.\./([^)#]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add the page of commands, and the files outside of `docs/` to which pages link."""
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]

    texts = [page.content_string for page in files.documentation_pages()]
    for name in {match for text in texts for match in OUTSIDE.findall(text)}:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    files.append(File.generated(config, COMMANDS, content=command_reference(main)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Return the text of a page with links to the copies of files outside of `docs/`.

    A page with outputs of commands has no table of contents beside them, so that they fit, and one
    without sections has none that would be empty.
    """
    if OUTPUT in markdown or "\n## " not in markdown:
        page.meta["hide"] = ["toc"]
    return OUTSIDE.sub(r"\1", markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Return the HTML of a page that breaks no line in an option, a file name or before a unit.

    Bars in cells of tables are escaped in Markdown; Python-Markdown leaves the backslash in code.
    """
    html = CELL.sub(lambda cell: cell[0].replace(r"\|", "|"), html)
    html = CODE.sub(lambda code: f"<code>{HYPHENATED.sub(_whole_word, code[1])}</code>", html)
    parts = BLOCK.split(html)
    parts[::2] = [UNIT.sub("&nbsp;", part) for part in parts[::2]]
    return "".join(parts)


def _whole_word(word: re.Match[str]) -> str:
    is_short = len(word[0]) <= LONGEST_WORD
    return f'<span class="whole">{word[0]}</span>' if is_short else word[0]


def command_reference(group: click.Group) -> str:
    """Return the Markdown of all commands: help, usage and options."""
    parent = click.Context(group, info_name="resdeploy", **group.context_settings)
    blocks = [HEAD]
    for name in group.commands:
        command = group.commands[name]
        context = click.Context(command, info_name=name, parent=parent)
        rows = [
            _row(p, context) for p in command.get_params(context) if isinstance(p, click.Option)
        ]
        paragraphs = [_cell(" ".join(text.split())) for text in (command.help or "").split("\n\n")]
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        table = "\n".join(["| option | meaning |", "| --- | --- |", *rows])
        blocks += [f"## resdeploy {name}", *paragraphs, f"    {usage}", table]
    return "\n\n".join(blocks) + "\n"


def _row(option: click.Option, context: click.Context) -> str:
    """Return an option, its values in words, such as `integer, 1 or more`, and its meaning."""
    names, meaning = option.get_help_record(context) or ("", "")
    values = "" if option.is_flag else option.make_metavar(context)
    names = names.removesuffix(f" {values}")
    if isinstance(option.type, click.Choice):
        values = values.strip("[]").replace("|", ", ")
    elif values.lower() == option.type.name:
        values = option.type.name
    if span := option.get_help_extra(context).get("range"):
        values = f"{values}, {span}"
        meaning = meaning.replace(f"; {span}]", "]").replace(f"  [{span}]", "")
    codes = ", ".join(f"<code>{_cell(name)}</code>" for name in names.split(", "))
    return f"| {codes}{' <br> ' * bool(values)}{_cell(values)} | {_cell(meaning)} |"


def _cell(text: str) -> str:
    """Return a text of the command line as Markdown that shows the same characters."""
    escaped = re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(text, quote=False))
    return escaped.replace("|", "&#124;<wbr>").replace("*", "&#42;").replace("_", "&#95;")
