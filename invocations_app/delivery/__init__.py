"""Delivery elsewhere: what a run hook names takes the answer, and the caller gets an acknowledgement.

``docs/delivery.md`` tells what is promised. What stands on the record is in
``storage.deliveries``; when a run sends is left to the run.
"""

from invocations_app.delivery.backends import PushBackend, get_backend, make_backend
from invocations_app.delivery.errors import (
    AddressNotAllowed,
    MalformedResponse,
    PushError,
    RedirectRefused,
    RequestTooLarge,
    ResponseTooLarge,
    StatusRefused,
)
from invocations_app.delivery.sending import PUSH_SECONDS, deliver, resend, resend_all
from invocations_app.delivery.webhook import WebhookPush
from invocations_app.storage.deliveries import DeliveryReport, FailedPush

__all__ = [
    "PUSH_SECONDS",
    "AddressNotAllowed",
    "DeliveryReport",
    "FailedPush",
    "MalformedResponse",
    "PushBackend",
    "PushError",
    "RedirectRefused",
    "RequestTooLarge",
    "ResponseTooLarge",
    "StatusRefused",
    "WebhookPush",
    "deliver",
    "get_backend",
    "make_backend",
    "resend",
    "resend_all",
]
