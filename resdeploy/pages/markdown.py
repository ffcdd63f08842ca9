"""Pages as Markdown, short enough for a comment on a pull request."""

from __future__ import annotations

from collections.abc import Iterator

from resdeploy.pages.blocks import Block, Commands, Facts, Page, Table, Text
from resdeploy.tables import markdown_cell, markdown_table


def to_markdown(page: Page) -> str:
    """Return a page as Markdown, without its plots and its tables for HTML only."""
    verdict = f": {page.verdict.value}" if page.verdict else ""
    parts = [f"## {markdown_cell(page.title)}{verdict}"]
    parts += [markdown_cell(line) for line in (page.lead, page.subject) if line]
    parts += [
        "> [!WARNING]\n"
        + "\n>\n".join(
            [
                *(f"> **{markdown_cell(message)}**" for message in messages),
                *([f"> {markdown_cell(hint)}"] if hint else []),
            ]
        )
        for messages, hint in page.warnings
    ]
    parts += [f"**{markdown_cell(page.recommendation)}**"] if page.recommendation else []
    parts += _block(Commands(lines=page.commands)) if page.commands else []
    parts.append("\n".join(f"* {markdown_cell(sentence)}" for sentence in page.summary))
    for section in page.sections:
        shown = [part for block in section.blocks for part in _block(block)]
        if not shown:
            continue
        head = markdown_cell(section.title)
        if all(isinstance(block, Facts | Commands) for block in section.blocks):
            body = "\n\n".join(shown)
            parts.append(f"<details><summary>{head}</summary>\n\n{body}\n\n</details>")
        else:
            parts += [f"### {head}", *shown]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Text):
        yield markdown_cell(block.text)
    elif isinstance(block, Table) and not block.html_only:
        yield f"{markdown_cell(block.caption)}\n\n{markdown_table(block.head, block.rows)}"
    elif isinstance(block, Facts):
        facts = "\n".join(
            f"* {markdown_cell(name)}: {markdown_cell(value)}" for name, value in block.facts
        )
        yield f"**{markdown_cell(block.caption)}**\n\n{facts}" if block.caption else facts
    elif isinstance(block, Commands):
        # The fence must be longer than any run of backticks in the lines.
        fence = "`" * (3 + max((line.count("`") for line in block.lines), default=0))
        lines = "\n".join(" ".join(line.splitlines()) for line in block.lines)
        yield f"{fence}sh\n{lines}\n{fence}"
