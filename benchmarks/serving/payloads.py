"""The requests of the load generators: a binary tensor, and a form with a JPEG file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from resdeploy.bundle.bundle import Bundle
from resdeploy.export.golden import synthetic_images

FORM = (
    b'--line\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n'
    b"Content-Type: image/jpeg\r\n\r\n%b\r\n--line--\r\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that a load generator repeats."""

    path: str
    file: Path
    content_type: str
    images: int = 1
    headers: tuple[str, ...] = ()


def tensor_request(bundle: Bundle, work: Path, batch: int) -> Request:
    """Return a request with `batch` images as one binary tensor."""
    images = synthetic_images(bundle.manifest.preprocessing.image_size, batch, seed=2)
    entry = {
        "name": "images",
        "datatype": "UINT8",
        "shape": list(images.shape),
        "parameters": {"binary_data_size": images.nbytes},
    }
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    (work / "tensors").write_bytes(head + images.tobytes())
    return Request(
        path=f"/v2/models/{bundle.path.name.removesuffix('.bundle')}/infer",
        file=work / "tensors",
        content_type="application/octet-stream",
        images=batch,
        headers=(f"Inference-Header-Content-Length: {len(head)}",),
    )


def picture_request(work: Path, size: tuple[int, int]) -> Request:
    """Return an upload of a picture of `size` (width, height), as a browser or curl sends it."""
    stream = BytesIO()
    photograph = Image.fromarray(synthetic_images(512, 1, seed=3)[0])
    photograph.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    (work / "form").write_bytes(FORM % stream.getvalue())
    return Request(
        path="/v1/classify",
        file=work / "form",
        content_type="multipart/form-data; boundary=line",
    )


def other_request(request: Request) -> Request:
    """Return the same upload with the path of the other servers."""
    return Request(path="/classify", file=request.file, content_type=request.content_type)
