"""``{% imagelabs_job job %}``: the card of a job, for pages of your own."""

from typing import Any

from django import template
from django.template import RequestContext

from ..models import AbstractImageJob
from ..presenters import JobPresenter

__all__ = ["imagelabs_job"]

register = template.Library()


@register.inclusion_tag("imagelabs/_job.html", takes_context=True)
def imagelabs_job(context: RequestContext, job: AbstractImageJob) -> dict[str, Any]:
    """Return the context of the card, which polls for itself until the job has ended."""
    return {"presenter": JobPresenter(job), "csrf_token": context.get("csrf_token", "")}
