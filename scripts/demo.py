"""Run the demonstration: migrate, make a demo admin, say where everything is, and serve.

Started by ``make demo`` with the virtual environment's Python.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ADMIN = "admin"


def main() -> None:
    """Prepare the database, then become the server."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1 (default: %(default)s)")
    port: int = parser.parse_args().port
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    _prepare()
    _tell(f"http://127.0.0.1:{port}")
    sys.stdout.flush()
    uvicorn = ["uvicorn", "project.asgi:application", "--host", "127.0.0.1", "--port", str(port)]
    uvicorn += ["--loop", "uvloop", "--http", "httptools", "--lifespan", "on"]
    # The server takes this process over: what stops this one stops it.
    os.execv(sys.executable, [sys.executable, "-m", *uvicorn])


def _prepare() -> None:
    import django

    django.setup()
    from django.conf import settings
    from django.contrib.auth import get_user_model
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    users = get_user_model()._default_manager
    if users.filter(username=ADMIN).exists():
        print(f"Demo admin: {ADMIN} (there already, its password is unchanged)")
    elif settings.DEBUG:
        users.create_superuser(username=ADMIN, password=ADMIN)
        print(f"Demo admin: {ADMIN}, password {ADMIN} (just created; for this machine only)")
    else:
        print("Demo admin: none, as DEBUG is off; make one with: manage.py createsuperuser")


def _tell(url: str) -> None:
    model = "OpenAI-compatible service" if os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL") else ""
    print(f"Agent:      {model or 'offline stand-in (set OPENAI_API_KEY or OPENAI_BASE_URL for a model)'}")
    print(f"Start page: {url}/")
    print(f"Admin:      {url}/admin/")
    print(f"Endpoint:   {url}/invocations/invoke")
    print("Try:")
    print(f"""  curl -sN {url}/invocations/invoke -d '{{"message":"What is 6 * 7?","stream":true}}'""")


if __name__ == "__main__":
    main()
