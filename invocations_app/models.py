"""Tables: sessions, the messages of their histories, invocations and their events.

JSON is kept as ASCII-escaped text: PostgreSQL's jsonb refuses NUL and lone
surrogates, which models do write. What the columns mean together, and who may
change them, is decided in ``storage``.
"""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _


class Scoped(models.Model):
    """What a row is bound to: endpoint and isolation keys, and the Django user behind them."""

    endpoint = models.CharField(_("endpoint"), max_length=64)
    user_key = models.CharField(_("user key"), max_length=300, blank=True, default="")
    chat_key = models.CharField(_("chat key"), max_length=256, blank=True, default="")
    # No constraint in the database: a deferred one would fail at COMMIT, together with
    # every other turn that is committed in the same transaction. Indexed where there is a user: below.
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("user"),
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        db_constraint=False,
        db_index=False,
        related_name="+",
    )

    class Meta:
        abstract = True


# Every index is a page more that each new row writes, at a random place where its values are random. So none knows
# rows that nobody looks for in it; and what is unique is so by a constraint, as PostgreSQL would get a second index
# for ``unique=True`` on text.


class SessionRecord(Scoped):
    """A session: the conversation state behind one session id in one scope."""

    key = models.CharField(_("key digest"), max_length=64, null=True, editable=False)
    session_id = models.CharField(_("session id"), max_length=256)
    # 128 random bits: no other one is the same, and nothing is looked up by it.
    opaque_id = models.CharField(_("opaque id"), max_length=64, editable=False)
    state = models.TextField(_("state"), blank=True, default="")
    pending_count = models.PositiveIntegerField(_("pending requests"), default=0)
    message_count = models.PositiveIntegerField(_("messages"), default=0)
    version = models.PositiveBigIntegerField(_("version"), default=0)
    claim_number = models.PositiveBigIntegerField(_("claim number"), default=0)
    claimed_by = models.PositiveBigIntegerField(_("claimed by invocation"), null=True, blank=True)
    claim_expires_at = models.DateTimeField(_("claim expires"), null=True, blank=True)
    created_at = models.DateTimeField(_("created"))
    updated_at = models.DateTimeField(_("last activity"))
    archived_at = models.DateTimeField(_("archived"), null=True, blank=True)

    class Meta:
        verbose_name = _("session")
        verbose_name_plural = _("sessions")
        # Lists and figures are one thing, what people said is another.
        permissions = [("view_transcript", _("Can read what was said in sessions"))]
        constraints = [models.UniqueConstraint(fields=["key"], name="invocations_session_key")]
        indexes = [
            # The list's order, and which were active: with their endpoints, so that counting them reads no rows.
            models.Index(fields=["updated_at", "id", "endpoint"], name="invocations_active"),
            # Few rows wait for a person at a time, among many that do not.
            models.Index(
                fields=["updated_at", "id"], condition=models.Q(pending_count__gt=0), name="invocations_pending"
            ),
            models.Index(fields=["user"], condition=models.Q(user__isnull=False), name="invocations_session_user"),
        ]

    def __str__(self) -> str:
        return self.session_id


class MessageRecord(models.Model):
    """One message of a session's history, in the place its history provider gave it."""

    session = models.ForeignKey(
        SessionRecord,
        verbose_name=_("session"),
        on_delete=models.CASCADE,
        db_constraint=False,
        db_index=False,
        related_name="messages",
    )
    source_id = models.CharField(_("history provider"), max_length=255)
    position = models.PositiveIntegerField(_("position"))
    role = models.CharField(_("role"), max_length=32)
    payload = models.TextField(_("message"))
    invocation = models.ForeignKey(
        "InvocationRecord",
        verbose_name=_("invocation"),
        null=True,
        on_delete=models.SET_NULL,
        db_constraint=False,
        db_index=False,
        related_name="+",
    )
    created_at = models.DateTimeField(_("created"))

    class Meta:
        verbose_name = _("message")
        verbose_name_plural = _("messages")
        constraints = [
            models.UniqueConstraint(fields=["session", "source_id", "position"], name="invocations_message_place")
        ]

    def __str__(self) -> str:
        return f"{self.role} {self.position}"


