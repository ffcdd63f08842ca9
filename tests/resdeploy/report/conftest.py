"""The verification that several tests of reports show."""

from __future__ import annotations

from pathlib import Path

import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.result_files.verification import Verification
from resdeploy.runtime.verification.verify import verify


@pytest.fixture(scope="package")
def verification(tiny_bundle: Bundle, image_data: Path) -> Verification:
    return verify(tiny_bundle, data=image_data, max_drop=50)
