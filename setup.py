"""What pyproject.toml cannot state: the build of the gRPC protocol, and the package's description.

The compiled protocol is a descriptor set instead of Python code: it works with every release of
grpcio and protobuf, and in its own descriptor pool, so that a client of the same protocol can run
in the same process.
"""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithProtocol(build_py):
    """A build step that writes the descriptor set beside the protocol, as package data."""

    def run(self) -> None:
        from grpc_tools import protoc  # pyright: ignore[reportMissingImports]  # of the build

        folder = Path("resdeploy/runtime/serving/grpc")
        source = folder / "open_inference.proto"
        target = source.with_suffix(".binpb")
        if protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={target}", str(source)]):
            raise RuntimeError(f"{source} cannot be compiled")
        super().run()


def description() -> str:
    """Return README.md without its pictures, and without links to files beside it.

    The page of a package has no files beside it, and the repository has no public address.
    """
    readme = Path("README.md").read_text(encoding="utf-8")
    without_pictures = re.sub(r"!\[[^]]*\]\([^)]*\)\n+", "", readme)
    return re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", without_pictures)


setup(
    cmdclass={"build_py": BuildWithProtocol},
    long_description=description(),
    long_description_content_type="text/markdown",
)
