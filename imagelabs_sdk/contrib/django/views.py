"""Pages over the rows: a form, a list, a job that comes along, its image, trying again, deleting.

Logged-in visitors see the jobs they own, and no others. For a model of your own with an ``owner``,
give it ``url_namespace = "posters"`` and include `urls.job_urls`.
"""

import base64
import json
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any, ClassVar, cast

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
    QueryDict,
)
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.cache import get_conditional_response
from django.utils.decorators import method_decorator
from django.utils.http import http_date
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.vary import vary_on_headers
from django.views.generic import DetailView, FormView, ListView, View

from imagelabs_sdk import ImageRequest, InvalidRequestError, sniff

from .choices import JobState
from .clients import DEFAULT_ALIAS, clients
from .forms import StartForm
from .lifecycle import advance, poll_now
from .models import AbstractImageJob, ImageJob
from .presenters import JobPresenter
from .signals import JobRefusedError

__all__ = [
    "AgainView",
    "DeleteJobView",
    "ImageView",
    "JobListView",
    "JobView",
    "OwnJobsMixin",
    "PreviewView",
    "ResumeView",
    "StartView",
    "ThumbnailView",
    "image_response",
]

log = logging.getLogger(__name__)

_A_POLL = 10.0  # seconds for which a page waits for the service, the image included
_A_LIST = 3.0  # the same for a list, whose jobs are polled one after the other
_A_PREVIEW = 5.0  # the same for a preview
_KEPT = 60  # seconds for which a preview is cached
_KEPT_NONE = 5  # the same when it could not be fetched
_MAX_KEPT = 1_000_000  # bytes; caches such as memcached take no more
_ASK_FIRST = "private, no-cache"  # a browser may keep it, but who is logged in may have changed
_SEEDS = ("seed", "subseed")
_HEAD = 256  # bytes by which an image's format is recognized
_NOTHING = base64.b64decode("R0lGODlhAQABAIAAAAAAAAAAACH5BAEAAAAALAAAAAABAAEAAAICRAEAOw==")  # clear

# What is served is somebody else's file: a browser must take it for an image or for nothing.
_HARMLESS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}


class OwnJobsMixin(LoginRequiredMixin, View):
    """The jobs of the visitor who is logged in.

    Attributes:
        model: Of the jobs; it has an ``owner``.
    """

    model: ClassVar[type[AbstractImageJob]] = ImageJob
    not_found_template_name = "imagelabs/not_found.html"

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., HttpResponseBase]:
        """Return the view outside of ``ATOMIC_REQUESTS``: no transaction waits for the service."""
        view = super().as_view(**initkwargs)
        for alias in connections:
            view = transaction.non_atomic_requests(using=alias)(view)
        return view

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer; a job that is not there gets a page with a way on."""
        try:
            return super().dispatch(request, *args, **kwargs)
        except Http404:
            if _wants_json(request) or _is_from_card(request) or not _wants_page(request):
                raise
            context = {"namespace": self.model.url_namespace}
            return render(request, self.not_found_template_name, context, status=404)

    def handle_no_permission(self) -> Any:
        """Send people to the login page; from a card the whole page, not the card."""
        if _wants_json(self.request):
            return JsonResponse({"message": _("Log in first.")}, status=401)
        if "HX-Request" not in self.request.headers:
            return super().handle_no_permission()
        page = self.request.headers.get("HX-Current-URL", "")
        login = redirect_to_login(page, self.get_login_url(), self.get_redirect_field_name())
        return HttpResponse(status=204, headers={"HX-Redirect": login.url})

    def get_queryset(self) -> QuerySet[Any]:
        """Return the visitor's jobs, from the database that steps are written to."""
        rows = self.model._default_manager.using(router.db_for_write(self.model))
        return rows.filter(**{"owner": self.request.user})  # noqa: PIE804 - not every model has one

    def get_job(self) -> AbstractImageJob:
        """Return the row; one of somebody else's is not there."""
        return cast(AbstractImageJob, get_object_or_404(self.get_queryset(), pk=self.kwargs["pk"]))

    def get_columns(self) -> dict[str, Any]:
        """Return the columns of a new job, besides the request."""
        return {"owner": self.request.user}

    def url(self, name: str, *args: Any) -> str:
        """Return the address of a page of these jobs."""
        return reverse(f"{self.model.url_namespace}:{name}", args=args)


_changing = [never_cache, vary_on_headers("Accept", "HX-Request")]


