"""Text from outside in a form that every terminal, page and file can show."""

from __future__ import annotations

import re

# Control characters, line and paragraph separators, characters that reverse the direction of the
# text after them, and surrogates, with which Python marks the bytes of a name that is not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
FIRST_BYTE = 0xDC00  # Python's error handler "surrogateescape" adds this to a byte


def readable(text: str, *, keep: str = "") -> str:
    r"""Return `text` with escapes such as `\x1b` for all unprintable characters not in `keep`.

    A byte of a file name that is not UTF-8 becomes `\xd5`, and the result can always be encoded.
    """

    def escape(match: re.Match[str]) -> str:
        if match[0] in keep:
            return match[0]
        code = ord(match[0])
        if FIRST_BYTE + 0x80 <= code <= FIRST_BYTE + 0xFF:
            code -= FIRST_BYTE
        return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"

    return _UNPRINTABLE.sub(escape, text)
