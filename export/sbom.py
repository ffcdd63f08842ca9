"""A bill of materials of the environment of an export, in the format CycloneDX 1.6.

Source: https://cyclonedx.org/docs/1.6/json/, written with the package cyclonedx-python-lib.
"""

# Pyright cannot see through the decorators of these classes; mypy can.
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

from importlib import metadata

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

import resdeploy


def environment_sbom(model: str) -> bytes:
    """Return the bill of materials of the installed packages, for a model of this name.

    It names every Python package that this process can import, with its version, because each of
    them could have changed the export.
    """
    bom = Bom()
    tool = Component(
        name="resdeploy", version=resdeploy.__version__, type=ComponentType.APPLICATION
    )
    bom.metadata.tools.components.add(tool)
    bom.metadata.component = Component(
        name=model, type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref="model"
    )
    packages = [
        Component(
            name=package.name,
            version=package.version,
            type=ComponentType.LIBRARY,
            bom_ref=f"{package.name}=={package.version}",
            purl=PackageURL("pypi", None, package.name.lower(), package.version),
        )
        for package in {found.name: found for found in metadata.distributions()}.values()
    ]
    bom.components.update(packages)
    bom.register_dependency(bom.metadata.component, packages)
    return JsonV1Dot6(bom).output_as_string(indent=1).encode()
