"""What the app keeps in the site's database, and the only place that writes it."""

from invocations_app.storage.checkpoint_storage import OrmCheckpointStorage
from invocations_app.storage.reset import reset_session
from invocations_app.storage.session_store import OrmSessionStore

__all__ = ["OrmCheckpointStorage", "OrmSessionStore", "reset_session"]
