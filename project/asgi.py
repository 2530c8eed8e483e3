"""The ASGI application: Django, with the targets built at start-up and left at shutdown."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
_django = get_asgi_application()

# Only importable once Django is set up.
from invocations_app.handler import by_path  # noqa: E402
from invocations_app.lifespan import with_lifespan  # noqa: E402

application = with_lifespan(by_path(_django))
