"""The admin: sessions and invocations, to read.

Contents come from callers and models, so every page escapes and bounds them.
"""

from invocations_app.admin.invocations import InvocationAdmin
from invocations_app.admin.sessions import SessionAdmin

__all__ = ["InvocationAdmin", "SessionAdmin"]
