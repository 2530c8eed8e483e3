"""The servers that are measured, each an ASGI application that is started fresh."""