@method_decorator([csrf_protect, *_changing], name="dispatch")
class StartView(OwnJobsMixin, FormView):  # type: ignore[type-arg]  # it takes none when it runs
    """A form that starts a job. Programs send the same as a form or as JSON, and get JSON.

    The form's id is the job's. The same form sent twice is one job. Sent again with other values,
    as after the browser's "back", it is another job, for programs an error (409).

    Attributes:
        alias: The client, by its name in ``settings.IMAGELABS``; never the visitor's choice.
    """

    alias = DEFAULT_ALIAS
    form_class = StartForm
    template_name = "imagelabs/start.html"

    def get_initial(self) -> dict[str, Any]:
        """Return the request of an own job, with ``?from=`` and its id."""
        initial = super().get_initial()
        try:
            known = self.get_queryset().filter(pk=uuid.UUID(self.request.GET.get("from", "")))
        except ValueError:
            return initial
        job = known.first()
        return initial if job is None else {**initial, **StartForm.initial_from(job.request)}

    def get_form_kwargs(self) -> dict[str, Any]:
        """Take a JSON object in place of a form."""
        kwargs = super().get_form_kwargs()
        if self.request.method == "POST" and self.request.content_type == "application/json":
            kwargs["data"] = _json_data(self.request)
        return kwargs

    def form_valid(self, form: StartForm) -> HttpResponse:
        """Start the job, and go to its page."""
        key = form.cleaned_data.get("id")
        try:
            job = self._start(form.image_request, key)
            if key is not None and not self._is_same(job, form.image_request):
                if _wants_json(self.request):
                    return JsonResponse({"errors": {"id": [_("It is another job's.")]}}, status=409)
                wish = json.dumps([str(self.request.user.pk), form.data], sort_keys=True)
                job = self._start(form.image_request, uuid.uuid5(key, wish))
        except InvalidRequestError as error:
            form.refuse(error)
            return self.form_invalid(form)
        except JobRefusedError as error:
            form.add_error(None, str(error))
            return self.form_invalid(form)
        if not _wants_json(self.request):
            return redirect(job)
        presenter = JobPresenter(job)
        return JsonResponse(presenter.to_json(), status=201, headers={"Location": presenter.url})

    def form_invalid(self, form: StartForm) -> HttpResponse:
        """Show the form again, with all that is wrong."""
        if not _wants_json(self.request):
            return self.render_to_response(self.get_context_data(form=form), status=422)
        errors = {name: [str(error) for error in errors] for name, errors in form.errors.items()}
        return JsonResponse({"errors": errors}, status=422)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """Add the namespace of the pages' addresses."""
        return super().get_context_data(namespace=self.model.url_namespace, **kwargs)

    def _start(self, asked: ImageRequest, key: uuid.UUID | None) -> AbstractImageJob:
        start = self.model.objects.start
        job = start(request=asked, alias=self.alias, id=key, **self.get_columns())
        return cast(AbstractImageJob, job)

    def _is_same(self, job: AbstractImageJob, asked: ImageRequest) -> bool:
        """Return True if the job is the visitor's, and asks for the same."""
        if not self.get_queryset().filter(pk=job.pk).exists():
            return False
        stored = ImageRequest(**job.request)
        picked = {name: getattr(stored, name) for name in _SEEDS if getattr(asked, name) is None}
        return attrs.evolve(asked, **picked) == stored


@method_decorator([csrf_protect, *_changing], name="dispatch")
class JobView(OwnJobsMixin, DetailView):  # type: ignore[type-arg]  # it takes none when it runs
    """How a job stands: a page, its card alone for htmx, or JSON by ``Accept``.

    Takes the job's next step if that is due, so that no worker is needed; the service's answer is
    in the row. A queued job is left to its driver.
    """

    template_name = "imagelabs/job.html"
    card_template_name = "imagelabs/_job.html"
    context_object_name = "job"

    def get_object(self, queryset: QuerySet[Any] | None = None) -> AbstractImageJob:
        """Return the job after its next step."""
        job = self.get_job()
        try:
            if job.is_due and _is_for_pages(job):
                advance(job, timeout=_A_POLL)
        except self.model.DoesNotExist:
            raise Http404 from None  # deleted meanwhile
        return job

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """Add the presenter of the job."""
        known = {name: self.request.GET.get(name, "") for name in ("seen", "shown")}
        part = known if _is_from_card(self.request) else {}
        presenter = JobPresenter(self.object, **part)
        namespace = self.model.url_namespace
        return super().get_context_data(presenter=presenter, namespace=namespace, **kwargs)

    def get_template_names(self) -> list[str]:
        """Return the card's template for htmx, else the page's."""
        return [self.card_template_name if _is_from_card(self.request) else self.template_name]

    def render_to_response(self, context: dict[str, Any], **kwargs: Any) -> HttpResponse:
        """Return a page, or JSON to programs."""
        if _wants_json(self.request):
            return JsonResponse(context["presenter"].to_json())
        return super().render_to_response(context, **kwargs)


