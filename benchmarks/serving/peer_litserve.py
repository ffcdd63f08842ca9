"""A LitServe server for the same model, with dynamic batching and several processes.

python benchmarks/serving/peer_litserve.py GRAPH MANIFEST PORT DECODING WORKERS BATCH
"""

import sys
from typing import Any

import litserve  # pyright: ignore[reportMissingImports]
import numpy as np
from fastapi import Request  # pyright: ignore[reportMissingImports]

from benchmarks.serving.peer_common import make_decoder, open_session, top_classes
from resdeploy.images.preprocessing import UInt8Array

BATCH_TIMEOUT_SECONDS = 0.002


class ClassifierApi(litserve.LitAPI):  # type: ignore[misc]
    """The model as LitServe's API; each worker process has a copy."""

    graph, manifest, decoding, workers = "", "", "", 1

    def setup(self, device: str) -> None:
        self.decode = make_decoder(self.manifest, self.decoding)
        self.session = open_session(self.graph, self.workers)

    def decode_request(self, request: Request) -> UInt8Array:
        form: Any = request  # LitServe passes the form that it has read
        return self.decode(form["image"].file.read())

    def batch(self, inputs: list[UInt8Array]) -> UInt8Array:
        return np.stack(inputs)

    def predict(self, images: UInt8Array) -> Any:
        return self.session.run(None, {"images": images})[0]

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        return top_classes(output)


def main(graph: str, manifest: str, port: str, decoding: str, workers: str, batch: str) -> None:
    """Serve until the process is terminated."""
    api = ClassifierApi(
        max_batch_size=int(batch), batch_timeout=BATCH_TIMEOUT_SECONDS, api_path="/classify"
    )
    api.graph, api.manifest, api.decoding, api.workers = graph, manifest, decoding, int(workers)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=api.workers)
    server.run(host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
