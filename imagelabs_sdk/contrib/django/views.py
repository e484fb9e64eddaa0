"""Pages over the rows: a form that starts a job, the job coming along, its image.

Whoever is logged in sees the jobs they own, and no others. A site whose jobs are a model of its
own, with an ``owner``, and a ``get_absolute_url`` below which ``image/`` and ``preview/`` are::

    path("posters/", StartView.as_view(model=Poster)),
    path("posters/<uuid:pk>/", JobView.as_view(model=Poster), name="poster"),
    path("posters/<uuid:pk>/image/", ImageView.as_view(model=Poster)),
    path("posters/<uuid:pk>/preview/", PreviewView.as_view(model=Poster)),
"""

import json
import logging
import uuid
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
from django.contrib.auth.mixins import LoginRequiredMixin
from django.contrib.auth.views import redirect_to_login
from django.core.cache import cache
from django.db import connections, router, transaction
from django.db.models import QuerySet
from django.db.models.fields.files import FieldFile
from django.http import (
    FileResponse,
    Http404,
    HttpRequest,
    HttpResponse,
    JsonResponse,
)
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.cache import get_conditional_response
from django.utils.decorators import method_decorator
from django.utils.http import http_date
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.vary import vary_on_headers
from django.views.generic import FormView, View

from imagelabs_sdk import InvalidRequestError, sniff

from .clients import DEFAULT_ALIAS, clients
from .forms import StartForm
from .lifecycle import advance
from .models import AbstractImageJob, ImageJob
from .presenters import JobPresenter

__all__ = ["ImageView", "JobView", "OwnJobsMixin", "PreviewView", "StartView"]

log = logging.getLogger(__name__)

_A_POLL = 10.0  # seconds for which a page waits for the service, an image included
_A_PREVIEW = 5.0  # the same for a preview
_KEPT = 60  # seconds for which a preview is kept for others
_KEPT_NONE = 5  # the same when it could not be had
_MAX_KEPT = 1_000_000  # bytes; caches such as memcached take no more
_ASK_FIRST = "private, no-cache"  # a browser may keep it, but who is logged in may have changed
_HEAD = 32  # bytes that tell an image's format

# What is served is somebody else's file: a browser shall take it for an image or for nothing.
_HARMLESS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}


class OwnJobsMixin(LoginRequiredMixin, View):
    """The jobs of who is logged in.

    Attributes:
        model: Of the jobs; it has an ``owner``.
    """

    model: ClassVar[type[AbstractImageJob]] = ImageJob

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., HttpResponseBase]:
        """Outside of ``ATOMIC_REQUESTS``: a transaction must not wait for the service."""
        view = super().as_view(**initkwargs)
        for alias in connections:
            view = transaction.non_atomic_requests(using=alias)(view)
        return view

    def handle_no_permission(self) -> Any:
        """Send people to the login page; from a card the whole page, not the presenter."""
        if _wants_json(self.request):
            return JsonResponse({"message": _("Log in first.")}, status=401)
        if "HX-Request" not in self.request.headers:
            return super().handle_no_permission()
        page = self.request.headers.get("HX-Current-URL", "")
        login = redirect_to_login(page, self.get_login_url(), self.get_redirect_field_name())
        return HttpResponse(status=204, headers={"HX-Redirect": login.url})

    def get_queryset(self) -> QuerySet[AbstractImageJob]:
        """From the database that is written to: a page may take the job's next step."""
        rows = self.model._default_manager.using(router.db_for_write(self.model))
        return rows.filter(**{"owner": self.request.user})  # noqa: PIE804 - not every model has one

    def get_job(self) -> AbstractImageJob:
        """The row; one of somebody else's is not there."""
        return get_object_or_404(self.get_queryset(), pk=self.kwargs["pk"])


_changing = [never_cache, vary_on_headers("Accept", "HX-Request")]


@method_decorator([csrf_protect, *_changing], name="dispatch")
class StartView(OwnJobsMixin, FormView):  # type: ignore[type-arg]  # it takes none when it runs
    """Asks for an image. A form, for programs too, which get and choose JSON by ``Accept``.

    The same form sent twice is one job. Sent again with another wish in it, as the browser's
    "back" allows, it is another job; and nobody meets a job of somebody else's by its id.

    Attributes:
        alias: The client, by its name in ``settings.IMAGELABS``; never the visitor's choice.
    """

    alias = DEFAULT_ALIAS
    form_class = StartForm
    template_name = "imagelabs/start.html"

    def form_valid(self, form: StartForm) -> HttpResponse:
        """Start the job, and go to its page."""
        owner = self.request.user
        key = form.cleaned_data.get("id")
        if key is not None:
            wish = json.dumps([str(owner.pk), attrs.asdict(form.image_request)], sort_keys=True)
            key = uuid.uuid5(key, wish)
        try:
            job = self.model.objects.start(
                form.image_request, alias=self.alias, id=key, owner=owner
            )
        except InvalidRequestError as error:
            form.refuse(error)
            return self.form_invalid(form)
        if not _wants_json(self.request):
            return redirect(job)
        presenter = JobPresenter(job)
        return JsonResponse(presenter.to_json(), status=201, headers={"Location": presenter.url})

    def form_invalid(self, form: StartForm) -> HttpResponse:
        """The form again, with what is wrong."""
        if not _wants_json(self.request):
            return self.render_to_response(self.get_context_data(form=form), status=422)
        errors = {name: [str(error) for error in errors] for name, errors in form.errors.items()}
        return JsonResponse({"errors": errors}, status=422)


