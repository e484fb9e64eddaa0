"""The jobs in the admin: to look at, to be polled again, to delete; never to edit."""

import io
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.files.base import ContentFile
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from PIL import Image

from imagelabs_sdk.contrib.django.models import ImageJob, JobState, LeftoverFile
from tests.django.app.storage import FailingStorage
from tests.django.fixtures import IMAGE

LIST = "/admin/imagelabs/imagejob/"


@pytest.fixture(autouse=True)
def media(tmp_path: Path, settings: Any, db: None) -> Path:
    settings.MEDIA_ROOT = str(tmp_path / "media")
    settings.SECURE_CONTENT_TYPE_NOSNIFF = False
    return tmp_path / "media"


@pytest.fixture
def root(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("root"))
    return client


def staff(*permissions: str) -> Client:
    user = User.objects.create_user("staff", is_staff=True)
    codenames = [f"{name}_imagejob" for name in permissions]
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client = Client()
    client.force_login(user)
    return client


def make_job(prompt: str = "a lighthouse", **columns: Any) -> ImageJob:
    now = timezone.now()
    given = {"state": JobState.DONE, "task_id": "task-1", "finished_at": now, **columns}
    job: ImageJob = ImageJob.objects.create(
        request={"prompt": prompt}, seed=7, width=512, height=384, **given
    )
    if job.state == JobState.DONE:
        job.image.save("image.png", ContentFile(IMAGE))
    return job


def poll_again(client: Client, *jobs: ImageJob) -> Any:
    keys = [str(job.pk) for job in jobs]
    return client.post(LIST, {"action": "poll_again", "_selected_action": keys}, follow=True)


# Looking --------------------------------------------------------------------------------


def test_the_list_shows_how_jobs_stand(root: Client) -> None:
    """And small images, from an address of the admin's own: the storage may have none."""
    owner = User.objects.create_user("somebody")
    done = make_job("a pier <b>", owner=owner, fraction=1.0)
    make_job(state=JobState.RUNNING, fraction=0.25, next_poll_at=timezone.now())
    html = root.get(LIST).content.decode()
    for shown in (f'src="{LIST}{done.pk}/thumbnail/"', 'width="64" height="48"', "a pier &lt;b&gt;",
                  "100 %", "25 %", "somebody", "running"):  # fmt: skip
        assert shown in html
    assert "<b>" not in html
    assert "/media/" not in html


def test_the_list_asks_the_database_as_often_for_many_as_for_one(root: Client) -> None:
    """Owners come with their jobs."""

    def queries() -> int:
        with CaptureQueriesContext(
            connection,
        ) as asked:
            assert root.get(LIST).status_code == 200
        return len(asked)

    make_job(owner=User.objects.create_user("first"))
    for_one = queries()
    for number in range(10):
        make_job(owner=User.objects.create_user(f"user-{number}"))
    assert queries() == for_one


def test_a_jobs_page_shows_all_of_it_and_lets_nothing_be_changed(root: Client) -> None:
    """What a row tells is what has happened."""
    job = make_job("a\npier", status="Done")
    page = root.get(f"{LIST}{job.pk}/change/")
    html = page.content.decode()
    for shown in (str(job.pk), "task-1", f'src="{LIST}{job.pk}/image/"', 'width="512"'):
        assert shown in html
    assert not page.context["has_change_permission"]
    assert 'name="_save"' not in html
    assert str(job.image.name) not in html
    assert root.post(f"{LIST}{job.pk}/change/", {"state": "failed"}).status_code == 403
    assert root.get(f"{LIST}add/").status_code == 403


def test_a_job_without_an_image_has_a_page(root: Client) -> None:
    """It is the one that is looked for."""
    job = make_job(state=JobState.FAILED, error_code="JobFailedError", error="<i>no</i>")
    html = root.get(f"{LIST}{job.pk}/change/").content.decode()
    assert "JobFailedError" in html
    assert "<i>no</i>" not in html
    assert "<img" not in html


def test_the_list_can_be_narrowed_down(root: Client) -> None:
    """By state, client, error and day."""
    job = make_job(state=JobState.FAILED, error_code="JobFailedError", alias="other")
    make_job()
    for query in ("state__exact=failed", "alias=other", "error_code=JobFailedError"):
        listed = root.get(f"{LIST}?{query}").context["cl"].result_list
        assert list(listed) == [job]
    today = timezone.now()
    query = f"created_at__year={today.year}&created_at__month={today.month}"
    assert len(root.get(f"{LIST}?{query}").context["cl"].result_list) == 2


@pytest.mark.parametrize("term", ["id", "hex", "task"])
def test_a_job_is_found_by_its_ids(root: Client, term: str) -> None:
    """As they stand in logs, with dashes or without."""
    job = make_job(task_id="task-7")
    make_job(task_id="task-77")
    asked = {"id": f" {job.pk} ", "hex": job.pk.hex, "task": "task-7"}[term]
    assert list(root.get(LIST, {"q": asked}).context["cl"].result_list) == [job]
    assert not root.get(LIST, {"q": str(uuid.uuid4())}).context["cl"].result_list


# Permissions ----------------------------------------------------------------------------


def test_who_may_not_view_jobs_sees_neither_them_nor_their_images() -> None:
    """The images' address is no way around."""
    job = make_job()
    client = staff()
    for url in (LIST, f"{LIST}{job.pk}/change/", f"{LIST}{job.pk}/image/"):
        assert client.get(url).status_code == 403


