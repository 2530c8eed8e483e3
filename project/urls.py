"""The site's URLs: its start page, the admin, and the endpoints of ``INVOCATIONS``."""

from django.contrib import admin
from django.urls import include, path

from project.views import start_page

urlpatterns = [
    path("", start_page, name="start"),
    path("admin/", admin.site.urls),
    # >>> copy
    path("", include("invocations_app.urls")),
    # <<< copy
]
