"""The three ways to an image, side by side."""

from django.contrib import messages
from django.db import transaction
from django.http import FileResponse, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from imagelabs_sdk import ImageLabsError, ImageRequest, InvalidRequestError
from imagelabs_sdk.contrib.django import client
from imagelabs_sdk.contrib.django.forms import StartForm
from imagelabs_sdk.contrib.django.models import ImageJob
from imagelabs_sdk.contrib.django.signals import JobRefusedError
from imagelabs_sdk.contrib.django.views import JobListView

_MANY = 12  # lines of a batch


class HomeView(JobListView):
    """Forms, and the visitor's images below them."""

    template_name = "studio/home.html"
    extra_context = {"most": _MANY}  # noqa: RUF012 - as Django's views have it

    def get_context_data(self, **kwargs: object) -> dict[str, object]:
        """Add the form, unless it is one with errors."""
        return super().get_context_data(**{"form": StartForm(), **kwargs})


@require_POST
@transaction.non_atomic_requests
def wait(request: HttpRequest) -> HttpResponseBase:
    """Return the image if it comes in eight seconds, else the page of a job that goes on."""
    form = StartForm(request.POST)
    if not form.is_valid():
        return _with_errors(request, form)
    try:
        job = ImageJob.objects.generate_or_defer(form.image_request, wait=8, owner=request.user)
    except JobRefusedError as error:
        form.add_error(None, str(error))
        return _with_errors(request, form)
    return FileResponse(job.image.open()) if job.image else redirect(job)


@require_POST
@transaction.non_atomic_requests
def download(request: HttpRequest) -> HttpResponseBase:
    """Block until the image is there; it is stored nowhere. Holds a thread for as long."""
    form = StartForm(request.POST)
    if not form.is_valid():
        return _with_errors(request, form)
    try:
        image = client.generate(form.image_request, timeout=20).read(timeout=5)
    except ImageLabsError as error:
        form.add_error(None, str(error))
        return _with_errors(request, form)
    disposition = 'attachment; filename="image.png"'
    return HttpResponse(
        image, content_type="image/png", headers={"Content-Disposition": disposition}
    )


@require_POST
@transaction.non_atomic_requests
def many(request: HttpRequest) -> HttpResponse:
    """Start a job for each line; the list polls for all of them."""
    lines = [line for line in request.POST.get("prompts", "").splitlines() if line.strip()]
    for line in lines[:_MANY]:
        try:
            asked = ImageRequest(line, aspect_ratio="3:2")
            ImageJob.objects.start(request=asked, owner=request.user)
        except (InvalidRequestError, JobRefusedError) as error:
            messages.error(request, str(error))
    return redirect("home")


def _with_errors(request: HttpRequest, form: StartForm) -> HttpResponse:
    view = HomeView()
    view.setup(request)
    view.object_list = view.get_queryset()
    return render(request, "studio/home.html", view.get_context_data(form=form), status=422)
