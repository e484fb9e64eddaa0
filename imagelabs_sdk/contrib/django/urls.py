"""``path("pictures/", include("imagelabs_sdk.contrib.django.urls"))``."""

from django.urls import path

from .views import JobView, PictureView, PreviewView, StartView

__all__ = ["urlpatterns"]

app_name = "imagelabs"
urlpatterns = [
    path("", StartView.as_view(), name="start"),
    path("<uuid:pk>/", JobView.as_view(), name="job"),
    path("<uuid:pk>/picture/", PictureView.as_view(), name="picture"),
    path("<uuid:pk>/preview/", PreviewView.as_view(), name="preview"),
]
