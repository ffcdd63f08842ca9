"""Script that builds the TensorRT plans of a repository on the target, with Triton's TensorRT."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from resdeploy.bundle.manifest import INPUT_NAME
from resdeploy.images.preprocessing import ImageSize, height_and_width, size_text
from resdeploy.runtime.backends.base import Batches

PLANS = "build-plans.sh"
# TensorRT 11 is always strongly typed, and may not accept the option --stronglyTyped any more.
SCRIPT = """#!/bin/sh
# Builds the TensorRT plans of this repository. A plan works on one kind of GPU with one version of
# TensorRT. Run this on the target, in Triton's image (IMAGE: NVIDIA's tritonserver:YY.MM-py3):
#   docker run --rm --gpus all -v "$PWD:/models" "$IMAGE" sh /models/build-plans.sh
set -eu
cd "$(dirname "$0")"
trtexec=$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)
if [ ! -x "$trtexec" ]; then
  echo "trtexec was not found: run this script in Triton's or TensorRT's image" >&2
  exit 1
fi
typed=
if "$trtexec" --help 2>&1 | grep -q stronglyTyped; then typed=--stronglyTyped; fi
{builds}
"""
BUILD = """
"$trtexec" $typed --skipInference --onnx={graph} --saveEngine={partial} \\
  --minShapes={smallest} --optShapes={usual} --maxShapes={largest}
mv {partial} {plan}"""


def plans_script(graphs: Mapping[Path, Path], size: ImageSize, batches: Batches) -> str:
    """Return a shell script that builds plans for images of this size in pixels.

    `graphs` holds the path of each plan by the path of its graph, relative to the repository.
    """

    def shape(batch: int) -> str:
        return f"{INPUT_NAME}:{batch}x{size_text(height_and_width(size))}x3"

    return SCRIPT.format(
        builds="\n".join(
            BUILD.format(
                graph=shlex.quote(str(graph)),
                partial=shlex.quote(f"{plan}.partial"),
                plan=shlex.quote(str(plan)),
                smallest=shape(batches.smallest),
                usual=shape(batches.usual),
                largest=shape(batches.largest),
            ).lstrip("\n")
            for graph, plan in graphs.items()
        )
    )