@method_decorator(_changing, name="dispatch")
class JobView(OwnJobsMixin):
    """How a job stands: a page, its card alone for htmx, or JSON by ``Accept``.

    Takes the job's next step if that is due, so that no worker is needed; whatever the service
    does then is in the row.
    """

    def get(self, request: HttpRequest, **_: object) -> HttpResponse:
        """Poll, and show."""
        job = self.get_job()
        try:
            if job.is_due:
                advance(job, timeout=_A_POLL)
        except self.model.DoesNotExist:
            raise Http404 from None  # deleted meanwhile
        if _wants_json(request):
            return JsonResponse(JobPresenter(job).to_json())
        if _is_from_card(request):
            presenter = JobPresenter(
                job, **{name: request.GET.get(name, "") for name in ("seen", "shown")}
            )
            return render(request, "imagelabs/_job.html", {"presenter": presenter})
        return render(request, "imagelabs/job.html", {"presenter": JobPresenter(job)})


class ImageView(OwnJobsMixin):
    """The finished image, for its owner."""

    def get(self, request: HttpRequest, **_: object) -> HttpResponseBase:
        """Stream it, or say that it has not changed."""
        return image_response(request, self.get_job())


class PreviewView(OwnJobsMixin):
    """The half-drawn image, fetched for its owner: its host is not told who polls."""

    def get(self, request: HttpRequest, **_: object) -> HttpResponse:
        """From the cache, or from the service. 404 when it cannot be had."""
        data = _preview(self.get_job())
        found = sniff(data[:_HEAD])
        if found is None:
            raise Http404
        headers = {"Cache-Control": f"private, max-age={_KEPT}", **_HARMLESS}
        return HttpResponse(data, content_type=found.media_type, headers=headers)


def image_response(
    request: HttpRequest, job: AbstractImageJob, *, thumbnail: bool = False
) -> HttpResponseBase:
    """The stored image. Who may see it is the caller's to check.

    Raises:
        Http404: There is none, or the file is gone or no image. Other failures of the
            storage are the site's to hear about.
    """
    file = (job.thumbnail or job.image) if thumbnail else job.image
    if not file:
        raise Http404
    stored = int((job.finished_at or job.created_at).timestamp())
    etag = f'"{job.pk}-{stored}-{file.field.name}"'
    known = get_conditional_response(request, etag=etag, last_modified=stored)
    response: HttpResponseBase = known or _file_response(job, file)
    headers = {"ETag": etag, "Last-Modified": http_date(stored), "Cache-Control": _ASK_FIRST}
    for name, value in {**headers, **_HARMLESS}.items():
        response.headers[name] = value
    return response


def _file_response(job: AbstractImageJob, file: FieldFile) -> FileResponse:
    try:
        opened = file.storage.open(str(file.name))
    except FileNotFoundError:
        raise Http404 from None
    found = sniff(opened.read(_HEAD))
    if found is None:
        opened.close()
        raise Http404
    opened.seek(0)
    name = f"image-{job.pk.hex[:8]}{found.extension}"
    return FileResponse(opened, filename=name, content_type=found.media_type)


def _preview(job: AbstractImageJob) -> bytes:
    """Its bytes; none when there is no preview, or it cannot be had."""
    if not job.preview_url:
        return b""
    key = f"imagelabs:preview:{job.pk}:{JobPresenter(job).preview_key}"
    known: bytes | None = cache.get(key)
    if known is not None:
        return known
    data = _fetched(job)
    if len(data) <= _MAX_KEPT:
        cache.set(key, data, _KEPT if data else _KEPT_NONE)
    return data


def _fetched(job: AbstractImageJob) -> bytes:
    try:
        image = clients[job.alias].get_job(job.task_id).preview(job.preview_url)
        assert image is not None  # it has an address
        return image.read(timeout=_A_PREVIEW)
    except Exception:  # whatever it was: a page does well without a preview
        log.debug("job %s: no preview", job.pk, exc_info=True)
        return b""


def _wants_json(request: HttpRequest) -> bool:
    return request.get_preferred_type(["text/html", "application/json"]) == "application/json"


def _is_from_card(request: HttpRequest) -> bool:
    """Whether htmx asks for the card; a boosted link, or "back", wants the whole page."""
    asked = request.headers
    whole = "HX-Boosted" in asked or "HX-History-Restore-Request" in asked
    return "HX-Request" in asked and not whole
