"""The wire is importable without the ORM: import-linter cannot forbid part of Django."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WIRE = ("dialects", "sse", "envelope", "events", "isolation", "exceptions", "conf")


def test_the_wire_imports_no_orm() -> None:
    code = f"""
import importlib, sys
for name in {WIRE!r}:
    importlib.import_module("invocations_app." + name)
print([name for name in ("django.db", "rest_framework", "invocations_app.models") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
