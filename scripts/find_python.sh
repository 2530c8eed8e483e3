#!/bin/sh
# Print a Python that can make the virtual environment: 3.11 or later, with venv and pip.
# PYTHON=… chooses one. A name on PATH proves nothing (a pyenv shim may refuse to run), so each is tried.
set -u
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
  if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    echo "$candidate"
    exit 0
  fi
done
{
  echo "This project needs Python 3.11 or later with the modules venv and ensurepip; tried: ${PYTHON:-python3, python3.11 to python3.14}."
  echo "Install one (on Debian and Ubuntu: apt install python3 python3-venv), or name one: make PYTHON=/path/to/python3.12 …"
} >&2
exit 1
