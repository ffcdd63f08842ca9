"""A toolkit that trains a ResNet, exports it to ONNX, and runs and checks it on any machine.

In Python: `load` opens a bundle to classify pictures, and `Scorer` maps one over batches of tables;
`train`, `export` and `verify` do what the commands of these names do. `train` and `export` are also
the packages of these stages: a package is called like a function, see `CallablePackage`.
"""

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resdeploy.python_api import Scorer, export, load, train, verify

__version__ = "0.1.0"
__all__ = ["Scorer", "__version__", "export", "load", "train", "verify"]

# Some packages report their use to their makers unless they are told not to before they are loaded:
# ONNX Runtime from 1.32 on reads this variable, and OpenVINO works without its package for this.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def __getattr__(name: str) -> Any:
    if name in ("export", "train"):  # the packages, which nobody has imported yet
        return import_module(f"{__name__}.{name}")
    if name in ("Scorer", "load", "verify"):
        return getattr(import_module(f"{__name__}.python_api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class CallablePackage(ModuleType):
    """The package of a stage that is also the function of its command.

    Python binds an imported package to its name in the package above, so that a function of the
    same name would be replaced by the first import of one of its modules. For mypy, the name is the
    function: code that it checks imports modules by `from resdeploy.export import pipeline`.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function in `python_api` that has the name of this package."""
        return self.__wrapped__(*arguments, **options)

    @property
    def __wrapped__(self) -> Any:
        return getattr(import_module(f"{__name__}.python_api"), self.__name__.rpartition(".")[2])

    def __reduce__(self) -> Any:
        return import_module, (self.__name__,)
