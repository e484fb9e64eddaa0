"""``path("images/", include("imagelabs_sdk.contrib.django.urls"))``."""

from django.urls import path

from .views import ImageView, JobView, PreviewView, StartView

__all__ = ["urlpatterns"]

app_name = "imagelabs"
urlpatterns = [
    path("", StartView.as_view(), name="start"),
    path("<uuid:pk>/", JobView.as_view(), name="job"),
    path("<uuid:pk>/image/", ImageView.as_view(), name="image"),
    path("<uuid:pk>/preview/", PreviewView.as_view(), name="preview"),
]
