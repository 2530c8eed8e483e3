"""Sessions as files: JSON and Markdown, made while they are sent."""

from invocations_app.admin.exports.response import FORMATS, download

__all__ = ["FORMATS", "download"]
