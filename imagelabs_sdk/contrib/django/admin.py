"""The jobs in the admin: to look at, to be polled again, to delete; not to edit."""

import json
import uuid
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from .lifecycle import poll_now
from .models import AbstractImageJob, ImageJob
from .views import image_response

__all__ = ["ImageJobAdmin"]

_SMALL, _LARGE = 64, 512  # pixels of an image's longer side


@admin.register(ImageJob)
class ImageJobAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # it takes none when it runs
    """For a model of your own with an ``owner``: ``admin.site.register(Poster, ImageJobAdmin)``.

    Search finds a job by its id or its task id. Prompts are JSON in the row, which no index
    covers, and are not searched.
    """

    list_display = (
        "thumbnail",
        "short_prompt",
        "state",
        "progress",
        "alias",
        "owner",
        "created_at",
    )
    list_display_links = ("thumbnail", "short_prompt")
    list_filter = ("state", "alias", "error_code", "created_at")
    list_select_related = ("owner",)
    list_per_page = 50
    show_full_result_count = False
    search_fields = ("task_id__exact",)
    search_help_text = _("Id or task id.")
    actions = ("poll_again",)
    view_on_site = False  # that page is its owner's
    fieldsets: ClassVar[Any] = [
        (None, {"fields": ["large_image", "full_prompt", "owner", "width", "height", "seed"]}),
        (_("State"), {"fields": ["state", "status", "progress", "error_code", "error"]}),
        (
            _("Course"),
            {"fields": ["created_at", "submitted_at", "finished_at", "next_poll_at", "attempts",
                        "failures"]},
        ),
        (_("Service"), {"fields": ["id", "alias", "task_id", "request_as_json"]}),
    ]  # fmt: skip
    readonly_fields = ("large_image", "full_prompt", "progress", "request_as_json")

    class Media:
        """Room for words, and none for more than a screen is wide."""

        css: ClassVar = {"all": ["imagelabs/admin.css"]}

    def has_add_permission(self, request: HttpRequest) -> bool:
        """A row without a request that was sent means nothing."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """What a row tells is what has happened."""
        return False

    def has_poll_permission(self, request: HttpRequest) -> bool:
        """Who could change the rows, if anybody could."""
        return super().has_change_permission(request)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """By primary key if that is what it looks like."""
        try:
            key = uuid.UUID(search_term.strip())
        except ValueError:
            return super().get_search_results(request, queryset, search_term)
        return queryset.filter(pk=key), False

    # Images ---------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        """Also that of a job's image, which its owner's page does not show to others."""
        view = self.admin_site.admin_view(self.image_view)
        own = path("<uuid:pk>/image/", view, name=self._image_name)
        return [own, *super().get_urls()]

    def image_view(self, request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
        """The image, for who may view the job."""
        job = self.get_object(request, str(pk))
        if job is None:
            raise Http404
        if not self.has_view_permission(request, job):
            raise PermissionDenied
        return image_response(request, job)

    @property
    def _image_name(self) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_image"

    def _image(self, job: AbstractImageJob, longer_side: int) -> str:
        if not job.image:
            return "–"
        scale = longer_side / max(job.width, job.height)
        return format_html(
            '<img src="{}" alt="{}" width="{}" height="{}" loading="lazy">',
            reverse(f"{self.admin_site.name}:{self._image_name}", args=[job.pk]),
            Truncator(job.prompt).chars(100),
            max(1, round(job.width * scale)),
            max(1, round(job.height * scale)),
        )

    @admin.display(description=_("image"))
    def thumbnail(self, job: AbstractImageJob) -> str:
        """Small, in the list."""
        return self._image(job, _SMALL)

    @admin.display(description=_("image"))
    def large_image(self, job: AbstractImageJob) -> str:
        """On its page."""
        return self._image(job, _LARGE)

    # Columns ----------------------------------------------------------------------------

    @admin.display(description=_("prompt"))
    def short_prompt(self, job: AbstractImageJob) -> str:
        """The prompt's beginning."""
        return Truncator(job.prompt).chars(60)

    @admin.display(description=_("prompt"))
    def full_prompt(self, job: AbstractImageJob) -> str:
        """The prompt."""
        return job.prompt

    @admin.display(description=_("progress"), ordering="fraction")
    def progress(self, job: AbstractImageJob) -> str:
        """In percent."""
        return "–" if job.percent is None else f"{job.percent} %"

    @admin.display(description=_("request"))
    def request_as_json(self, job: AbstractImageJob) -> str:
        """All fields of the request, as JSON."""
        return json.dumps(job.request, indent=2)

    # Doing ------------------------------------------------------------------------------

    @admin.action(description=_("Poll now, also at what was given up"), permissions=["poll"])
    def poll_again(self, request: HttpRequest, queryset: QuerySet[AbstractImageJob]) -> None:
        """Make jobs due; who polls is whichever driver, or page, comes next."""
        count = poll_now(queryset)
        text = ngettext("%d job is due now.", "%d jobs are due now.", count) % count
        self.message_user(request, text, messages.SUCCESS if count else messages.WARNING)

    def delete_model(self, request: HttpRequest, obj: AbstractImageJob) -> None:
        """The image, too, and first: an image without its row is never found again."""
        if obj.image:
            obj.image.delete(save=False)
        super().delete_model(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[AbstractImageJob]) -> None:
        """As `delete_model`, for many."""
        for job in queryset.exclude(image="").iterator(chunk_size=200):
            job.image.delete(save=False)
        super().delete_queryset(request, queryset)
