"""What the server does, whichever protocol asks: infer, classify, tell of its models."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resdeploy import __version__
from resdeploy.bundle.manifest import INPUT_NAME, OUTPUT_NAME
from resdeploy.predictions import Prediction, top_predictions
from resdeploy.runtime.serving.batching.instance import Answer
from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.decoding import Decoder
from resdeploy.runtime.serving.metrics import Metrics, ModelState
from resdeploy.runtime.serving.open_inference import INPUT_TYPE, OUTPUT_TYPE, InferenceRequest
from resdeploy.runtime.serving.request_errors import NotFound, Unavailable
from resdeploy.runtime.serving.served_model import LoadedBundle, ServedModel

EXTENSIONS = ("binary_tensor_data", "classification", "parameters")
VERSION = "1"
"""Of every model: a changed bundle takes the old one's place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceResult:
    """Logits, and the bundle that they came from."""

    answer: Answer
    generation: LoadedBundle

    def head(self, model: str, request_id: str) -> dict[str, Any]:
        """What a response of the protocol says beside its outputs."""
        return {
            "model_name": model,
            "model_version": VERSION,
            **({"id": request_id} if request_id else {}),
            "parameters": {"backend": self.answer.backend, "artifact": self.answer.artifact},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationResult:
    """What pictures show, and how long that took."""

    inferred: InferenceResult
    predictions: tuple[tuple[Prediction, ...], ...]
    """For each picture, the most likely first."""
    decode_seconds: float


class Service:
    """Models behind names, and the pool that decodes for all of them."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        decoder: Decoder,
        metrics: Metrics,
        config: ServeConfig,
    ) -> None:
        """Join the parts; the models may still be loading."""
        self.models = models
        self.decoder = decoder
        self.metrics = metrics
        self.config = config
        self.draining = False
        metrics.watch(self.states)

    @property
    def ready(self) -> bool:
        """Whether every model can answer, and the server is not about to stop."""
        return not self.draining and all(model.ready for model in self.models.values())

    def states(self) -> dict[str, ModelState]:
        """What the models are like at the moment."""
        return {
            name: ModelState(
                ready=model.ready,
                depth=model.depth,
                backend=model.serving.backend if model.serving else "",
                artifact=model.serving.artifact if model.serving else "",
            )
            for name, model in self.models.items()
        }

    def model(self, name: str = "", version: str = "") -> ServedModel:
        """The model called `name`; the first one where that is empty.

        Raises:
            NotFound: there is none.
        """
        model = self.models.get(name) if name else next(iter(self.models.values()))
        if model is None:
            raise NotFound("there is no such model")
        if version not in ("", VERSION):
            raise NotFound("there is no such version of the model")
        return model

    def check(self, model: ServedModel, *, decode: bool = False) -> None:
        """Whether a request would be admitted now: asked before its body is read.

        Raises:
            Unavailable: not now.
        """
        model.generation().batcher.check(1)
        if decode:
            self.decoder.check()

    async def infer(
        self, generation: LoadedBundle, request: InferenceRequest, deadline: float
    ) -> InferenceResult:
        """Run a request's images.

        Args:
            generation: What the request was checked against; the model's at this moment.
            request: The images.
            deadline: Time of the event loop's clock.

        Raises:
            RequestError: it is too large, too late, or there is too much to do.
        """
        with generation.batcher.admit(len(request.images), deadline) as place:
            return InferenceResult(answer=await place.run(request.images), generation=generation)

    async def classify(
        self, model: ServedModel, files: Sequence[bytes], top: int, deadline: float
    ) -> ClassificationResult:
        """Name what image files show.

        Raises:
            RequestError: a file cannot be decoded, or see `infer`.
        """
        loop = asyncio.get_running_loop()
        generation = model.generation()
        self.decoder.check()
        # Room in the queue first: what is decoded is not thrown away.
        with generation.batcher.admit(len(files), deadline) as place:
            start = loop.time()
            preprocessing = generation.bundle.manifest.preprocessing
            pixels = await self.decoder.decode(files, preprocessing, deadline)
            decode_seconds = loop.time() - start
            self.metrics.decoded(model.name, decode_seconds)
            answer = await place.run(pixels)
        return ClassificationResult(
            inferred=InferenceResult(answer=answer, generation=generation),
            predictions=tuple(
                tuple(top_predictions(row, generation.labels, top)) for row in answer.logits
            ),
            decode_seconds=decode_seconds,
        )

    def server_metadata(self) -> dict[str, Any]:
        """The protocol's document about the server."""
        return {"name": "resdeploy", "version": __version__, "extensions": list(EXTENSIONS)}

    def model_metadata(self, model: ServedModel) -> dict[str, Any]:
        """The protocol's document about a model.

        Raises:
            Unavailable: it is not loaded yet.
        """
        if model.serving is None:
            raise Unavailable("the model is not ready")
        generation = model.generation()
        size, classes = generation.image_size, len(generation.labels)
        return {
            "name": model.name,
            "versions": [VERSION],
            "platform": model.serving.backend,
            "inputs": [{"name": INPUT_NAME, "datatype": INPUT_TYPE, "shape": [-1, size, size, 3]}],
            "outputs": [{"name": OUTPUT_NAME, "datatype": OUTPUT_TYPE, "shape": [-1, classes]}],
        }