def test_who_is_no_staff_is_sent_to_the_login() -> None:
    """An image's owner included: their page is elsewhere."""
    owner = User.objects.create_user("owner")
    job = make_job(owner=owner)
    client = Client()
    client.force_login(owner)
    response = client.get(f"{LIST}{job.pk}/image/")
    assert response.status_code == 302
    assert "/login/" in response.headers["Location"]


def test_who_may_view_jobs_sees_images_safely() -> None:
    """As their owner does: typed by their bytes, and kept by browsers."""
    job = make_job()
    client = staff("view")
    response = client.get(f"{LIST}{job.pk}/image/")
    assert b"".join(response) == IMAGE
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    again = client.get(
        f"{LIST}{job.pk}/image/", headers={"If-None-Match": response.headers["ETag"]}
    )
    assert again.status_code == 304
    assert client.get(f"{LIST}{uuid.uuid4()}/image/").status_code == 404


# Doing ----------------------------------------------------------------------------------


def test_poll_now_makes_a_job_due_that_was_given_up(root: Client) -> None:
    """The service may have drawn it after all."""
    job = make_job(state=JobState.FAILED, error_code="JobTimeoutError")
    answer = poll_again(root, job)
    job.refresh_from_db()
    assert (job.state, job.is_due) == (JobState.RUNNING, True)
    assert "1 job is due now." in answer.content.decode()


def test_poll_now_leaves_alone_what_is_done_or_was_never_accepted(root: Client) -> None:
    """There is nothing to look for."""
    jobs = [make_job(), make_job(state=JobState.UNKNOWN, task_id="")]
    answer = poll_again(root, *jobs)
    assert not ImageJob.objects.filter(next_poll_at__isnull=False).exists()
    assert "0 jobs are due now." in answer.content.decode()


@pytest.mark.parametrize(("permissions", "allowed"), [(["view"], False), (["change"], True)])
def test_poll_now_is_for_who_could_change_jobs(permissions: list[str], allowed: bool) -> None:
    """It makes work for the service."""
    job = make_job(state=JobState.FAILED)
    client = staff(*permissions)
    assert ("poll_again" in client.get(LIST).content.decode()) is allowed
    poll_again(client, job)
    job.refresh_from_db()
    assert job.is_outstanding is allowed


@pytest.mark.django_db(transaction=True)
def test_deleting_a_job_deletes_its_image(root: Client, media: Path) -> None:
    """One by one, and many at once; who deletes an image wants it gone."""
    jobs = [make_job() for _ in range(3)]
    assert len(list(media.rglob("*.png"))) == 3
    root.post(f"{LIST}{jobs[0].pk}/delete/", {"post": "yes"})
    assert len(list(media.rglob("*.png"))) == ImageJob.objects.count() == 2
    make_job(state=JobState.FAILED)
    keys = [str(job.pk) for job in ImageJob.objects.all()]
    root.post(LIST, {"action": "delete_selected", "_selected_action": keys, "post": "yes"})
    assert not list(media.rglob("*.png"))
    assert not ImageJob.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_deleting_survives_a_storage_that_fails(root: Client) -> None:
    """The row goes; `imagelabs_prune` deletes the file later."""
    job = make_job()
    FailingStorage.fails = "delete"
    answer = root.post(f"{LIST}{job.pk}/delete/", {"post": "yes"})
    assert answer.status_code == 302
    assert not ImageJob.objects.exists()
    assert LeftoverFile.objects.get().name == job.image.name


def test_what_was_never_accepted_can_be_sent_again(root: Client) -> None:
    """What may have been accepted cannot: it might be bought twice."""
    refused = make_job(state=JobState.FAILED, task_id="")
    unknown = make_job(state=JobState.UNKNOWN, task_id="")
    keys = [str(job.pk) for job in (refused, unknown)]
    answer = root.post(LIST, {"action": "submit_again", "_selected_action": keys}, follow=True)
    assert "1 job is due now." in answer.content.decode()
    refused.refresh_from_db()
    assert (refused.state, refused.is_due) == (JobState.QUEUED, True)


def test_the_list_shows_thumbnails(root: Client) -> None:
    """A page of fifty images in full would be hundreds of megabytes."""
    job = make_job()
    data = io.BytesIO()
    Image.new("RGB", (64, 64)).save(data, "WEBP")
    job.thumbnail.save("thumbnail.webp", ContentFile(data.getvalue()))
    small = root.get(f"{LIST}{job.pk}/thumbnail/")
    assert small.headers["Content-Type"] == "image/webp"
    assert b"".join(small) == data.getvalue()
    full = root.get(f"{LIST}{job.pk}/image/")
    full.close()
    assert full.headers["ETag"] != small.headers["ETag"]


@pytest.mark.parametrize("term", ["somebody", "LIGHTHOUSE"])
def test_a_job_is_found_by_its_owner_and_its_prompt(root: Client, term: str) -> None:
    """What a person on the telephone can say."""
    job = make_job("a Lighthouse", owner=User.objects.create_user("somebody"))
    make_job("a pier")
    assert list(root.get(LIST, {"q": term}).context["cl"].result_list) == [job]


def test_who_may_not_delete_cannot() -> None:
    """Neither one nor many."""
    job = make_job(finished_at=timezone.now() - timedelta(days=1))
    client = staff("view", "change")
    assert client.post(f"{LIST}{job.pk}/delete/", {"post": "yes"}).status_code == 403
    assert "delete_selected" not in client.get(LIST).content.decode()
