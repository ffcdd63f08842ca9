"""Run a bundle: `from resdeploy.runtime import load`. numpy, click, Pillow and one engine."""

from resdeploy.runtime.model import Model, Prediction, load

__all__ = ["Model", "Prediction", "load"]
