"""The three ways to an image, side by side."""

from django.contrib import messages
from django.db import transaction
from django.http import FileResponse, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST, require_safe

from imagelabs_sdk import ImageLabsError, ImageRequest, InvalidRequestError
from imagelabs_sdk.contrib.django import client
from imagelabs_sdk.contrib.django.forms import StartForm
from imagelabs_sdk.contrib.django.models import ImageJob
from imagelabs_sdk.contrib.django.presenters import JobPresenter

_SHOWN = 24  # of a visitor's images
_MANY = 12  # lines of a batch


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """A desk to ask at, and what was drawn so far."""
    return _desk(request, StartForm())


@require_POST
@transaction.non_atomic_requests
def wait(request: HttpRequest) -> HttpResponseBase:
    """The image if it comes in eight seconds, else the page of a job that goes on."""
    form = StartForm(request.POST)
    if not form.is_valid():
        return _desk(request, form)
    job = ImageJob.objects.generate_or_defer(form.image_request, wait=8, owner=request.user)
    return FileResponse(job.image.open()) if job.image else redirect(job)


@require_POST
@transaction.non_atomic_requests
def download(request: HttpRequest) -> HttpResponseBase:
    """Block until the image is there; it is kept nowhere. Holds a thread for as long."""
    form = StartForm(request.POST)
    if not form.is_valid():
        return _desk(request, form)
    try:
        image = client.generate(form.image_request, timeout=20).read(timeout=5)
    except ImageLabsError as error:
        form.add_error(None, str(error))
        return _desk(request, form)
    disposition = 'attachment; filename="image.png"'
    return HttpResponse(
        image, content_type="image/png", headers={"Content-Disposition": disposition}
    )


@require_POST
@transaction.non_atomic_requests
def many(request: HttpRequest) -> HttpResponse:
    """A job for each line; the gallery's cards look after them."""
    lines = [line for line in request.POST.get("prompts", "").splitlines() if line.strip()]
    for line in lines[:_MANY]:
        try:
            ImageJob.objects.start(ImageRequest(line, aspect_ratio="3:2"), owner=request.user)
        except InvalidRequestError as error:
            messages.error(request, str(error))
    return redirect("home")


def _desk(request: HttpRequest, form: StartForm) -> HttpResponse:
    jobs = ImageJob.objects.filter(owner=request.user)[:_SHOWN]
    shown = {"form": form, "presenters": [JobPresenter(job) for job in jobs], "most": _MANY}
    return render(request, "studio/home.html", shown, status=422 if form.errors else 200)
