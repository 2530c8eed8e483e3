"""Settings of the site that the browser's pages are tested against: the demonstration's."""

from project.settings import *  # noqa: F403
