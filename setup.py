"""The build step that compiles the gRPC protocol; everything else is in pyproject.toml.

The result is a descriptor set instead of Python code: it works with every release of grpcio and
protobuf, and in its own descriptor pool, so that a client of the same protocol can run in the same
process.
"""

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


setup(cmdclass={"build_py": BuildWithProtocol})
