"""What ``manage.py invoke`` is made of: ways to an endpoint, a turn as its caller sees it, and a terminal."""
