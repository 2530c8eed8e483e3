"""Make the tables, and a user with a token: ``python -m benchmarks.prepare``, before a server of ours starts."""

from __future__ import annotations

import os

TOKEN = "0123456789abcdef0123456789abcdef01234567"


def main() -> None:
    """Prepare the database of ``benchmarks.site_settings``."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.site_settings")
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)
    from django.contrib.auth.models import User
    from rest_framework.authtoken.models import Token

    Token.objects.create(key=TOKEN, user=User.objects.create(username="bench"))


if __name__ == "__main__":
    main()
