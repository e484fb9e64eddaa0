"""``path("pictures/", include("imagelabs_sdk.contrib.django.urls"))``."""

from django.urls import URLPattern

__all__ = ["urlpatterns"]

app_name = "imagelabs"
urlpatterns: list[URLPattern] = []
