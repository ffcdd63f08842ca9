"""The runtime: it loads and runs a bundle. It needs numpy, click, Pillow and one backend.

`from resdeploy import load` is the entry point.
"""

from resdeploy.predictions import Prediction
from resdeploy.runtime.model import Model, load

__all__ = ["Model", "Prediction", "load"]
