"""Export of a checkpoint to a bundle: ONNX graphs, their quantisation, and golden images.

`resdeploy.export(...)` is the command `resdeploy export`: see `resdeploy.python_api.export`.
"""

import sys

from resdeploy import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
