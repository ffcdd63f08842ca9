"""The image files of an upload: the body itself, or the file parts of a form."""

from __future__ import annotations

from dataclasses import dataclass

from python_multipart.multipart import parse_options_header

from resdeploy.readable_text import readable
from resdeploy.runtime.serving.http.body import Body
from resdeploy.runtime.serving.request_errors import RequestError, TooLarge, UnsupportedMediaType

FORM = "multipart/form-data"
# Types under which clients send the content of a file; the last is curl's default.
URL_ENCODED = "application/x-www-form-urlencoded"
RAW = ("", "application/octet-stream", URL_ENCODED)
# `curl --data @FILE` removes these bytes, of which every image file contains some: in the signature
# of PNG, in the lengths of the parts of the other formats.
STRIPPED = (
    "the body has no line ends and no zero bytes, as after curl --data: send the image file with "
    "curl --data-binary @FILE, or with curl -F image=@FILE"
)
# Such a field would otherwise have no effect, and another model would answer.
NO_FILE = (
    "the form field '{}' is not a file: send image files in the form, as with curl -F image=@FILE, "
    "and the parameters model and top in the query, as in ?model=NAME&top=5"
)
MAX_NAME_LENGTH, MAX_SHOWN = 255, 40
MAX_BOUNDARY = 70  # RFC 2046
MAX_PART_HEADERS = 8
MAX_PART_HEADER_BYTES = 4096
MAX_PARAMETERS = 32  # of a header; one takes about a microsecond
PIECE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Upload:
    """The name and content of an uploaded file."""

    name: str | None
    data: bytes | memoryview


def read_uploads(content_type: str, body: Body, max_files: int) -> list[Upload]:
    """Return the files in a body, which is an image file or a form with image files.

    The contents are views of the body: a copy of 64 MiB would take 100 ms.

    Raises:
        RequestError: The form is damaged or has a field that is no file, or there is no file.
        TooLarge: There are more than `max_files` files.
        UnsupportedMediaType: The body is neither an image nor a form.
    """
    kind, options = _parameters(content_type.encode("latin-1", "replace"))
    media_type = kind.decode("latin-1")
    if media_type in RAW or media_type.startswith("image/"):
        if body and media_type == URL_ENCODED and not any(byte in body for byte in b"\r\n\0"):
            raise RequestError(STRIPPED)
        uploads = [Upload(None, memoryview(body))] if body else []
    elif media_type == FORM:
        uploads = _read_form(options.get(b"boundary", b""), body, max_files)
    else:
        raise UnsupportedMediaType("send an image file, or a form with image files")
    if not uploads:
        raise RequestError("there is no image in the request")
    return uploads


def _read_form(boundary: bytes, body: Body, max_files: int) -> list[Upload]:
    """Return the file parts of a form, in time proportional to its size.

    Source: RFC 2046, section 5.1.1; RFC 7578.
    """
    if not boundary:
        raise RequestError("the form has no boundary")
    if len(boundary) > MAX_BOUNDARY or b"\r" in boundary or b"\n" in boundary:
        raise RequestError("the form is damaged: its boundary is not valid")
    delimiter = b"\r\n--" + boundary
    uploads: list[Upload] = []
    view = memoryview(body)
    begin = 2 if body.startswith(b"\r\n") else 0
    if len(body) > begin and not body.startswith(delimiter[2:], begin):
        raise RequestError("the form is damaged: it does not begin with its boundary")
    position = begin + len(delimiter) - 2  # behind a delimiter
    while not body.startswith(b"--", position):
        head_end = body.find(b"\r\n\r\n", position, position + MAX_PART_HEADER_BYTES)
        end = _find(body, delimiter, head_end + 4)
        if end < 0:
            raise RequestError("the form is incomplete")
        if head_end < 0 or not body.startswith(b"\r\n", position):
            raise RequestError("the form is damaged: the headers of a part are not valid")
        options = _disposition(bytes(view[position + 2 : head_end]))
        if b"filename" not in options:
            name = readable(options[b"name"].decode("utf-8", errors="replace"))[:MAX_SHOWN]
            raise RequestError(NO_FILE.format(name))
        if len(uploads) == max_files:
            raise TooLarge(f"more than {max_files} files in one request")
        name = options[b"filename"].decode("utf-8", errors="replace")[:MAX_NAME_LENGTH]
        uploads.append(Upload(name or None, view[head_end + 4 : end]))
        position = end + len(delimiter)
    return uploads


def _find(body: Body, delimiter: bytes, begin: int) -> int:
    """Search in pieces, between which other threads run: bodies may resemble the delimiter."""
    for piece in range(begin, len(body), PIECE_BYTES):
        found = body.find(delimiter, piece, piece + PIECE_BYTES + len(delimiter))
        if found >= 0:
            return found
    return -1


def _disposition(head: bytes) -> dict[bytes, bytes]:
    """Return the parameters of the Content-Disposition of a part."""
    lines = [line.partition(b":") for line in head.split(b"\r\n")]
    if len(lines) > MAX_PART_HEADERS or not all(colon for _, colon, _ in lines):
        raise RequestError("the form is damaged: the headers of a part are not valid")
    headers = {name.strip().lower(): value.strip() for name, _, value in lines}
    encoding = headers.get(b"content-transfer-encoding", b"binary").lower()
    if encoding not in (b"binary", b"8bit", b"7bit"):
        raise UnsupportedMediaType("encoded parts of forms are not supported")
    _, options = _parameters(headers.get(b"content-disposition", b""))
    if b"name" not in options:
        raise RequestError("the form is damaged: a part has no name")
    return options


def _parameters(header: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    if header.count(b";") > MAX_PARAMETERS:
        raise RequestError(f"a header has more than {MAX_PARAMETERS} parameters")
    return parse_options_header(header)
