from django.contrib import admin
from django.http import HttpResponse
from django.urls import include, path

from imagelabs_sdk.contrib.django.urls import job_urls
from tests.django.app.models import Album

urlpatterns = [
    path("admin/", admin.site.urls),
    path("albums/", include((job_urls(Album), "albums"))),
    path("images/", include("imagelabs_sdk.contrib.django.urls")),
    path("favicon.ico", lambda _: HttpResponse(status=204)),  # browsers ask for it
]
