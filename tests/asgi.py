"""The site of `server.server_process`: the tests' settings, with those that its environment holds."""

from __future__ import annotations

import json
import os

from django.core.asgi import get_asgi_application
from django.test import override_settings

application = get_asgi_application()
override_settings(**json.loads(os.environ["TEST_SETTINGS"])).enable()
