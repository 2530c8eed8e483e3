"""Tests with two and more real processes behind sockets that share one database, and nothing else.

`worker`, `settings`, `asgi`, `agents` and `gates` are the site that they run; `cluster`, `databases`
and `asking` are the tests' side of it. They meet in a directory: agents and tests wait for one another
at files (`gates`), and every execution of an agent is written to a journal there, which no database rolls back.
"""
