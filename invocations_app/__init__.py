"""Serve Microsoft Agent Framework agents from a Django site.

Public names live in the modules that ``docs/architecture.md`` lists; importing
this package alone imports neither models nor the framework.
"""

__version__ = "0.1.0"
