"""The site that is measured, but with one adrf view of its own in place of the app's."""

from benchmarks.site_settings import *  # noqa: F403

ROOT_URLCONF = "benchmarks.adrf_view"
