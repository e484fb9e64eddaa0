from django.contrib import admin
from django.http import HttpResponse
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("images/", include("imagelabs_sdk.contrib.django.urls")),
    path("favicon.ico", lambda _: HttpResponse(status=204)),  # browsers ask for it
]
