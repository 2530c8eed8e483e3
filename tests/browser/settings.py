"""Settings of the site that the browser's pages are tested against: the demonstration's, and some endpoints more."""

from project.settings import *  # noqa: F403
from project.settings import INVOCATIONS as _ENDPOINTS

INVOCATIONS = {
    **_ENDPOINTS,
    "breaking": {"TARGET": "tests.browser.agents.build_breaking", "PATH": "breaking", "EXPOSE_ERRORS": False},
    "slow": {"TARGET": "tests.browser.agents.build_slow", "PATH": "slow"},
    "asking": {"TARGET": "tests.browser.agents.build_asking", "PATH": "asking"},
    "small": {**_ENDPOINTS["default"], "PATH": "small", "MAX_BODY_BYTES": 60_000},
}
