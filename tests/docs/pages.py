"""The pages of the documentation: their headings, links and commands, as a reader finds them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted(DOCS.glob("*.md")),
]
# It shows wrong commands; tests/journeys runs them.
WRONG_COMMANDS = DOCS / "wrong-commands.md"

LOCAL = {
    "cp", "curl", "git", "make", "openssl", "pip", "python", "python3", "resdeploy", "sh", "source",
}  # fmt: skip
ELSEWHERE = {
    "apt-get", "docker", "gh", "grpcurl", "helm", "install", "kubectl", "nvpmodel", "podman",
    "rsync", "scp", "ssh", "sudo", "systemctl", "tritonserver",
}  # fmt: skip
# Words before a block, or in its first line, that say where its commands run.
MARK = re.compile(
    r"\b(on|from) (a|an|any|another|each|one|the|your) (\w+ )?"
    r"(boards?|clients?|cluster|computer|gpu|jetson|machine|pc|server|target)\b",
    re.IGNORECASE,
)
FENCE = re.compile(r" *(```+|~~~+) *(\S*)")
LANGUAGES = {"", "sh", "shell", "bash", "console", "text"}


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code with the paragraph before it; `line` is that of the first line of code."""

    line: int
    language: str
    code: tuple[str, ...]
    before: str

    @property
    def is_marked(self) -> bool:
        return bool(MARK.search(f"{self.before}\n{self.code[0] if self.code else ''}"))


@dataclass(frozen=True, slots=True)
class DocumentedCommand:
    """A simple command in a block, with the file into which its output goes."""

    page: Path
    line: int
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

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {self}"


@cache
def text_and_blocks(page: Path) -> tuple[str, tuple[Block, ...]]:
    """Return the text of a page without its code, with as many lines, and the blocks of code."""
    prose: list[str] = []
    blocks: list[Block] = []
    before, code, language, fence = "", list[str](), "", ""
    for line in [*page.read_text(encoding="utf-8").splitlines(), ""]:
        opening = FENCE.match(line)
        if fence:
            closes = opening is not None and opening[1].startswith(fence) and not opening[2]
            if closes:
                blocks.append(Block(len(prose) - len(code) + 1, language, tuple(code), before))
                code, fence = [], ""
            else:
                code.append(line)
            prose.append("")
        elif opening:
            fence, language = opening[1], opening[2]
            prose.append("")
        elif line.startswith("    ") and (code or not (prose and prose[-1].strip())):
            code.append(line[4:])
            prose.append("")
        else:
            if code:
                blocks.append(Block(len(prose) - len(code) + 1, "", tuple(code), before))
                code = []
            if line.strip():
                continues = bool(prose and prose[-1].strip())
                before = f"{before} {line}" if continues else line
            prose.append(line)
    return "\n".join(prose), tuple(blocks)


def headings(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings; MkDocs is set up to make the same."""
    found: dict[str, int] = {}
    anchors = set()
    for title in re.findall(r"^#+ +(.+?) *#*$", text_and_blocks(page)[0], re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = found[slug] = found.get(slug, -1) + 1
        anchors.add(f"{slug}-{number}" if number else slug)
    return anchors


def links(page: Path) -> list[str]:
    """Return the targets of all links and pictures that are not in code."""
    text = re.sub(r"`[^`\n]+`", "", text_and_blocks(page)[0])
    return [
        *re.findall(r"\]\(([^)\s]+)[^)]*\)", text),
        *re.findall(r'(?:href|src)="([^"]+)"', text),
    ]


def inline_code(page: Path) -> list[str]:
    """Return all code within the text."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text_and_blocks(page)[0])]


def commands() -> list[DocumentedCommand]:
    """Return the commands in the blocks of all pages, in their order."""
    return [
        command
        for page in PAGES
        if page != WRONG_COMMANDS
        for block in text_and_blocks(page)[1]
        if block.language in LANGUAGES
        for command in _commands_of(page, block)
    ]


def _commands_of(page: Path, block: Block) -> Iterator[DocumentedCommand]:
    has_prompts = any(line.startswith("$ ") for line in block.code)
    joined, start = "", 0
    for number, line in enumerate(block.code):
        start = start if joined else number
        joined += line.removesuffix("\\")
        if line.endswith("\\"):
            continue
        text, joined = joined, ""
        if has_prompts and not text.startswith("$ "):
            continue
        for words, output in _simple_commands(text.removeprefix("$ ")):
            found = DocumentedCommand(page, block.line + start, words, output, block.is_marked)
            if found.program in LOCAL | ELSEWHERE or words[0].startswith("deploy/"):
                yield found


def _simple_commands(text: str) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """Split a line of a shell at its operators; leave out variables that are set before a name."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        tokens = list(lexer)
    except ValueError:  # a quote in the output of a command
        return
    words, output = list[str](), None
    for token in [*tokens, ";"]:
        if output == "":
            output = token
        elif token == ">":
            output = ""
        elif token and set(token) <= set("&|;()<>"):
            if simple := _without_assignments(words):
                yield simple, output
            words, output = [], None
        else:
            words.append(token)


def _without_assignments(words: Sequence[str]) -> tuple[str, ...]:
    index = 0
    while index < len(words) and (
        re.match(r"[A-Za-z_]\w*=", words[index]) or words[index] in ("if", "then", "else", "do")
    ):
        index += 1
    return tuple(words[index:])
