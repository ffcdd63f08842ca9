"""The image files of an upload: the body itself, or the file parts of a form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

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
MAX_NAME_LENGTH = 255
# Form fields that are not files are ignored.
MAX_FIELDS = 32


@dataclass(frozen=True, slots=True)
class Upload:
    """The name and content of an uploaded file."""

    name: str | None
    data: bytes


def read_uploads(content_type: str, body: bytes, max_files: int) -> list[Upload]:
    """Return the files in a body, which is an image file or a form with image files.

    Raises:
        RequestError: The form is damaged, or there is no file.
        TooLarge: There are more than `max_files` files or `MAX_FIELDS` other fields.
        UnsupportedMediaType: The body is neither an image nor a form.
    """
    kind, options = parse_options_header(content_type)
    media_type = kind.decode("latin-1")
    if media_type in RAW or media_type.startswith("image/"):
        if body and media_type == URL_ENCODED and not any(byte in body for byte in b"\r\n\0"):
            raise RequestError(STRIPPED)
        uploads = [Upload(None, body)] if body else []
    elif media_type == FORM:
        uploads = _read_form(options.get(b"boundary", b""), body, max_files)
    else:
        raise UnsupportedMediaType("send an image file, or a form with image files")
    if not uploads:
        raise RequestError("there is no image in the request")
    return uploads


def _read_form(boundary: bytes, body: bytes, max_files: int) -> list[Upload]:
    if not boundary:
        raise RequestError("the form has no boundary")
    uploads: list[Upload] = []
    fields: list[Field] = []
    ends: list[bool] = []

    def add_field(field: Field) -> None:
        if len(fields) == MAX_FIELDS:
            raise TooLarge(f"more than {MAX_FIELDS} form fields in one request")
        fields.append(field)

    def add_file(file: File) -> None:
        if len(uploads) == max_files:
            raise TooLarge(f"more than {max_files} files in one request")
        name = (file.file_name or b"").decode("utf-8", errors="replace")[:MAX_NAME_LENGTH]
        assert isinstance(file.file_object, BytesIO)  # because of MAX_MEMORY_FILE_SIZE
        uploads.append(Upload(name or None, file.file_object.getvalue()))

    try:
        parser = FormParser(
            FORM, add_field, add_file, on_end=lambda: ends.append(True), boundary=boundary,
            config={"MAX_MEMORY_FILE_SIZE": math.inf},
        )  # fmt: skip
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError(f"the form is damaged: {str(error)[:200]}") from error
    if not ends:
        raise RequestError("the form is incomplete")
    return uploads
