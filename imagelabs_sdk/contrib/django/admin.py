"""The jobs in the admin: to view, to resume, to delete; not to edit."""

import json
import uuid
from typing import Any, ClassVar, cast

from django.contrib import admin, messages
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from .lifecycle import poll_now, resubmit
from .models import AbstractImageJob, ImageJob
from .views import image_response

__all__ = ["ImageJobAdmin"]

_SMALL, _LARGE = 64, 512  # pixels of an image's longer side


@admin.register(ImageJob)
class ImageJobAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # it takes none when it runs
    """For a model of your own with an ``owner``: ``admin.site.register(Poster, ImageJobAdmin)``.

    Search finds a job by its id, its task id, its owner's name and words of its prompt; the last
    reads every row.
    """

    list_display = ("small_image", "short_prompt", "state", "progress", "owner", "created_at")
    list_display_links = ("small_image", "short_prompt")
    list_filter = ("state", "alias", "error_code", "created_at")
    list_select_related = ("owner",)
    list_per_page = 50
    show_full_result_count = False
    search_help_text = _("Id, task id, owner or prompt.")
    actions = ("poll_again", "submit_again")
    view_on_site = False  # that page is its owner's
    fieldsets: ClassVar[Any] = [
        (None, {"fields": ["large_image", "full_prompt", "owner", "width", "height", "seed"]}),
        (_("State"), {"fields": ["state", "status", "progress", "error_code", "error"]}),
        (
            _("Course"),
            {"fields": ["created_at", "submitted_at", "expected_at", "finished_at", "next_poll_at",
                        "attempts", "failures"]},
        ),
        (_("Service"), {"fields": ["id", "alias", "task_id", "request_as_json"]}),
    ]  # fmt: skip
    readonly_fields = ("large_image", "full_prompt", "progress", "request_as_json")

    class Media:
        """Columns that fit a screen."""

        css: ClassVar = {"all": ["imagelabs/admin.css"]}

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Forbid it: a row without a request that was sent means nothing."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Forbid it: a row says what has happened."""
        return False

    def has_resume_permission(self, request: HttpRequest) -> bool:
        """Return True for those who may change the model."""
        return super().has_change_permission(request)

    def get_search_fields(self, request: HttpRequest) -> list[str]:
        """Return the fields that the search reads, the owner's name among them."""
        user = get_user_model().USERNAME_FIELD
        return ["task_id__exact", f"owner__{user}__icontains", "request__prompt__icontains"]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Search by the primary key if the term looks like one."""
        try:
            key = uuid.UUID(search_term.strip())
        except ValueError:
            return super().get_search_results(request, queryset, search_term)
        return queryset.filter(pk=key), False

    # Images -----------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        """Add the addresses of a job's images, which its owner's page does not show to others."""
        info = f"{self.opts.app_label}_{self.opts.model_name}"
        wrap = self.admin_site.admin_view
        return [
            path("<uuid:pk>/image/", wrap(self.image_view), name=f"{info}_image"),
            path("<uuid:pk>/thumbnail/", wrap(self.thumbnail_view), name=f"{info}_thumbnail"),
            *super().get_urls(),
        ]

    def image_view(self, request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
        """Return the image, to those who may view the job."""
        return image_response(request, self._viewed(request, pk))

    def thumbnail_view(self, request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
        """Return the thumbnail, to those who may view the job."""
        return image_response(request, self._viewed(request, pk), thumbnail=True)

    def _viewed(self, request: HttpRequest, pk: uuid.UUID) -> AbstractImageJob:
        job = self.get_object(request, str(pk))
        if job is None:
            raise Http404
        if not self.has_view_permission(request, job):
            raise PermissionDenied
        return cast(AbstractImageJob, job)

    def _image(self, job: AbstractImageJob, what: str, longer_side: int) -> str:
        if not job.image:
            return "–"
        scale = longer_side / max(job.width, job.height)
        name = f"{self.opts.app_label}_{self.opts.model_name}_{what}"
        return format_html(
            '<img src="{}" alt="{}" width="{}" height="{}" loading="lazy">',
            reverse(f"{self.admin_site.name}:{name}", args=[job.pk]),
            Truncator(job.prompt).chars(100),
            max(1, round(job.width * scale)),
            max(1, round(job.height * scale)),
        )

    @admin.display(description=_("image"))
    def small_image(self, job: AbstractImageJob) -> str:
        """Return the column of the list."""
        return self._image(job, "thumbnail", _SMALL)

    @admin.display(description=_("image"))
    def large_image(self, job: AbstractImageJob) -> str:
        """Return the image of the job's page."""
        return self._image(job, "image", _LARGE)

    # Columns ----------------------------------------------------------------------------

    @admin.display(description=_("prompt"))
    def short_prompt(self, job: AbstractImageJob) -> str:
        """Return the prompt's beginning."""
        return Truncator(job.prompt).chars(60)

    @admin.display(description=_("prompt"))
    def full_prompt(self, job: AbstractImageJob) -> str:
        """Return the prompt."""
        return job.prompt

    @admin.display(description=_("progress"), ordering="fraction")
    def progress(self, job: AbstractImageJob) -> str:
        """Return the progress in percent."""
        return "–" if job.percent is None else f"{job.percent} %"

    @admin.display(description=_("request"))
    def request_as_json(self, job: AbstractImageJob) -> str:
        """Return all fields of the request."""
        return json.dumps(job.request, indent=2)

    # Actions ----------------------------------------------------------------------------

    @admin.action(description=_("Poll now, also what was given up"), permissions=["resume"])
    def poll_again(self, request: HttpRequest, queryset: QuerySet[AbstractImageJob]) -> None:
        """Make jobs due; the next driver, or page, polls them."""
        self._report(request, poll_now(queryset))

    @admin.action(description=_("Send again what was never accepted"), permissions=["resume"])
    def submit_again(self, request: HttpRequest, queryset: QuerySet[AbstractImageJob]) -> None:
        """Queue failed jobs that the service has not accepted; the next driver submits them."""
        self._report(request, resubmit(queryset))

    def _report(self, request: HttpRequest, count: int) -> None:
        text = ngettext("%d job is due now.", "%d jobs are due now.", count) % count
        self.message_user(request, text, messages.SUCCESS if count else messages.WARNING)
