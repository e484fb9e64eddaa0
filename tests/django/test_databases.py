"""What databases differ in: their texts, their times, their errors."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.checks import run_checks
from django.db import DataError, connections
from django.test import Client
from django.utils import timezone

from imagelabs_sdk.contrib.django.checks import check_settings
from imagelabs_sdk.contrib.django.lifecycle import advance
from imagelabs_sdk.contrib.django.models import ImageJob, JobState
from imagelabs_sdk.contrib.django.sweep import Sweeper
from imagelabs_sdk.testing import FakeService
from tests.django.app.models import Own, Poster
from tests.django.app.settings import HAS_MARIADB
from tests.django.fixtures import ALIASES, PROMPT, counts, due, scripted, shared_databases

db = pytest.mark.django_db(transaction=True)
shared = pytest.mark.django_db(transaction=True, databases=["default", *ALIASES])
needs_mariadb = pytest.mark.skipif(not HAS_MARIADB, reason="no MariaDB on 127.0.0.1:3306")


# Texts ------------------------------------------------------------------------------------


@shared
@pytest.mark.parametrize("database", shared_databases)
@pytest.mark.parametrize(
    "status", ["In der Schlange 🐍🎨", "Queue \0 5", "\ud800", "x" * 5000, "Очередь", "\x1b[31mred"]
)
def test_an_odd_word_of_the_service_fits_every_database(
    status: str, database: str, service: FakeService
) -> None:
    """MySQL's utf8mb3 has no emoji, PostgreSQL no NUL; a job must not hang on a word."""
    service.progress(0.5, status=status).fails(status)
    job = due(ImageJob.objects.db_manager(database).start(PROMPT))
    assert advance(job)
    job = due(job)
    assert advance(job)
    job.refresh_from_db()
    assert job.state == JobState.FAILED
    assert len(job.status) <= 200


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_a_long_task_id_is_kept_whole(database: str, service: FakeService) -> None:
    """It is all that leads to an image that is paid for."""
    long = "t" * 4096
    service.answers({"task_id": long})
    job = ImageJob.objects.db_manager(database).start(PROMPT)
    job.refresh_from_db()
    assert (job.state, job.task_id) == (JobState.RUNNING, long)


@db
def test_rows_with_half_a_character_are_shown(service: FakeService) -> None:
    """Such a prompt of old breaks no list; an emoji is shown as it is."""
    odd = ImageJob.objects.create(
        request={"prompt": "a \ud800 pier", "negative_prompt": "\udfff"}, seed=1, width=8, height=8
    )
    emoji = ImageJob.objects.create(request={"prompt": "🗼"}, seed=1, width=8, height=8)
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    html = client.get("/admin/imagelabs/imagejob/").content.decode()
    assert "a ? pier" in html
    assert "🗼" in html
    for job in (odd, emoji):
        assert client.get(f"/admin/imagelabs/imagejob/{job.pk}/change/").status_code == 200


@pytest.mark.skipif("postgres" not in ALIASES, reason="no PostgreSQL on 127.0.0.1:5432")
@shared
def test_a_value_that_does_not_fit_a_column_of_the_sites_own_is_the_sites_error(
    service: FakeService,
) -> None:
    """The visitor's prompt is not to blame."""
    with pytest.raises(DataError, match="too long"):
        Poster.objects.db_manager("postgres").start(PROMPT, title="x" * 21)
    assert counts(service) == (0, 0, 0)


# Times ------------------------------------------------------------------------------------


@db
def test_a_clock_that_was_set_back_lets_no_row_wait(service: FakeService) -> None:
    """A time that is further ahead than any pause was written by another clock."""
    job = ImageJob.objects.start(PROMPT)
    tomorrow = timezone.now() + timedelta(days=1)
    ImageJob.objects.update(next_poll_at=tomorrow)
    job.refresh_from_db()
    assert (job.is_due, job.seconds_until_due) == (True, 0.0)
    with Sweeper() as sweeper:
        assert sweeper.sweep() == 1
    assert ImageJob.objects.get().state == JobState.DONE


@db
def test_no_pause_is_so_long_that_it_looks_like_a_clock_that_was_set_back(
    service: FakeService, settings: Any
) -> None:
    """A strategy may ask for hours."""
    settings.IMAGELABS = {"default": scripted(poll_interval=86_000.0)}
    service.never_finishes()
    job = ImageJob.objects.start(PROMPT)
    assert not job.is_due
    job = due(job)
    assert advance(job)
    assert not job.is_due
    assert job.seconds_until_due <= 300


def test_a_site_without_time_zones_is_told_to_use_them(settings: Any) -> None:
    """When summer time begins, all its jobs would be given up."""
    settings.IMAGELABS = {"default": {}}
    settings.USE_TZ = False
    (message,) = check_settings()
    assert (message.id, message.level) == ("imagelabs.E006", 40)
    assert "USE_TZ = True" in str(message.hint)


@needs_mariadb
@pytest.mark.django_db(transaction=True, databases=["default", "mariadb"])
def test_the_admin_needs_no_time_zone_tables(settings: Any) -> None:
    """MySQL and MariaDB have them empty, unless somebody has filled them."""
    settings.DATABASE_ROUTERS = ["tests.django.test_databases.JobsInMariaDB"]
    ImageJob.objects.create(request={"prompt": PROMPT}, seed=1, width=8, height=8)
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    for query in ("", "?created_at__gte=2020-01-01+00:00:00%2B00:00"):
        response = client.get(f"/admin/imagelabs/imagejob/{query}")
        assert (response.status_code, response.context["cl"].result_count) == (200, 1)


class JobsInMariaDB:
    def db_for_read(self, model: Any, **_: object) -> str | None:
        return "mariadb" if model is ImageJob else None

    db_for_write = db_for_read

    def allow_relation(self, *_: object, **__: object) -> bool:
        return True


# Indexes ----------------------------------------------------------------------------------


def indexed_columns(model: Any, alias: str = "default") -> set[str]:
    with connections[alias].cursor() as cursor:
        found = connections[alias].introspection.get_constraints(cursor, model._meta.db_table)
    return {entry["columns"][0] for entry in found.values() if entry["index"]}


@db
@pytest.mark.parametrize("model", [ImageJob, Poster, Own])
def test_every_model_has_the_index_of_what_is_due(model: Any) -> None:
    """Also one that has a ``Meta`` of its own, and a long name."""
    assert {"next_poll_at", "image"} <= indexed_columns(model)


@needs_mariadb
@pytest.mark.django_db(databases=["default", "mariadb"])
def test_no_database_warns_of_the_models() -> None:
    """A warning for each model, about which a site can do nothing, hides the others."""
    messages = run_checks(databases=["default", *ALIASES])
    assert [message for message in messages if "imagelabs" in str(message.obj)] == []
