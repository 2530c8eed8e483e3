"""This project, as a site would serve it."""

from __future__ import annotations

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.site_settings")

from django.core.asgi import get_asgi_application

from invocations_app.handler import by_path
from invocations_app.lifespan import with_lifespan

app = with_lifespan(by_path(get_asgi_application()))
