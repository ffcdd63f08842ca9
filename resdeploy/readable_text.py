"""Text from outside in a form that every terminal, log, page and file can show.

`readable` is the one renderer of foreign text: labels, names of files, models and tensors, messages
of libraries, variables of the environment. Pages escape their own syntax as well: HTML in Jinja's
autoescape and `html.escape`, Markdown in `tables.markdown_cell`, labels of metrics in Prometheus'
client. No command writes CSV or interprets markup.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Characters that command a terminal, or that nobody sees: control characters, separators of lines
# and paragraphs, marks that reverse the direction of text, invisible characters, language tags, and
# surrogates, with which Python marks the bytes of a name that is not UTF-8. The joiners U+200C and
# U+200D stay, because scripts and emoji need them. See Unicode Technical Report 36, section 3.
UNPRINTABLE = (
    "\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff"
    "\ufeff\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
_UNPRINTABLE = re.compile(f"[{UNPRINTABLE}]")
FIRST_BYTE = 0xDC00  # Python's error handler "surrogateescape" adds this to a byte


def readable(text: str, *, keep: str = "", json: bool = False) -> str:
    r"""Return `text` with escapes such as `\x1b` for all unprintable characters not in `keep`.

    A byte of a file name that is not UTF-8 becomes `\xd5`, and the result can always be encoded.
    With `json`, `text` is a JSON document, whose values do not change: the escapes are JSON's.
    """

    def escape(match: re.Match[str]) -> str:
        if match[0] in keep:
            return match[0]
        code = ord(match[0])
        if json:
            units = match[0].encode("utf-16-be", "surrogatepass").hex()
            return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))
        if FIRST_BYTE + 0x80 <= code <= FIRST_BYTE + 0xFF:
            code -= FIRST_BYTE
        width, letter = (2, "x") if code <= 0xFF else (4, "u") if code <= 0xFFFF else (8, "U")
        return f"\\{letter}{code:0{width}x}"

    return _UNPRINTABLE.sub(escape, text)


def readable_texts(value: Any) -> Any:
    """Return a copy of a result, a tree of dataclasses, with every text and path readable."""
    if type(value) is str:  # members of enums, and markup, are ours
        return readable(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (field.name for field in dataclasses.fields(value) if field.init)
        changes = {name: readable_texts(getattr(value, name)) for name in fields}
        return dataclasses.replace(value, **changes)
    if isinstance(value, Mapping):
        return {readable_texts(key): readable_texts(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(readable_texts, value))
    if isinstance(value, Path):
        return Path(readable(str(value)))
    if isinstance(value, BaseException):
        return readable(str(value))
    return value
