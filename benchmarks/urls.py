"""The URLs of the measured site."""

from django.urls import include, path

urlpatterns = [path("", include("invocations_app.urls"))]
