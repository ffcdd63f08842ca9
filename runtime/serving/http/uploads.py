"""Files of an upload: the body itself, or the parts of a form. Pure, and limited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from resdeploy.runtime.serving.request_errors import RequestError, TooLarge, UnsupportedMediaType

FORM = b"multipart/form-data"
# Programs that name no kind, or one of these, send a file's content; the last is curl's habit.
RAW = (b"", b"application/octet-stream", b"application/x-www-form-urlencoded")
LONGEST_NAME = 255
# Fields of a form that are no files are read by nobody.
MOST_FIELDS = 32


@dataclass(frozen=True, slots=True)
class Upload:
    """One file, and what its sender calls it."""

    name: str | None
    data: bytes


def read_uploads(content_type: str, body: bytes, most: int) -> list[Upload]:
    """The files in a body.

    Args:
        content_type: The header's value.
        body: An image file, or a form with some.
        most: How many files there may be.

    Raises:
        RequestError: it is no proper form, or holds no file.
        TooLarge: there are more than `most` files.
        UnsupportedMediaType: it is neither an image nor a form.
    """
    kind, options = parse_options_header(content_type)
    if kind in RAW or kind.startswith(b"image/"):
        uploads = [Upload(None, body)] if body else []
    elif kind == FORM:
        uploads = _read_form(options.get(b"boundary", b""), body, most)
    else:
        raise UnsupportedMediaType("send an image file, or a form with image files")
    if not uploads:
        raise RequestError("there is no image in the request")
    return uploads


class _Form:
    """What the parser tells of a form."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._fields = 0
        self._header = b""
        self._value = b""
        self._disposition = b""
        self._data: list[bytes] = []
        self.uploads: list[Upload] = []
        self.ended = False

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._part_data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._disposition = b""
        self._data = []

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _end(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"filename")
        if name is None:
            self._fields += 1
        else:
            text = name.decode("utf-8", errors="replace")[:LONGEST_NAME]
            self.uploads.append(Upload(text or None, b"".join(self._data)))
        if len(self.uploads) > self._most or self._fields > MOST_FIELDS:
            raise TooLarge(f"more than {self._most} files in one request")

    def _finish(self) -> None:
        self.ended = True


def _read_form(boundary: bytes, body: bytes, most: int) -> list[Upload]:
    if not boundary:
        raise RequestError("the form names no boundary")
    form = _Form(most)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError("the form is damaged") from error
    if not form.ended:
        raise RequestError("the form is cut off")
    return form.uploads
