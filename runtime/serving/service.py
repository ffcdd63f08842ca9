"""The operations of the server that HTTP and gRPC share: inference, classification, metadata."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from resdeploy import __version__
from resdeploy.bundle.manifest import INPUT_NAME, OUTPUT_NAME
from resdeploy.images.preprocessing import height_and_width
from resdeploy.runtime.backends import registry
from resdeploy.runtime.serving.batching.interface import Answer, Instance
from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.decoder_pool import Decoder
from resdeploy.runtime.serving.metrics import Metrics
from resdeploy.runtime.serving.open_inference import ParsedRequest
from resdeploy.runtime.serving.readiness import Readiness
from resdeploy.runtime.serving.request_errors import NotFound, Unavailable
from resdeploy.runtime.serving.schemas import (
    INPUT_TYPE,
    OUTPUT_TYPE,
    ModelMetadata,
    ModelStats,
    ModelWarning,
    RepositoryEntry,
    ServerMetadata,
    Stats,
    TensorMetadata,
)
from resdeploy.runtime.serving.served_model import LoadedBundle, ServedModel

VERSION = "1"
"""Version of every model: a changed bundle replaces the previous one under the same version."""
MAX_NAMES = 20  # that the error for an unknown model lists


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceResult:
    """The answer to a request, and the bundle that produced it."""

    answer: Answer
    loaded: LoadedBundle
    decode_seconds: float = 0.0
    """Seconds in which the pictures of the request were decoded."""
    errors: Sequence[str | None] = ()
    """For each picture, the reason why it cannot be decoded; None if the answer has its logits."""

    @property
    def parameters(self) -> dict[str, str]:
        """Backend and graph, as parameters of a response of the protocol."""
        return {"backend": self.answer.backend, "artifact": self.answer.artifact}


class Service:
    """The served models by name, and the decoder that they share."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        decoder: Decoder,
        metrics: Metrics,
        config: ServeConfig,
    ) -> None:
        self.models = models
        self.decoder = decoder
        self.metrics = metrics
        self.config = config
        self.readiness = Readiness(models.values())

    def states(self) -> list[ModelStats]:
        """Return the state of each model; a ready model stays ready while the server stops."""
        return [
            ModelStats(
                name=name,
                ready=model.ready,
                queue=model.depth,
                backend=instance.backend if (instance := model.active_instance) else "",
                artifact=instance.artifact if instance else "",
                warnings=[ModelWarning(doubt.message, doubt.hint) for doubt in model.warnings],
            )
            for name, model in self.models.items()
        ]

    def stats(self) -> Stats:
        """Return the statistics of the last seconds; no model is ready while the server stops."""
        states = self.states()
        if self.readiness.draining:
            states = [replace(state, ready=False) for state in states]
        return self.metrics.recent_stats(states)

    def model(self, name: str = "", version: str = "") -> ServedModel:
        """Return the model called `name`; the first one if the name is empty.

        Raises:
            NotFound: The model or version does not exist.
        """
        model = self.models.get(name) if name else next(iter(self.models.values()))
        if model is None:
            raise NotFound(f"there is no such model; this server has {self._names()}")
        if version not in ("", VERSION):
            raise NotFound(f"there is no such version of the model; it has version {VERSION}")
        return model

    def _names(self) -> str:
        names = list(self.models)
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        return ", ".join(names[:MAX_NAMES]) + more

    def check_capacity(self, model: ServedModel, network: str, *, decode: bool = False) -> None:
        """Raise an error if a request of `network` would be rejected now; called before its body.

        Raises:
            Unavailable: The model is not ready or overloaded.
        """
        model.loaded_bundle().batcher.check_capacity(1, network=network)
        if decode:
            self.decoder.check_capacity()

    async def infer(
        self, loaded: LoadedBundle, request: ParsedRequest, deadline: float, network: str
    ) -> InferenceResult:
        """Return the logits of a request that was parsed for `loaded`.

        Raises:
            RequestError: The request is too large, cannot meet its deadline or is rejected.
        """
        with loaded.batcher.admit(len(request.images), deadline, network) as infer:
            return InferenceResult(answer=await infer(request.images), loaded=loaded)

    async def classify(
        self,
        model: ServedModel,
        files: Sequence[bytes | memoryview],
        deadline: float,
        network: str,
    ) -> InferenceResult:
        """Return the logits of the image files that can be decoded, and the errors of the others.

        Raises:
            RequestError: No file can be decoded, or the request fails as in `infer`.
        """
        loop = asyncio.get_running_loop()
        loaded = model.loaded_bundle()
        self.decoder.check_capacity()
        # Queue space is reserved first, so that no decoding effort is wasted.
        with loaded.batcher.admit(len(files), deadline, network) as infer:
            start = loop.time()
            preprocessing = loaded.bundle.manifest.preprocessing
            pixels, errors = await self.decoder.decode(files, preprocessing, deadline)
            decode_seconds = loop.time() - start
            self.metrics.count_decoding(model.name, decode_seconds)
            answer = await infer(pixels)
        return InferenceResult(
            answer=answer, loaded=loaded, decode_seconds=decode_seconds, errors=errors
        )

    def server_metadata(self) -> ServerMetadata:
        """Return the protocol's description of the server."""
        extensions = [
            "binary_tensor_data", "classification", "model_configuration", "parameters",
            "statistics",
        ]  # fmt: skip
        return ServerMetadata(name="resdeploy", version=__version__, extensions=extensions)

    def model_metadata(self, model: ServedModel) -> ModelMetadata:
        """Return the protocol's description of a model.

        Raises:
            Unavailable: The model is not loaded yet.
        """
        instance, images, logits, _ = _description(model)
        return ModelMetadata(
            name=model.name,
            versions=[VERSION],
            platform=instance.backend,
            inputs=[TensorMetadata(name=INPUT_NAME, datatype=INPUT_TYPE, shape=[-1, *images])],
            outputs=[TensorMetadata(name=OUTPUT_NAME, datatype=OUTPUT_TYPE, shape=[-1, *logits])],
        )

    def model_config(self, model: ServedModel) -> dict[str, Any]:
        """Return Triton's description of how a model is served.

        Raises:
            Unavailable: The model is not loaded yet.
        """
        instance, images, logits, count = _description(model)
        on_cpu = any(e.on_cpu for e in registry.ENGINES if e.name == instance.backend)
        return {
            "name": model.name,
            "platform": instance.backend,
            "backend": instance.backend,
            "max_batch_size": self.config.queue,  # of a request
            "input": [{"name": INPUT_NAME, "data_type": f"TYPE_{INPUT_TYPE}", "dims": images}],
            "output": [{"name": OUTPUT_NAME, "data_type": f"TYPE_{OUTPUT_TYPE}", "dims": logits}],
            "instance_group": [{"kind": "KIND_CPU" if on_cpu else "KIND_GPU", "count": count}],
            "dynamic_batching": {
                "preferred_batch_size": [instance.times.best_batch],
                "max_queue_delay_microseconds": round(1000 * self.config.max_delay_ms),
            },
            "parameters": {"artifact": {"string_value": instance.artifact}},
        }

    def model_statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Return Triton's statistics of one model, or of all models if the name is empty.

        Raises:
            NotFound: The model or version does not exist.
        """
        names = [self.model(name, version).name] if name else self.models
        totals = self.metrics.totals
        return {"model_stats": [totals[name].statistics(name, VERSION) for name in names]}

    def repository_index(self, *, ready: bool = False) -> list[RepositoryEntry]:
        """Return the state of all models, or of those that are `ready`."""
        states = [
            (name, self.readiness.is_model_ready(model)) for name, model in self.models.items()
        ]
        return [
            RepositoryEntry(name, VERSION, "READY" if is_ready else "UNAVAILABLE")
            for name, is_ready in states
            if is_ready or not ready
        ]


def _description(model: ServedModel) -> tuple[Instance, list[int], list[int], int]:
    """Return an instance, the shapes of an image and of its logits, and the number of instances.

    Raises:
        Unavailable: The model is not loaded yet.
    """
    if (instance := model.active_instance) is None:
        raise Unavailable("the model is not ready")
    loaded = model.loaded_bundle()
    images, logits = [*height_and_width(loaded.image_size), 3], [len(loaded.labels)]
    return instance, images, logits, len(loaded.batcher.instances)
