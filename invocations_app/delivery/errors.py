"""Why a webhook counts as not delivered.

The class is what a report names. The texts are fixed: they hold no address,
no answer and no secret.
"""

from __future__ import annotations


class PushError(Exception):
    """A push was not taken.

    Attributes:
        text: What happened, without anything that was sent or received.
    """

    text = "the push failed"

    def __init__(self) -> None:
        super().__init__(self.text)


class AddressNotAllowed(PushError):
    """The host has an address that is not of the public internet."""

    text = "the address is not public"


class RequestTooLarge(PushError):
    """The result is longer than ``MAX_BYTES``."""

    text = "the result is too large"


class ResponseTooLarge(PushError):
    """The answer is longer than ``MAX_BYTES``."""

    text = "the answer is too large"


class MalformedResponse(PushError):
    """The answer is no HTTP/1.1, or ends too early."""

    text = "the answer is no HTTP"


class RedirectRefused(PushError):
    """The answer is a redirect, which is never followed."""

    text = "the answer is a redirect"


class StatusRefused(PushError):
    """The status of the answer is not 2xx."""

    text = "the answer is no success"
