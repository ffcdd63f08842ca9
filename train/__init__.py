"""Training of residual networks: models, data, trainer and run folders.

`resdeploy.train(...)` is the command `resdeploy train`: see `resdeploy.python_api.train`.
"""

import sys

from resdeploy import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