class InvocationRecord(Scoped):
    """One invocation that was begun: what became of it, and the answer it was given."""

    class Status(models.TextChoices):
        """What an invocation may be."""

        QUEUED = "queued", _("queued")
        RUNNING = "running", _("running")
        AWAITING_INPUT = "awaiting_input", _("awaiting input")
        SUCCEEDED = "succeeded", _("succeeded")
        FAILED = "failed", _("failed")
        CANCELLED = "cancelled", _("cancelled")
        INTERRUPTED = "interrupted", _("interrupted")

    class Delivery(models.TextChoices):
        """Where the answer goes: empty is to the caller; of several pushes the worst is told."""

        NONE = "none", _("none: it waits")
        UNSENT = "unsent", _("not sent yet")
        FAILED = "failed", _("failed")
        SKIPPED = "skipped", _("unknown destination")
        PUSHED = "pushed", _("pushed")

    key = models.CharField(_("key digest"), max_length=64, editable=False)
    invocation_id = models.CharField(_("invocation id"), max_length=256)
    correlation_id = models.CharField(_("correlation id"), max_length=32, editable=False)
    dialect = models.CharField(_("dialect"), max_length=16)
    stream = models.BooleanField(_("streamed"), default=False)
    background = models.BooleanField(_("background"), default=False)
    fingerprint = models.CharField(_("body fingerprint"), max_length=64, editable=False)
    # Not ``session``: its column would be ``session_id``, the name of the caller's own id.
    session_record = models.ForeignKey(
        SessionRecord,
        verbose_name=_("session"),
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        db_constraint=False,
        db_index=False,
        related_name="invocations",
    )
    session_id = models.CharField(_("session id"), max_length=256, null=True, blank=True)
    claim_number = models.PositiveBigIntegerField(_("claim number"), default=0, editable=False)
    owner = models.CharField(_("process"), max_length=32, blank=True, default="", editable=False)
    # None while nobody has taken it yet who could die: it is handed to a tasks backend.
    lease_expires_at = models.DateTimeField(_("lease expires"), null=True, blank=True, editable=False)
    cancel_requested = models.BooleanField(_("cancel requested"), default=False, editable=False)
    joined_until = models.DateTimeField(_("joined until"), null=True, blank=True, editable=False)
    status = models.CharField(_("status"), max_length=16, choices=Status.choices)
    answer = models.TextField(_("answer"), blank=True, default="")
    error_code = models.CharField(_("error code"), max_length=64, blank=True, default="")
    error_status = models.PositiveSmallIntegerField(_("error status"), null=True, blank=True)
    usage = models.TextField(_("token usage"), blank=True, default="")
    total_tokens = models.PositiveBigIntegerField(_("tokens"), null=True, blank=True)
    metadata = models.TextField(_("metadata"), blank=True, default="")
    input = models.TextField(_("input"), blank=True, default="", editable=False)
    event_count = models.PositiveIntegerField(_("events"), default=0)
    delivery = models.CharField(
        _("delivery elsewhere"), max_length=16, choices=Delivery.choices, blank=True, default=""
    )
    delivery_report = models.TextField(_("delivery report"), blank=True, default="")
    delivery_claimed_until = models.DateTimeField(_("being sent until"), null=True, blank=True, editable=False)
    # What the timeline shows: calls and results of tools and executors, as ``steps`` of storage has them.
    steps = models.TextField(_("steps"), blank=True, default="", editable=False)
    created_at = models.DateTimeField(_("created"))
    # Only of those that waited: the others claim their session as they begin.
    claimed_at = models.DateTimeField(_("session claimed"), null=True, blank=True)
    first_byte_at = models.DateTimeField(_("first byte"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished"), null=True, blank=True)
    # What the overview counts by: figures that every database groups without a function of its own.
    finished_minute = models.PositiveIntegerField(_("minute of the end"), null=True, blank=True, editable=False)
    duration_bucket = models.PositiveSmallIntegerField(_("duration bucket"), null=True, blank=True, editable=False)
    first_byte_bucket = models.PositiveSmallIntegerField(_("first byte bucket"), null=True, blank=True, editable=False)

    class Meta:
        verbose_name = _("invocation")
        verbose_name_plural = _("invocations")
        constraints = [models.UniqueConstraint(fields=["key"], name="invocations_invocation_key")]
        indexes = [
            # All that the overview reads, so that it reads no rows; what ends together stands together, by the id.
            models.Index(
                fields=[
                    "finished_minute",
                    "id",
                    "endpoint",
                    "status",
                    "duration_bucket",
                    "first_byte_bucket",
                    "total_tokens",
                ],
                condition=models.Q(finished_minute__isnull=False),
                name="invocations_overview",
            ),
            # Few run or wait at a time, among many that have ended.
            models.Index(
                fields=["endpoint", "status"], condition=models.Q(finished_at__isnull=True), name="invocations_live"
            ),
            # The order in which the turns of a session wait, and its invocations in the admin.
            models.Index(
                fields=["session_record", "id"],
                condition=models.Q(session_record__isnull=False),
                name="invocations_of_session",
            ),
            models.Index(fields=["user"], condition=models.Q(user__isnull=False), name="invocations_user"),
        ]

    def __str__(self) -> str:
        return self.correlation_id

    @property
    def duration_seconds(self) -> float | None:
        """Time from begin to end in seconds; None while it runs."""
        if self.finished_at is None:
            return None
        return (self.finished_at - self.created_at).total_seconds()


class EventRecord(models.Model):
    """Wire events of a streamed invocation, a batch in a row; its last event stands in the record."""

    invocation = models.ForeignKey(
        InvocationRecord,
        verbose_name=_("invocation"),
        on_delete=models.CASCADE,
        db_constraint=False,
        db_index=False,
        related_name="events",
    )
    first = models.PositiveIntegerField(_("first number"))
    last = models.PositiveIntegerField(_("last number"))
    frames = models.TextField(_("events"))
    created_at = models.DateTimeField(_("created"))

    class Meta:
        verbose_name = _("events")
        verbose_name_plural = _("events")
        constraints = [models.UniqueConstraint(fields=["invocation", "first"], name="invocations_event_place")]

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


class PendingRecord(models.Model):
    """A request that a turn left pending, and how it was answered or closed."""

    session_record = models.ForeignKey(
        SessionRecord,
        verbose_name=_("session"),
        on_delete=models.CASCADE,
        db_constraint=False,
        db_index=False,
        related_name="pending",
    )
    invocation = models.ForeignKey(
        InvocationRecord,
        verbose_name=_("asked by"),
        null=True,
        on_delete=models.SET_NULL,
        db_constraint=False,
        related_name="pending",
    )
    position = models.PositiveIntegerField(_("position"))
    request_id = models.TextField(_("request id"))
    kind = models.CharField(_("kind"), max_length=16)
    data = models.TextField(_("request"))
    payload = models.TextField(_("framework's request"))
    reply = models.TextField(_("reply"), blank=True, default="")
    answered_by = models.ForeignKey(
        InvocationRecord,
        verbose_name=_("answered by"),
        null=True,
        on_delete=models.SET_NULL,
        db_constraint=False,
        db_index=False,
        related_name="+",
    )
    created_at = models.DateTimeField(_("created"))
    closed_at = models.DateTimeField(_("closed"), null=True, blank=True)

    class Meta:
        verbose_name = _("pending request")
        verbose_name_plural = _("pending requests")
        indexes = [models.Index(fields=["session_record", "closed_at"], name="invocations_pending_open")]

    def __str__(self) -> str:
        return self.request_id


class CheckpointRecord(models.Model):
    """A checkpoint of a workflow, as a turn of its session left it."""

    session_record = models.ForeignKey(
        SessionRecord,
        verbose_name=_("session"),
        on_delete=models.CASCADE,
        db_constraint=False,
        db_index=False,
        related_name="checkpoints",
    )
    invocation = models.ForeignKey(
        InvocationRecord,
        verbose_name=_("invocation"),
        null=True,
        on_delete=models.SET_NULL,
        db_constraint=False,
        db_index=False,
        related_name="+",
    )
    workflow_name = models.CharField(_("workflow"), max_length=255)
    checkpoint_id = models.CharField(_("checkpoint id"), max_length=64)
    payload = models.TextField(_("checkpoint"))
    created_at = models.DateTimeField(_("created"))

    class Meta:
        verbose_name = _("checkpoint")
        verbose_name_plural = _("checkpoints")
        constraints = [
            models.UniqueConstraint(fields=["session_record", "checkpoint_id"], name="invocations_checkpoint_id")
        ]

    def __str__(self) -> str:
        return self.checkpoint_id
