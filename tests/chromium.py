"""The Chromium that tests use: the machine's own, none is downloaded."""

from __future__ import annotations

import os
import shutil

import pytest


def find_browser() -> str:
    """Return the path of a Chromium; without one, CI fails and others skip."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path is not None:
            return path
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail("there is no Chromium: apt-get install chromium")
    pytest.skip("there is no Chromium: apt-get install chromium")
