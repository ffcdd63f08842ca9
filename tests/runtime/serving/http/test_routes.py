"""The HTTP interface of a running server, as a client sees it."""

from __future__ import annotations

import http.client
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resdeploy.bundle.bundle import Bundle
from resdeploy.runtime import load
from tests.samples import CLASSES, SIZE, encoded
from tests.serving_process import PATIENCE, ServerProcess, form, picture, tensor_request

PNG = encoded(Image.new("RGB", (99, 99)), "PNG")


INFER = "/v2/models/tiny/infer"


# The protocol


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/healthz"])
def test_health(server: ServerProcess, path: str) -> None:
    assert server.ask(path).status == 200


def test_metadata(server: ServerProcess) -> None:
    about = server.ask("/v2").json
    assert about["name"] == "resdeploy"
    assert {"binary_tensor_data", "classification"} <= set(about["extensions"])
    for path in ("/v2/models/tiny", "/v2/models/tiny/versions/1"):
        model = server.ask(path).json
        assert model["name"] == "tiny"
        assert model["versions"] == ["1"]
        assert model["inputs"] == [
            {"name": "images", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}
        ]
        assert model["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
    assert server.ask("/v2/models/tiny/ready").json == {"name": "tiny", "ready": True}


@pytest.mark.parametrize(
    "path",
    ["/v2/models/cat", "/v2/models/cat/ready", "/v2/models/tiny/versions/2", "/v3", "/v2/model"],
)
def test_an_unknown_path_is_404(server: ServerProcess, path: str) -> None:
    reply = server.ask(path)
    assert reply.status == 404
    assert set(reply.json) == {"error"}


def test_a_wrong_method_is_405(server: ServerProcess) -> None:
    reply = server.ask(INFER)
    assert reply.status == 405
    assert reply.headers["allow"] == "POST"
    assert reply.json == {"error": "method not allowed; this path allows POST"}


@pytest.mark.parametrize("count", [1, 5, 40])
def test_tensors_give_the_logits_of_the_runtime(
    server: ServerProcess, tiny_bundle: Bundle, count: int
) -> None:
    images = np.resize(tiny_bundle.golden().images, (count, SIZE, SIZE, 3))
    with load(tiny_bundle.path, threads=1) as model:
        expected = np.concatenate([model.run(image[np.newaxis]) for image in images])
    body, headers = tensor_request(images, binary_data_output=True)
    reply = server.ask(INFER, body, headers)
    assert reply.status == 200
    length = int(reply.headers["inference-header-content-length"])
    document = json.loads(reply.body[:length])
    assert document["parameters"] == {"backend": "onnxruntime-cpu", "artifact": "int8-cpu"}
    logits = np.frombuffer(reply.body[length:], "<f4").reshape(count, 3)
    # Batches may be summed in another order than single images: see tests/contract.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=5e-2 * np.abs(expected).max())


def test_json_and_binary_agree(server: ServerProcess, tiny_bundle: Bundle) -> None:
    images = tiny_bundle.golden().images[:1]
    document = {
        "id": "seven",
        "inputs": [
            {
                "name": "images",
                "datatype": "UINT8",
                "shape": list(images.shape),
                "data": images.tolist(),
            }
        ],
    }
    as_json = server.ask(INFER, json.dumps(document).encode()).json
    assert (as_json["model_name"], as_json["model_version"]) == ("tiny", "1")
    assert as_json["id"] == "seven"
    body, headers = tensor_request(images)
    as_binary = server.ask(INFER, body, headers).json
    assert as_json["outputs"] == as_binary["outputs"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"", {}, 400, "not a JSON document"),
        (b"{}", {"Inference-Header-Content-Length": "x"}, 400, "must be an integer from 0 to"),
        (b"{}", {"Inference-Header-Content-Length": "99"}, 400, "the JSON part has 99 bytes"),
        (b"{}", {"Content-Encoding": "gzip"}, 415, "compressed"),
        (b"{}", {"X-Timeout-Ms": "soon"}, 400, "X-Timeout-Ms must be an integer"),
    ],
)
def test_an_invalid_request_is_rejected_with_a_reason(
    server: ServerProcess, body: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    reply = server.ask(INFER, body, headers)
    assert reply.status == status
    assert message in reply.json["error"]


def test_more_images_than_the_queue_holds_are_413(server: ServerProcess) -> None:
    body, headers = tensor_request(np.zeros((300, SIZE, SIZE, 3), np.uint8))
    reply = server.ask(INFER, body, headers)
    assert reply.status == 413
    assert reply.json["error"] == "300 images in one request; 256 are allowed"


def test_a_persistent_connection_is_answered_without_delay(server: ServerProcess) -> None:
    # Nagle's algorithm would delay the second packet by 40 ms, until the first is acknowledged.
    connection = http.client.HTTPConnection("127.0.0.1", server.port)

    def seconds() -> float:
        start = time.perf_counter()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        return time.perf_counter() - start

    # A busy machine does not delay 500 requests in a row.
    assert any(seconds() < 0.03 for _ in range(500))
    connection.close()


# Pictures


def test_a_picture_is_classified_as_by_the_runtime(
    server: ServerProcess, tiny_bundle: Bundle, image_data: Path
) -> None:
    data = picture(image_data)
    with load(tiny_bundle.path, threads=1) as model:
        expected = [prediction.label for prediction in model.predict(data)]
    raw = server.ask("/v1/classify", data, {"Content-Type": "image/png"})
    body, headers = form(("cat.png", data))
    as_form = server.ask("/v1/classify?top=2", body, headers)
    assert raw.status == as_form.status == 200
    (result,) = raw.json["results"]
    assert result["image"] is None
    assert [entry["label"] for entry in result["predictions"]] == expected
    assert sum(entry["probability"] for entry in result["predictions"]) == pytest.approx(1)
    (named,) = as_form.json["results"]
    assert named["image"] == "cat.png"
    assert len(named["predictions"]) == 2
    answer = as_form.json
    assert (answer["model"], answer["backend"]) == ("tiny", "onnxruntime-cpu")
    assert (answer["artifact"], answer["precision"]) == ("int8-cpu", "int8")
    assert set(answer["milliseconds"]) == {"decode", "queue", "inference"}
    assert all(0 <= value < 10_000 for value in answer["milliseconds"].values())


def test_several_pictures_are_answered_in_order(server: ServerProcess, image_data: Path) -> None:
    files = [
        (name, (image_data / "val" / name / "001.png").read_bytes())
        for name in (*CLASSES, *reversed(CLASSES))
    ]
    body, headers = form(*files)
    results = server.ask("/v1/classify?model=tiny", body, headers).json["results"]
    assert [result["image"] for result in results] == [name for name, _ in files]
    mirrored = [result["predictions"][0]["index"] for result in results]
    assert mirrored[:3] == mirrored[:2:-1]


@pytest.mark.parametrize(
    ("format", "mode", "options"),
    [
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("WEBP", "RGB", {}),
        ("BMP", "RGB", {}),
    ],
)
def test_usual_formats_are_decoded(
    server: ServerProcess, format: str, mode: str, options: dict[str, Any]
) -> None:
    colour = (9, 9, 9, 255) if mode == "RGBA" else 0  # the default is transparent
    data = encoded(Image.new(mode, (40, 30), colour), format, **options)
    assert server.ask("/v1/classify", data).status == 200


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"no picture", {}, 400, "the image cannot be decoded"),
        (b"", {}, 400, "no image in the request"),
        (b"x", {"Content-Type": "text/plain"}, 415, "send an image file"),
        (b"x", {"Content-Encoding": "br"}, 415, "compressed"),
        (encoded(Image.new("RGB", (9, 9)), "GIF"), {}, 400, "cannot be decoded"),
        (encoded(Image.new("RGB", (9, 9)), "TIFF"), {}, 400, "cannot be decoded"),
        (PNG[:-40], {}, 400, "; use a complete JPEG, PNG, WebP or BMP file"),
        (encoded(Image.new("1", (10_000, 6_000)), "PNG"), {}, 400, "60,000,000 pixels"),
    ],
)
def test_an_invalid_picture_is_rejected_with_a_reason(
    server: ServerProcess, body: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    reply = server.ask("/v1/classify", body, headers)
    assert reply.status == status
    assert message in reply.json["error"]
    assert "/" not in reply.json["error"]  # no path


def test_the_other_files_of_an_invalid_one_are_classified(
    server: ServerProcess, image_data: Path
) -> None:
    data = picture(image_data)
    body, headers = form(("a.png", b"x"), ("b.png", data), ("c.png", PNG[:-40]), ("d.png", data))
    reply = server.ask("/v1/classify", body, headers | {"X-Request-ID": "in-part"})
    assert reply.status == 200
    first, second, third, fourth = reply.json["results"]
    assert [first["image"], third["image"]] == ["a.png", "c.png"]
    for failed in (first, third):
        assert failed["predictions"] == []
        assert "; use a complete JPEG, PNG, WebP or BMP file" in failed["error"]
    assert second["error"] is None
    assert second["predictions"] == fourth["predictions"] != []
    line = server.wait_for(lambda line: line.get("request_id") == "in-part")
    assert (line["status"], line["outcome"], line["images"]) == (200, "partial", 2)
    counted = 'resdeploy_requests_total{endpoint="classify",model="tiny",outcome="partial"}'
    assert counted in server.ask("/metrics").body.decode()


def test_files_that_are_all_invalid_are_rejected(server: ServerProcess) -> None:
    body, headers = form(("a.png", b"x"), ("b.png", b"x"))
    reply = server.ask("/v1/classify", body, headers)
    assert reply.status == 400
    assert reply.json["error"].startswith("file 1: the image cannot be decoded")


@pytest.mark.parametrize("query", ["Model=tiny", "topk=3", "a%1b=", "model=tiny&top=1&x="])
def test_an_unknown_parameter_is_refused(server: ServerProcess, query: str) -> None:
    reply = server.ask(f"/v1/classify?{query}", b"x")
    assert reply.status == 400
    assert reply.json["error"].endswith("'; it has model and top")


@pytest.mark.parametrize("top", ["0", "-1", "many", "1001", "9" * 500, "²"])
def test_top_must_be_a_number(server: ServerProcess, top: str) -> None:
    from urllib.parse import quote

    reply = server.ask(f"/v1/classify?top={quote(top)}", b"x")
    assert reply.status == 400
    assert "top must be" in reply.json["error"]


def test_a_body_over_the_limit_is_rejected_before_it_is_read(server: ServerProcess) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


# Headers, metrics, page


@pytest.mark.parametrize("path", ["/healthz", "/v2/models/tiny", "/openapi.json", "/v1/none"])
def test_a_document_ends_with_a_newline(server: ServerProcess, path: str) -> None:
    assert server.ask(path).body.endswith(b"}\n")
    assert server.ask(path, headers={"Content-Length": "x"}).body.endswith(b"}\n")


def test_no_newline_changes_binary_answers(server: ServerProcess) -> None:
    body, headers = tensor_request(np.zeros((1, SIZE, SIZE, 3), np.uint8), binary_data_output=True)
    reply = server.ask(INFER, body, headers)
    length = int(reply.headers["inference-header-content-length"])
    assert reply.body[length - 1 : length] == b"}"
    assert len(reply.body) == length + 4 * len(CLASSES)


def test_a_safe_request_id_is_returned(server: ServerProcess) -> None:
    assert server.ask("/v2", headers={"X-Request-ID": "job-7"}).headers["x-request-id"] == "job-7"
    for bad in ("a b", "x" * 200, "<script>"):
        own = server.ask("/v2", headers={"X-Request-ID": bad}).headers["x-request-id"]
        assert len(own) == 16
    server.ask("/v2/models/none/infer", b"{}", {"X-Request-ID": "to-be-found"})
    line = server.wait_for(lambda line: line.get("request_id") == "to-be-found")
    assert (line["status"], line["outcome"]) == (404, "invalid")


@pytest.mark.parametrize("path", ["/", "/v2", "/nothing", "/v1/classify"])
def test_headers_do_not_name_the_server(server: ServerProcess, path: str) -> None:
    headers = server.ask(path).headers
    assert "server" not in headers
    assert headers["x-content-type-options"] == "nosniff"


def test_the_page_loads_nothing_from_other_servers(server: ServerProcess) -> None:
    reply = server.ask("/")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    for outside in (b"http://", b"https://", b"//cdn", b"@import", b"<link"):
        assert outside not in reply.body.replace(b"http://www.w3.org/2000/svg", b"")


def test_metrics_count_requests_and_images(server: ServerProcess, image_data: Path) -> None:
    server.ask("/v1/classify", picture(image_data))
    server.ask("/v1/classify", b"no picture")
    text = server.ask("/metrics").body.decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    request = 'resdeploy_requests_total{endpoint="classify",model="tiny",outcome="%s"}'
    assert float(lines[request % "ok"]) >= 1
    assert float(lines[request % "invalid"]) >= 1
    for stage in ("decode", "queue", "inference"):
        count = f'resdeploy_stage_seconds_count{{model="tiny",stage="{stage}"}}'
        assert float(lines[count]) >= 1
    assert float(lines['resdeploy_batch_images_count{model="tiny"}']) >= 1
    assert lines['resdeploy_queue_images{model="tiny"}'] == "0.0"
    assert lines['resdeploy_ready{model="tiny"}'] == "1.0"
    used = 'resdeploy_backend{artifact="int8-cpu",backend="onnxruntime-cpu",model="tiny"}'
    assert lines[used] == "1.0"


def test_stats_describe_the_last_seconds(server: ServerProcess, image_data: Path) -> None:
    server.ask("/v1/classify", picture(image_data))
    stats = server.ask("/v1/stats").json
    assert stats["images_per_second"] > 0
    assert 0 < stats["p50_ms"] <= stats["p99_ms"]
    assert stats["models"] == [
        {
            "name": "tiny",
            "ready": True,
            "queue": 0,
            "backend": "onnxruntime-cpu",
            "artifact": "int8-cpu",
            "warnings": [],
        }
    ]


def test_a_photograph_with_invalid_metadata_logs_no_warning(server: ServerProcess) -> None:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(stream, "JPEG", exif=exif)
    data = stream.getvalue().replace(b"Exif\x00\x00MM", b"Exif\x00\x00XX")
    assert server.ask("/v1/classify", data).status in (200, 400)
    assert not [line for line in server.log if "Warning" in line.get("message", "")]
