"""Uploads of pictures as the body or as a form of browsers and curl."""

from __future__ import annotations

import contextlib
import io
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resdeploy.runtime.serving.http.uploads import Upload, read_uploads
from resdeploy.runtime.serving.request_errors import RequestError, TooLarge, UnsupportedMediaType

FORM = "multipart/form-data; boundary=line"


def form(*parts: tuple[str, bytes], end: bytes = b"--line--\r\n") -> bytes:
    return (
        b"".join(
            b"--line\r\n" + header.encode() + b"\r\n\r\n" + data + b"\r\n" for header, data in parts
        )
        + end
    )


def file(name: str) -> str:
    return f'Content-Disposition: form-data; name="image"; filename="{name}"'


@pytest.mark.parametrize(
    "kind",
    [
        "", "image/jpeg", "image/png; q=1", "application/octet-stream",
        "application/x-www-form-urlencoded",
    ],
)  # fmt: skip
def test_the_body_may_be_a_picture(kind: str) -> None:
    assert read_uploads(kind, b"pixels\0", 1) == [Upload(None, b"pixels\0")]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp"])
def test_names_the_option_of_curl_that_removes_line_ends(suffix: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, {"jpg": "jpeg"}.get(suffix, suffix))
    intact, kind = stream.getvalue(), "application/x-www-form-urlencoded"
    assert read_uploads(kind, intact, 1) == [Upload(None, intact)]  # curl --data-binary
    with pytest.raises(RequestError, match="--data-binary"):
        read_uploads(kind, intact.translate(None, b"\r\n\0"), 1)


def test_a_form_gives_its_files_in_order() -> None:
    body = form(
        (file("a.png") + "\r\nContent-Type: image/png", b"one\r\n--lin"),
        (file("ü.jpg"), b""),
    )
    assert read_uploads(FORM, body, 2) == [Upload("a.png", b"one\r\n--lin"), Upload("ü.jpg", b"")]


@pytest.mark.parametrize(
    ("kind", "body", "error", "message"),
    [
        ("image/png", b"", RequestError, "no image"),
        ("text/plain", b"x", UnsupportedMediaType, "image file"),
        ("application/json", b"{}", UnsupportedMediaType, "image file"),
        ("multipart/form-data", form((file("a"), b"x")), RequestError, "no boundary"),
        (f"multipart/form-data; boundary={'x' * 300}", b"", RequestError, "damaged"),
        (FORM, form(), RequestError, "no image"),
        (FORM, b"", RequestError, "incomplete"),
        (FORM, b"garbage", RequestError, "damaged"),
        (FORM, form((file("a"), b"x"), end=b""), RequestError, "incomplete"),
        (FORM, form((file("a"), b"x"), (file("b"), b"x")), TooLarge, "more than 1 files"),
        (FORM, form(("Content-Disposition: form-data", b"x")), RequestError, "damaged"),
        (FORM, form(("X-A: b\r\n" * 8 + file("a"), b"x")), RequestError, "damaged"),
        (FORM, form((file("a") + ";a=b" * 40, b"x")), RequestError, "parameters"),
        ("image/png" + ";" * 40, b"x", RequestError, "parameters"),
        (
            FORM, form((file("a"), b"x"), ('Content-Disposition: form-data; name="model"', b"b")),
            RequestError, "'model' is not a file: .* in the query, as in",
        ),
        (FORM, form(("X: " + "y" * 9000, b"x")), RequestError, "incomplete|damaged"),
        (FORM, b"--line\r\n" * 9, RequestError, "incomplete|damaged"),
        (FORM, form((file("a"), b"x"), end=b"--lines"), RequestError, "incomplete|damaged"),
        (FORM, form((file("a") + "\r\nX", b"x")), RequestError, "damaged"),
        (FORM, b"before\r\n" + form((file("a"), b"x")), RequestError, "damaged"),
        ('multipart/form-data; boundary=""', form((file("a"), b"x")), RequestError, "no boundary"),
        (
            FORM, form((file("a") + "\r\nContent-Transfer-Encoding: base64", b"eA==")),
            UnsupportedMediaType, "encoded parts",
        ),
    ],
)  # fmt: skip
def test_invalid_uploads_are_rejected(
    kind: str, body: bytes, error: type[RequestError], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_uploads(kind, body, 1)


@given(st.lists(st.binary(max_size=80), min_size=1, max_size=5))
def test_file_contents_are_unchanged(contents: list[bytes]) -> None:
    contents = [content.replace(b"--line", b"") for content in contents]
    parts = [(file(f"{number}.png"), content) for number, content in enumerate(contents)]
    uploads = read_uploads(FORM, form(*parts), 5)
    assert [upload.data for upload in uploads] == contents


@given(st.binary(max_size=300), st.sampled_from([FORM, "multipart/form-data; boundary=a", ""]))
def test_random_bytes_are_files_or_rejected(body: bytes, kind: str) -> None:
    with contextlib.suppress(RequestError):
        assert read_uploads(kind, body, 3)


@given(st.integers(0, 200), st.binary(max_size=20))
def test_a_truncated_or_changed_form_is_files_or_rejected(where: int, other: bytes) -> None:
    whole = form((file("a.png"), b"x" * 50), (file("b.png"), b"y" * 50))
    for body in (whole[:where], whole[:where] + other + whole[where + len(other) :]):
        with contextlib.suppress(RequestError):
            read_uploads(FORM, body, 3)


def test_a_large_uploaded_file_stays_in_memory_and_unchanged() -> None:
    data = bytes(range(256)) * (3 << 12)  # 3 MiB
    assert read_uploads(FORM, form((file("a"), data)), 1) == [Upload("a", data)]


@pytest.mark.parametrize("almost", [b"\r\n-", b"\r\n--lin", b"\r", b"--line"])
def test_a_form_full_of_partial_boundaries_is_parsed_quickly(almost: bytes) -> None:
    body = b"--line\r\n" + file("a").encode() + b"\r\n\r\n" + almost * ((10 << 20) // len(almost))
    start = time.process_time()  # excludes the time of other processes
    with pytest.raises(RequestError):
        read_uploads(FORM, body, 3)
    assert time.process_time() - start < 10  # quadratic time would be hours
    (upload,) = read_uploads(FORM, body + b"\r\n--line--", 3)
    assert body.endswith(b"\r\n\r\n" + upload.data)
