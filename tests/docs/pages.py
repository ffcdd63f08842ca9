"""The pages of the documentation: their headings, links, code and commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in ROOT_PAGES), *sorted(DOCS.glob("*.md"))]
WRONG_COMMANDS = DOCS / "wrong-commands.md"  # tests/journeys runs them
PARSER = MarkdownIt("commonmark").enable("table")
LOCAL = {"cp", "curl", "git", "make", "openssl", "pip", "python", "python3", "resdeploy", "sh"}
ELSEWHERE = {
    "apt-get", "docker", "gh", "grpcurl", "helm", "kubectl", "nvpmodel", "podman", "rsync", "scp",
    "ssh", "sudo", "systemctl",
}  # fmt: skip
# Words in the paragraph before a block, or in its first line, that say where its commands run.
MARK = re.compile(
    r"\b(on|from) (a|an|any|another|each|one|the|your) (\w+ )?"
    r"(boards?|clients?|cluster|computer|gpu|jetson|machine|pc|server|target)\b",
    re.IGNORECASE,
)
LANGUAGES = {"", "sh", "shell", "bash", "console", "text"}


@dataclass(frozen=True, slots=True)
class DocumentedCommand:
    """A simple command in a block, with the file into which its output goes."""

    place: str
    words: tuple[str, ...]
    output: str | None
    is_marked: bool

    @property
    def program(self) -> str:
        return self.words[0].rpartition("/")[2] if self.words[0][:1] in "~./" else self.words[0]

    @property
    def is_for_another_machine(self) -> bool:
        return self.program in ELSEWHERE or self.words[0].startswith(("~", "/opt/"))

    def __str__(self) -> str:
        return shlex.join([self.program, *self.words[1:]])


@cache
def tokens(page: Path) -> list[Any]:
    return PARSER.parse(page.read_text(encoding="utf-8"))


def inline(page: Path, kind: str) -> list[Any]:
    """Return the parts of the text of one kind, such as `code_inline` or `link_open`."""
    children = [child for token in tokens(page) for child in token.children or ()]
    return [child for child in children if child.type == kind]


def links(page: Path) -> list[str]:
    """Return the targets of all links and pictures."""
    return [str(link.attrs["href"]) for link in inline(page, "link_open")] + [
        str(image.attrs["src"]) for image in inline(page, "image")
    ]


def headings(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings; MkDocs is set up to make the same."""
    seen = list[str]()
    for opening, text in zip(tokens(page), tokens(page)[1:]):
        if opening.type == "heading_open":
            title = "".join(child.content for child in text.children)
            slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            seen.append(f"{slug}-{seen.count(slug)}" if slug in seen else slug)
    return set(seen)


def commands() -> list[DocumentedCommand]:
    """Return the commands in the blocks of all pages, in their order."""
    found = []
    for page in PAGES:
        before = ""
        for token in tokens(page) if page != WRONG_COMMANDS else []:
            if token.type == "inline":
                before = token.content
            elif token.type in ("fence", "code_block") and token.info.strip() in LANGUAGES:
                marked = bool(MARK.search(before + "\n" + token.content.partition("\n")[0]))
                for words, output in _simple_commands(token.content):
                    place = f"{page.name}:{token.map[0] + 1}: {shlex.join(words)}"
                    found.append(DocumentedCommand(place, words, output, marked))
    known = LOCAL | ELSEWHERE
    return [c for c in found if c.program in known or c.words[0].startswith("deploy/")]


def _simple_commands(block: str) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """Split the lines of a shell at its operators; leave out variables set before a name."""
    lines = block.replace("\\\n", " ").splitlines()
    prompts = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in prompts or lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words, output = list[str](), None
            for token in [*lexer, ";"]:
                if output == "":
                    output = token
                elif token == ">":
                    output = ""
                elif token and set(token) <= set("&|;()<>"):
                    if words:
                        yield tuple(words), output
                    words, output = [], None
                elif words or not re.match(r"[A-Za-z_]\w*=|(if|then|else|do)$", token):
                    words.append(token)
        except ValueError:  # a quote in the output of a command
            continue