@method_decorator([csrf_protect, *_changing], name="dispatch")
class JobListView(OwnJobsMixin, ListView):  # type: ignore[misc, type-arg]  # takes none at run time
    """The visitor's jobs, the newest first, as thumbnails; one request polls for the whole page."""

    template_name = "imagelabs/list.html"
    context_object_name = "jobs"
    paginate_by = 24
    ordering = "-created_at"

    def get_queryset(self) -> QuerySet[Any]:
        """Return the visitor's jobs in their order."""
        return super().get_queryset().order_by(self.ordering)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """Take the next steps of the page's jobs, and add their presenters."""
        context = super().get_context_data(**kwargs)
        jobs = list(context["jobs"])
        if _is_from_card(self.request):
            jobs = _take_steps(jobs)
        presenters = [JobPresenter(job) for job in jobs]
        pauses = [one.refresh for one in presenters if one.refresh]
        return {
            **context,
            "presenters": presenters,
            "refresh": min(pauses, default=None),
            "namespace": self.model.url_namespace,
        }

    def render_to_response(self, context: dict[str, Any], **kwargs: Any) -> HttpResponse:
        """Return a page, or JSON to programs."""
        if not _wants_json(self.request):
            return super().render_to_response(context, **kwargs)
        pages = context["page_obj"]
        shown = {"jobs": [one.to_json() for one in context["presenters"]]}
        return JsonResponse({**shown, "page": pages.number, "pages": pages.paginator.num_pages})


@method_decorator([csrf_protect, *_changing], name="dispatch")
class AgainView(OwnJobsMixin):
    """Starts a job's request again, with another seed.

    Where the first request may have been accepted, the visitor has to say that another one is
    wanted all the same.
    """

    http_method_names = ["post", "options"]  # noqa: RUF012 - as in the base class

    def post(self, request: HttpRequest, **_: object) -> HttpResponse:
        """Start the new job, and go to its page."""
        job = self.get_job()
        if job.is_outstanding or (job.may_be_bought_already and "anyway" not in request.POST):
            return redirect(job)
        asked = ImageRequest(**{**job.request, "seed": None, "subseed": None})
        # Pressed twice, it is one job; pressed again on a later page, another.
        key = uuid.uuid5(job.pk, request.POST.get("id", ""))
        try:
            start = self.model.objects.start
            new = start(request=asked, alias=job.alias, id=key, **self.get_columns())
        except (InvalidRequestError, JobRefusedError) as error:
            context = {"namespace": self.model.url_namespace, "message": str(error), "job": job}
            return render(request, "imagelabs/refused.html", context, status=422)
        if not _wants_json(request):
            return redirect(new)
        return JsonResponse(JobPresenter(new).to_json(), status=201)


@method_decorator([csrf_protect, *_changing], name="dispatch")
class ResumeView(OwnJobsMixin):
    """Polls a job again that was given up: its image may be there."""

    http_method_names = ["post", "options"]  # noqa: RUF012 - as in the base class

    def post(self, request: HttpRequest, **_: object) -> HttpResponse:
        """Make the job due, and go to its page."""
        job = self.get_job()
        poll_now(self.get_queryset().filter(pk=job.pk))
        return redirect(job)


@method_decorator([csrf_protect, *_changing], name="dispatch")
class DeleteJobView(OwnJobsMixin):
    """Deletes a job that has ended, with its image."""

    http_method_names = ["post", "options"]  # noqa: RUF012 - as in the base class

    def post(self, request: HttpRequest, **_: object) -> HttpResponse:
        """Delete the row; its files follow after the commit."""
        self.get_job().delete()
        if _wants_json(request):
            return HttpResponse(status=204)
        return redirect(self.url("list"))


class ImageView(OwnJobsMixin):
    """The finished image, for its owner."""

    def get(self, request: HttpRequest, **_: object) -> HttpResponseBase:
        """Stream it, or say that it has not changed."""
        return image_response(request, self.get_job())


