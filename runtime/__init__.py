"""Run a bundle: `from resdeploy.runtime import load`. numpy, click, Pillow and one engine."""

from resdeploy.predictions import Prediction
from resdeploy.runtime.model import Model, load

__all__ = ["Model", "Prediction", "load"]
