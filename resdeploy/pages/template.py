"""HTML pages from one Jinja template, with one style sheet and no external files."""

from __future__ import annotations

import re

from resdeploy.errors import needs_extra
from resdeploy.pages.blocks import Page
from resdeploy.readable_text import readable, readable_texts

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
    environment.filters["unbroken"] = _unbroken
    text = environment.get_template(TEMPLATE).render(page=readable_texts(page))
    return readable(text, keep="\n\t").encode()


def _unbroken(text: str) -> str:
    """Return text in which no line ends between a number and its unit."""
    return re.sub(r"(?<=\d) (?=(%|dB|ms|MB|GB|points?)(\W|$))", "\u00a0", text)
