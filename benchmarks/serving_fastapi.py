"""The same model behind FastAPI without batching, as one writes it in ten minutes.

python benchmarks/serving_fastapi.py GRAPH MANIFEST PORT
"""

import sys

import numpy as np
import uvicorn
from fastapi import FastAPI, UploadFile  # pyright: ignore[reportMissingImports]

from benchmarks.serving_peer import open_session, read_preprocessing, top_classes
from resdeploy.preprocessing import load_image

GRAPH, MANIFEST, PORT = sys.argv[1:]
session = open_session(GRAPH)
preprocessing = read_preprocessing(MANIFEST)
app = FastAPI()


@app.post("/classify")  # type: ignore[untyped-decorator]
def classify(image: UploadFile) -> dict[str, list[float]]:
    """One request, one inference, in one of FastAPI's threads."""
    pixels = load_image(image.file.read(), preprocessing)
    return top_classes(session.run(None, {"images": pixels[np.newaxis]})[0][0])


uvicorn.run(app, port=int(PORT), log_level="warning")
