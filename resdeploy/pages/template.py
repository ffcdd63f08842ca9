"""HTML pages from Jinja templates, with one style sheet and no external files."""

from __future__ import annotations

from typing import Any

from resdeploy.errors import needs_extra
from resdeploy.readable_text import readable, readable_texts


def render_page(template: str, **values: Any) -> bytes:
    """Return a filled-in template as UTF-8; all values are escaped and readable on one line.

    Args:
        template: Path, below the package, of a template that extends `pages/page.html.j2`.
        values: Variables of the template.

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
    page = environment.get_template(template).render(**readable_texts(values))
    return readable(page, keep="\n\t").encode()
