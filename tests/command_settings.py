"""The tests' settings for a command in a process of its own, with those that its environment holds."""

import json
import os

from tests.settings import *  # noqa: F403

globals().update(json.loads(os.environ["TEST_SETTINGS"]))
