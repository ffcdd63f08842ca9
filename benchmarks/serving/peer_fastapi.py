"""A minimal FastAPI server for the same model, without batching.

python benchmarks/serving/peer_fastapi.py GRAPH MANIFEST PORT DECODING
"""

import sys

import numpy as np
import uvicorn
from fastapi import FastAPI, UploadFile  # pyright: ignore[reportMissingImports]

from benchmarks.serving.peer_common import make_decoder, open_session, top_classes

GRAPH, MANIFEST, PORT, DECODING = sys.argv[1:]
session = open_session(GRAPH)
decode = make_decoder(MANIFEST, DECODING)
app = FastAPI()


@app.post("/classify")  # type: ignore[untyped-decorator]
def classify_upload(image: UploadFile) -> dict[str, list[float]]:
    """Classify one picture in one of FastAPI's threads."""
    pixels = decode(image.file.read())
    return top_classes(session.run(None, {"images": pixels[np.newaxis]})[0][0])


uvicorn.run(app, port=int(PORT), log_level="warning")
