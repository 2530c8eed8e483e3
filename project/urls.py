"""The site's URLs: its start page, the admin, and the endpoints of ``INVOCATIONS``."""

from django.contrib import admin
from django.templatetags.static import static
from django.urls import include, path
from django.views.generic import RedirectView

from project.views import start_page

urlpatterns = [
    path("", start_page, name="start"),
    # Browsers ask for it on pages that name no icon, such as the admin's.
    path("favicon.ico", RedirectView.as_view(url=static("project/icon.svg"))),
    path("playground/", include("project.playground")),
    path("admin/", admin.site.urls),
    # >>> copy
    path("", include("invocations_app.urls")),
    # <<< copy
]
