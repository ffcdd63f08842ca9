"""The rule that decides when a server and its models are ready."""

from __future__ import annotations

from collections.abc import Collection

from resdeploy.runtime.serving.served_model import ServedModel


class Readiness:
    """The state that health checks and probes ask for.

    A model is ready while an engine can answer for it and the server is not stopping. The server is
    ready while all its models are.
    """

    def __init__(self, models: Collection[ServedModel]) -> None:
        self._models = models
        self.draining = False
        """True while the server stops: it answers what it has accepted and accepts nothing new."""

    def is_server_ready(self) -> bool:
        """Return True if every model is ready."""
        return all(map(self.is_model_ready, self._models))

    def is_model_ready(self, model: ServedModel) -> bool:
        """Return True if the server is not stopping and an engine can answer for the model."""
        return model.ready and not self.draining
