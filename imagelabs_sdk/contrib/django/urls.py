"""``path("images/", include("imagelabs_sdk.contrib.django.urls"))``."""

from django.urls import URLPattern, path

from .models import AbstractImageJob, ImageJob
from .views import (
    AgainView,
    DeleteJobView,
    ImageView,
    JobListView,
    JobView,
    PreviewView,
    ResumeView,
    StartView,
    ThumbnailView,
)

__all__ = ["job_urls", "urlpatterns"]


def job_urls(model: type[AbstractImageJob]) -> list[URLPattern]:
    """Return the addresses of the pages of a model of jobs.

    ::

        path("posters/", include((job_urls(Poster), "posters")))

    Args:
        model: It has an ``owner``, and a ``url_namespace`` such as ``"posters"``.
    """
    return [
        path("", StartView.as_view(model=model), name="start"),
        path("list/", JobListView.as_view(model=model), name="list"),
        path("<uuid:pk>/", JobView.as_view(model=model), name="job"),
        path("<uuid:pk>/image/", ImageView.as_view(model=model), name="image"),
        path("<uuid:pk>/thumbnail/", ThumbnailView.as_view(model=model), name="thumbnail"),
        path("<uuid:pk>/preview/", PreviewView.as_view(model=model), name="preview"),
        path("<uuid:pk>/again/", AgainView.as_view(model=model), name="again"),
        path("<uuid:pk>/resume/", ResumeView.as_view(model=model), name="resume"),
        path("<uuid:pk>/delete/", DeleteJobView.as_view(model=model), name="delete"),
    ]


app_name = "imagelabs"
urlpatterns = job_urls(ImageJob)
