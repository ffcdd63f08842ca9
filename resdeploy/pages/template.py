"""HTML pages from one Jinja template, with one style sheet and no external files."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from resdeploy.errors import needs_extra
from resdeploy.pages.blocks import Page
from resdeploy.readable_text import readable, readable_texts

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = "pages/page.html.j2"


def to_html(page: Page) -> bytes:
    """Return a page as one HTML file that needs no network and no script.

    All texts are escaped and readable on one line.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    with needs_extra():
        import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resdeploy", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = lambda words: _whole_options(_unbroken(words))
    environment.filters["whole_options"] = _whole_options
    environment.filters["whole_names"] = _whole_names
    text = environment.get_template(TEMPLATE).render(page=readable_texts(page))
    return readable(text, keep="\n\t").encode()


def _whole_options(text: str) -> Markup:
    """Return text in which no line ends within an option, whose hyphens would allow it.

    The text that is copied from the page stays the same, as it would not with other characters.
    """
    return _marked(text, r"(?<![\w-])--?[A-Za-z][\w-]*", "option")


def _whole_names(text: str) -> Markup:
    """Return a cell in which no line ends within a short name with hyphens, such as `int8-cpu`."""
    short = r"(?=[a-z0-9-]{1,19}(?![a-z0-9-]))"
    return _marked(text, rf"(?<![\w<-]){short}[a-z0-9]+(-[a-z0-9]+)+(?![\w>=-])", "whole")


def _marked(text: str, pattern: str, name: str) -> Markup:
    """Return text in which each match of the pattern is in an element of this class."""
    from markupsafe import Markup, escape  # of Jinja

    return Markup(re.sub(pattern, rf'<span class="{name}">\g<0></span>', str(escape(text))))


def _unbroken(text: str) -> str:
    """Return text in which no line ends within an interval or before a unit, and true minus signs.

    A sign before a number stays with it, too.
    """
    text = re.sub(r"(?<![\w.-])-(?=\d)", "\u2212", text)
    units = r"(%|dB|ms|s|[kMG]i?B|points?|cores?)(\W|$)"
    text = re.sub(rf"(?<=\d) (?={units})|(?<=<) (?=\d)", "\u00a0", text)
    return re.sub(r"(?<=\d) to (?=[+\u2212]?\d)", "\u00a0to\u00a0", text)
