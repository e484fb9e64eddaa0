import datetime
import uuid

import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models

import imagelabs_sdk.contrib.django.models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="SweepChain",
            fields=[
                ("backend", models.CharField(max_length=64, primary_key=True, serialize=False)),
                (
                    "at",
                    models.DateTimeField(
                        default=datetime.datetime(1970, 1, 1, 0, 0, tzinfo=datetime.timezone.utc)
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="ImageJob",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid.uuid4, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "alias",
                    models.CharField(default="default", max_length=64, verbose_name="client"),
                ),
                (
                    "task_id",
                    models.CharField(
                        blank=True, default="", max_length=256, verbose_name="task id"
                    ),
                ),
                (
                    "request",
                    models.JSONField(
                        help_text="The fields of the request, seeds too.", verbose_name="request"
                    ),
                ),
                ("seed", models.BigIntegerField(verbose_name="seed")),
                ("width", models.PositiveIntegerField(help_text="Pixels.", verbose_name="width")),
                ("height", models.PositiveIntegerField(help_text="Pixels.", verbose_name="height")),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("submitting", "being submitted"),
                            ("running", "running"),
                            ("done", "done"),
                            ("failed", "failed"),
                            ("unknown", "submission unknown"),
                        ],
                        default="submitting",
                        max_length=16,
                        verbose_name="state",
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        blank=True,
                        default="",
                        help_text="The service's own word.",
                        max_length=200,
                        verbose_name="status",
                    ),
                ),
                (
                    "fraction",
                    models.FloatField(
                        blank=True, help_text="0.0 to 1.0.", null=True, verbose_name="progress"
                    ),
                ),
                (
                    "preview_url",
                    models.TextField(
                        blank=True,
                        default="",
                        help_text="Not for pages: its host would see who polls.",
                        verbose_name="preview",
                    ),
                ),
                (
                    "picture",
                    models.FileField(
                        blank=True,
                        max_length=255,
                        storage=imagelabs_sdk.contrib.django.models.picture_storage,
                        upload_to=imagelabs_sdk.contrib.django.models.picture_name,
                        verbose_name="picture",
                    ),
                ),
                (
                    "error_code",
                    models.CharField(
                        blank=True,
                        default="",
                        help_text="The latest error's class; cleared by a poll that succeeds.",
                        max_length=64,
                        verbose_name="error",
                    ),
                ),
                (
                    "error",
                    models.CharField(
                        blank=True, default="", max_length=500, verbose_name="error's text"
                    ),
                ),
                (
                    "attempts",
                    models.PositiveIntegerField(
                        default=0, help_text="How often it was polled.", verbose_name="attempts"
                    ),
                ),
                (
                    "failures",
                    models.PositiveIntegerField(
                        default=0, help_text="Polls that failed in a row.", verbose_name="failures"
                    ),
                ),
                (
                    "next_poll_at",
                    models.DateTimeField(
                        blank=True,
                        help_text="Empty when nobody polls any more.",
                        null=True,
                        verbose_name="next poll",
                    ),
                ),
                (
                    "created_at",
                    models.DateTimeField(
                        default=django.utils.timezone.now, editable=False, verbose_name="created"
                    ),
                ),
                (
                    "submitted_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="submitted"),
                ),
                (
                    "finished_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="finished"),
                ),
                (
                    "owner",
                    models.ForeignKey(
                        blank=True,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                        verbose_name="owner",
                    ),
                ),
            ],
            options={
                "verbose_name": "image job",
                "verbose_name_plural": "image jobs",
                "ordering": ("-created_at",),
                "abstract": False,
                "indexes": [
                    models.Index(
                        condition=models.Q(("next_poll_at__isnull", False)),
                        fields=["next_poll_at"],
                        name="imagelabs_imagejob_due",
                    ),
                    models.Index(fields=["owner", "-created_at"], name="imagelabs_imagejob_owner"),
                ],
            },
        ),
    ]