class ThumbnailView(OwnJobsMixin):
    """The finished image in small, for its owner; the image itself if it is small already."""

    def get(self, request: HttpRequest, **_: object) -> HttpResponseBase:
        """Stream it, or say that it has not changed."""
        return image_response(request, self.get_job(), thumbnail=True)


class PreviewView(OwnJobsMixin):
    """The unfinished image, fetched for its owner: its host does not see the visitor."""

    def get(self, request: HttpRequest, **_: object) -> HttpResponse:
        """Return it from the cache, or from the service.

        If it cannot be had: 404, or with ``blank`` in the address, for pages, an empty image.
        """
        data = _preview(self.get_job())
        found = sniff(data[:_HEAD])
        if found is None:
            if "blank" not in request.GET:
                raise Http404
            headers = {"Cache-Control": "no-store", **_HARMLESS}
            return HttpResponse(_NOTHING, content_type="image/gif", headers=headers)
        headers = {"Cache-Control": f"private, max-age={_KEPT}", **_HARMLESS}
        return HttpResponse(data, content_type=found.media_type, headers=headers)


def image_response(
    request: HttpRequest, job: AbstractImageJob, *, thumbnail: bool = False
) -> HttpResponseBase:
    """Return the stored image, or its thumbnail. The caller checks who may see it.

    With ``?download`` in the address it is an attachment.

    Raises:
        Http404: There is none, or the file is gone or is no image. Other failures of the
            storage are errors of the site.
    """
    file = (job.thumbnail or job.image) if thumbnail else job.image
    if not file:
        raise Http404
    stored = int((job.finished_at or job.created_at).timestamp())
    etag = f'"{job.pk}-{stored}-{file.field.name}"'
    known = get_conditional_response(request, etag=etag, last_modified=stored)
    response: HttpResponseBase = known or _file_response(job, file, "download" in request.GET)
    headers = {"ETag": etag, "Last-Modified": http_date(stored), "Cache-Control": _ASK_FIRST}
    for name, value in {**headers, **_HARMLESS}.items():
        response.headers[name] = value
    return response


def _file_response(job: AbstractImageJob, file: FieldFile, download: bool) -> FileResponse:
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
    return FileResponse(
        opened, as_attachment=download, filename=name, content_type=found.media_type
    )


def _preview(job: AbstractImageJob) -> bytes:
    """Return the preview's bytes; empty if there is none, or it cannot be fetched."""
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
    except Exception:  # whatever it was, a page works without a preview
        log.debug("job %s: no preview", job.pk, exc_info=True)
        return b""


def _wants_json(request: HttpRequest) -> bool:
    return request.get_preferred_type(["text/html", "application/json"]) == "application/json"


def _is_from_card(request: HttpRequest) -> bool:
    """Return True if htmx asks for a part; a boosted link, or "back", wants the whole page."""
    asked = request.headers
    whole = "HX-Boosted" in asked or "HX-History-Restore-Request" in asked
    return "HX-Request" in asked and not whole


def _wants_page(request: HttpRequest) -> bool:
    """Return True if a person is to read the answer, not an ``<img>``."""
    return request.headers.get("Sec-Fetch-Dest", "document") == "document"


def _is_for_pages(job: AbstractImageJob) -> bool:
    """Return True if a page may take the job's next step."""
    if job.state != JobState.QUEUED:
        return True
    return job.alias in clients and not clients.submits_by_worker(job.alias)


def _take_steps(jobs: list[AbstractImageJob]) -> list[AbstractImageJob]:
    """Take the steps of jobs that are due, within a time limit; leave out what was deleted."""
    until, gone = time.monotonic() + _A_LIST, set()
    due = [job for job in jobs if job.is_due and _is_for_pages(job)]
    for job in sorted(due, key=lambda job: job.next_poll_at or job.created_at):
        if (left := until - time.monotonic()) <= 0.0:
            break
        try:
            advance(job, timeout=left)
        except type(job).DoesNotExist:
            gone.add(job.pk)
    return [job for job in jobs if job.pk not in gone]


def _json_data(request: HttpRequest) -> QueryDict:
    """Return a JSON object as the data of a form; empty for anything else."""
    data = QueryDict(mutable=True)
    try:
        given = json.loads(request.body)
    except ValueError:
        given = None
    for name, value in given.items() if isinstance(given, dict) else ():
        if value is not None:
            data[name] = value if isinstance(value, str) else json.dumps(value)
    return data
