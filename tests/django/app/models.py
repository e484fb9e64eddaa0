"""Jobs of a site's own."""

from django.db import models

from imagelabs_sdk.contrib.django.models import AbstractImageJob


class Poster(AbstractImageJob):
    """With columns of its own, one of which the database watches over."""

    title = models.CharField(max_length=20, unique=True)


class Framed(Poster):
    """Shares a table with its parent."""

    frame = models.CharField(max_length=20, default="oak")

    class Meta:
        """Its parent's index is on the parent's table."""


class Draft(Poster):
    """A parent's rows by another name."""

    class Meta:
        proxy = True


class Album(AbstractImageJob):
    """With an owner, pages of its own, and a column named like a field of a request."""

    url_namespace = "albums"

    owner = models.ForeignKey("auth.User", models.CASCADE, null=True, db_constraint=False)
    tiling = models.CharField(max_length=20, default="")


class Own(AbstractImageJob):
    """With a ``Meta`` that inherits nothing."""

    class Meta:
        ordering = ("created_at",)
        db_table = "jobs_of_a_site_with_a_rather_long_name"
