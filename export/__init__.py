"""Export of a network to a bundle: ONNX graphs, their quantisation, and golden images.

`resdeploy.export(...)` is the command `resdeploy export`: see `resdeploy.python_api.export`.
`resdeploy.export.export_module` exports a live module of PyTorch.
"""

import sys
from typing import TYPE_CHECKING, Any

from resdeploy import CallablePackage

if TYPE_CHECKING:
    from resdeploy.export.module_export import export_module

__all__ = ["export_module"]


def __getattr__(name: str) -> Any:
    if name == "export_module":
        from resdeploy.export.module_export import export_module

        return export_module
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


sys.modules[__name__].__class__ = CallablePackage
