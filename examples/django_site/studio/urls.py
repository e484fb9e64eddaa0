"""The site's pages, and those of the app below ``images/``."""

from django.contrib import admin
from django.urls import include, path

from . import views

urlpatterns = [
    path("", views.HomeView.as_view(), name="home"),
    path("wait/", views.wait, name="wait"),
    path("download/", views.download, name="download"),
    path("many/", views.many, name="many"),
    path("images/", include("imagelabs_sdk.contrib.django.urls")),
    path("admin/", admin.site.urls),
]
