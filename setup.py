"""Compiles the gRPC protocol while the package is built; everything else is in pyproject.toml.

What is made is a descriptor set, not Python: it runs with every release of grpcio and protobuf,
whichever compiled it, and with a pool of its own, so that a client of the same protocol can live in
the same process.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithProtocol(build_py):
    """Writes the descriptor set beside the protocol, from where it is packed like any data."""

    def run(self) -> None:
        from grpc_tools import protoc  # pyright: ignore[reportMissingImports]  # of the build

        folder = Path("resdeploy/runtime/serving/grpc")
        source = folder / "open_inference.proto"
        target = source.with_suffix(".binpb")
        if protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={target}", str(source)]):
            raise RuntimeError(f"{source} cannot be compiled")
        super().run()


setup(cmdclass={"build_py": BuildWithProtocol})
