"""The owner's pages: the list, trying again, changing, deleting, downloading, programs, limits."""

import json
import re
import uuid
from pathlib import Path
from typing import Any

import attrs
import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.core.files.base import ContentFile
from django.template import Context, Template
from django.test import Client
from django.utils import timezone

from imagelabs_sdk import ImageRequest
from imagelabs_sdk.contrib.django.forms import MAX_PROMPT, StartForm
from imagelabs_sdk.contrib.django.models import ImageJob, JobState
from imagelabs_sdk.contrib.django.signals import JobRefusedError, job_starting
from imagelabs_sdk.testing import FakeService
from tests.django.app.models import Album
from tests.django.fixtures import IMAGE, counts, due, files, known

pytestmark = pytest.mark.django_db(transaction=True)
START, LIST = "/images/", "/images/list/"
JSON, HTMX = {"Accept": "application/json"}, {"HX-Request": "true"}


@pytest.fixture(autouse=True)
def service(service: FakeService, media: Path) -> FakeService:
    known("task-9")  # whatever the test's rows of it say
    return service


@pytest.fixture
def owner() -> User:
    return User.objects.create_user("owner")


@pytest.fixture
def page(owner: User, client: Client) -> Client:
    client.force_login(owner)
    return client


@pytest.fixture
def stranger() -> Client:
    client = Client()
    client.force_login(User.objects.create_user("stranger"))
    return client


def make_job(owner: User, state: str = JobState.DONE, **columns: Any) -> ImageJob:
    request = ImageRequest("a lighthouse", width=512, height=384, seed=7, subseed=8)
    ended = state in (JobState.DONE, JobState.FAILED, JobState.UNKNOWN)
    now = timezone.now()
    given = {"task_id": "task-9", "next_poll_at": None if ended else now, **columns}
    job: ImageJob = ImageJob.objects.create(
        owner=owner, request=attrs.asdict(request), seed=7, width=512, height=384, state=state,
        submitted_at=now, finished_at=now if ended else None, **given,
    )  # fmt: skip
    if state == JobState.DONE:
        job.image.save("image.png", ContentFile(IMAGE))
    return job


def url(job: ImageJob, part: str = "") -> str:
    return f"{job.get_absolute_url()}{part}"


# The list ---------------------------------------------------------------------------------


def test_the_list_shows_the_visitors_jobs_newest_first_in_pages(
    page: Client, owner: User, stranger: Client
) -> None:
    """With small images; nobody else's."""
    jobs = [make_job(owner) for _ in range(30)]
    first = page.get(LIST)
    assert [job.pk for job in first.context["jobs"]] == [job.pk for job in jobs[:5:-1]]
    html = first.content.decode()
    assert url(jobs[-1], "thumbnail/") in html
    assert url(jobs[-1], "image/") not in html
    second = page.get(f"{LIST}?page=2")
    assert len(second.context["jobs"]) == 6
    assert 'rel="prev"' in second.content.decode()
    assert "Nothing yet." in stranger.get(LIST).content.decode()
    assert page.get(f"{LIST}?page=9").status_code == 404


def test_one_request_polls_for_the_whole_page(
    page: Client, owner: User, service: FakeService
) -> None:
    """Not one for each card; each job that is due takes its step."""
    service.never_finishes()
    for _ in range(3):
        make_job(owner, JobState.RUNNING)
    done = make_job(owner)
    html = page.get(LIST).content.decode()
    assert html.count("hx-get=") == 1
    assert f"#item-{done.pk}" not in html
    assert counts(service) == (0, 0, 0)
    page.get(LIST, headers=HTMX)
    assert counts(service) == (0, 3, 0)


def test_a_list_without_outstanding_jobs_asks_for_nothing(page: Client, owner: User) -> None:
    """It is finished."""
    make_job(owner)
    assert "hx-get=" not in page.get(LIST).content.decode()


def test_a_list_holds_no_thread_for_long(
    page: Client, owner: User, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it cannot poll in time is polled with the next request."""
    monkeypatch.setattr("imagelabs_sdk.contrib.django.views._A_LIST", -1.0)
    make_job(owner, JobState.RUNNING)
    assert page.get(LIST, headers=HTMX).status_code == 200
    assert counts(service) == (0, 0, 0)


def test_a_job_deleted_while_its_list_polls_is_left_out(
    page: Client, owner: User, service: FakeService
) -> None:
    """In another tab."""

    service.never_finishes().on_request = lambda _: ImageJob.objects.all().delete()
    make_job(owner, JobState.RUNNING)
    assert page.get(LIST, headers=HTMX).context["presenters"] == []


def test_programs_get_the_list_as_json(page: Client, owner: User) -> None:
    """The same as of each job."""
    job = make_job(owner)
    shown = page.get(LIST, headers=JSON).json()
    assert (shown["page"], shown["pages"]) == (1, 1)
    assert shown["jobs"][0]["thumbnail"] == url(job, "thumbnail/")


# Again ------------------------------------------------------------------------------------


def again(client: Client, job: ImageJob, **fields: str) -> Any:
    return client.post(url(job, "again/"), {"id": "button", **fields})


@pytest.mark.parametrize(
    ("state", "columns"),
    [
        (JobState.DONE, {}),
        (JobState.FAILED, {"error_code": "JobFailedError"}),
        (JobState.FAILED, {"task_id": "", "error_code": "RateLimitError"}),
    ],
)
def test_a_job_that_ended_is_tried_again_with_another_seed(
    state: str, columns: dict[str, Any], page: Client, owner: User, service: FakeService
) -> None:
    """The same request otherwise; a button pressed twice starts one job."""
    job = make_job(owner, state, **columns)
    html = page.get(url(job)).content.decode()
    assert f'action="{url(job, "again/")}"' in html
    assert "charged twice" not in html
    first, second = again(page, job), again(page, job)
    assert first.headers["Location"] == second.headers["Location"]
    new = ImageJob.objects.exclude(pk=job.pk).get()
    assert (new.prompt, new.width, new.owner) == (job.prompt, job.width, owner)
    assert new.seed != job.seed
    assert new.request["subseed"] != job.request["subseed"]
    assert service.count("submit") == 1


@pytest.mark.parametrize(
    ("state", "columns"),
    [
        (JobState.UNKNOWN, {"task_id": ""}),
        (JobState.FAILED, {"error_code": "JobTimeoutError"}),
    ],
)
def test_what_may_be_bought_already_is_tried_again_only_by_who_wants_that(
    state: str, columns: dict[str, Any], page: Client, owner: User, service: FakeService
) -> None:
    """With a plain warning."""
    job = make_job(owner, state, **columns)
    assert "charged twice" in page.get(url(job)).content.decode()
    assert again(page, job).headers["Location"] == url(job)
    assert service.count("submit") == 0
    again(page, job, anyway="1")
    assert service.count("submit") == 1


def test_a_job_that_is_outstanding_is_not_tried_again(
    page: Client, owner: User, service: FakeService
) -> None:
    """It may be a page of long ago."""
    service.never_finishes()
    job = make_job(owner, JobState.RUNNING)
    assert "again/" not in page.get(url(job)).content.decode()
    again(page, job)
    assert service.count("submit") == 0


def test_programs_try_again_too(page: Client, owner: User) -> None:
    """And get the new job."""
    job = make_job(owner)
    response = page.post(url(job, "again/"), headers=JSON)
    assert response.status_code == 201
    assert response.json()["id"] != str(job.pk)


def test_a_job_that_was_given_up_is_looked_for_again(
    page: Client, owner: User, service: FakeService
) -> None:
    """The service may have drawn it all the same; that costs nothing."""
    job = make_job(owner, JobState.FAILED, error_code="JobTimeoutError")
    html = page.get(url(job)).content.decode()
    assert url(job, "resume/") in html
    assert "Check again" in html
    assert page.post(url(job, "resume/")).headers["Location"] == url(job)
    page.get(url(job))
    job.refresh_from_db()
    assert (job.state, service.count("submit")) == (JobState.DONE, 0)


def test_the_form_can_be_filled_in_from_a_job(page: Client, owner: User, stranger: Client) -> None:
    """To change a word; nobody else's words."""
    job = make_job(owner)
    html = page.get(f"{START}?from={job.pk}").content.decode()
    assert re.search(r"<textarea[^>]*>\s*a lighthouse</textarea>", html)
    assert 'value="512"' in html
    for client, key in ((stranger, job.pk), (page, "nonsense"), (page, uuid.uuid4())):
        assert "a lighthouse" not in client.get(f"{START}?from={key}").content.decode()


def test_the_seed_that_a_page_shows_repeats_the_image(page: Client, service: FakeService) -> None:
    """The form promises it; also of a seed that was picked for the visitor."""
    page.post(START, {"prompt": "a lighthouse"})
    job = ImageJob.objects.get()
    assert f"Seed {job.seed}" in page.get(url(job)).content.decode()
    page.post(START, {"prompt": "a lighthouse", "seed": str(job.seed)})
    first, second = (sent.fields for sent in service.sent if sent.at == "submit")
    assert first == second


def test_a_form_filled_in_from_a_format_leaves_out_its_size() -> None:
    """Else another format would be an error."""
    request = attrs.asdict(ImageRequest("x", aspect_ratio="16:9", seed=0, subseed=1))
    assert StartForm.initial_from(request) == {"prompt": "x", "aspect_ratio": "16:9", "seed": 0}


# Deleting and downloading -----------------------------------------------------------------


def test_the_owner_deletes_a_job_with_its_image(page: Client, owner: User, media: Path) -> None:
    """And comes to the list."""
    job = make_job(owner)
    assert page.post(url(job, "delete/")).headers["Location"] == LIST
    assert not ImageJob.objects.exists()
    assert files(media) == []
    assert page.post(url(make_job(owner), "delete/"), headers=JSON).status_code == 204


@pytest.mark.parametrize("part", ["again/", "delete/", "resume/"])
def test_nobody_else_can_do_anything_with_a_job(part: str, owner: User, stranger: Client) -> None:
    """Nor by a link: these change something."""
    job = make_job(owner)
    assert stranger.post(url(job, part)).status_code == 404
    assert stranger.get(url(job, part)).status_code == 405
    assert Client().post(url(job, part)).status_code == 302
    careful = Client(enforce_csrf_checks=True)
    careful.force_login(owner)
    assert careful.post(url(job, part)).status_code == 403
    assert ImageJob.objects.count() == 1


def test_an_image_is_shown_or_downloaded(page: Client, owner: User) -> None:
    """By the address."""
    job = make_job(owner)
    for address, expected in (("image/", "inline"), ("image/?download", "attachment")):
        response = page.get(url(job, address))
        assert b"".join(response) == IMAGE
        assert response.headers["Content-Disposition"].startswith(expected)


def test_a_thumbnail_is_the_image_where_there_is_none(page: Client, owner: User) -> None:
    """It was small already, or Pillow is not installed."""
    job = make_job(owner)
    response = page.get(url(job, "thumbnail/"))
    assert b"".join(response) == IMAGE


def test_a_page_that_is_not_there_has_a_way_on(page: Client, owner: User) -> None:
    """For people; images and programs get the status alone."""
    gone = f"/images/{uuid.uuid4()}/"
    response = page.get(gone)
    assert response.status_code == 404
    assert f'href="{LIST}"' in response.content.decode()
    for headers in (JSON, HTMX, {"Sec-Fetch-Dest": "image"}):
        assert LIST not in page.get(gone, headers=headers).content.decode()


# The card ---------------------------------------------------------------------------------


def test_no_card_has_an_image_without_an_address(
    page: Client, owner: User, service: FakeService
) -> None:
    """Browsers show a broken icon for one."""
    service.progress(0.1).progress(0.5, preview=IMAGE)
    job = make_job(owner, JobState.RUNNING)
    first = page.get(url(job)).content.decode()
    assert "<img" not in first
    asked = re.search(r'hx-get="([^"]*)"', first)
    assert asked is not None
    due(job)
    part = page.get(asked[1].replace("&amp;", "&"), headers=HTMX).content.decode()
    assert re.findall(r"<img(?![^>]*src=)", part) == []
    assert part.count("<img") == 1


def test_a_preview_that_cannot_be_had_is_an_empty_image_to_pages(
    page: Client, owner: User, service: FakeService
) -> None:
    """Programs get a 404."""
    job = make_job(owner, JobState.RUNNING, preview_url=f"{service.url}/previews/task-9")
    assert page.get(url(job, "preview/")).status_code == 404
    blank = page.get(url(job, "preview/?blank"))
    assert (blank.status_code, blank.headers["Content-Type"]) == (200, "image/gif")
    assert blank.headers["Cache-Control"] == "no-store"


def test_a_tag_shows_the_card_of_a_job(page: Client, owner: User) -> None:
    """On a page of the site's own, whose forms it protects."""
    job = make_job(owner)
    template = Template("{% load imagelabs %}{% imagelabs_job job %}")
    html = template.render(Context({"job": job, "csrf_token": "secret-token"}))
    assert f'id="job-{job.pk}"' in html
    assert "secret-token" in html


def test_pages_are_written_right_to_left_where_the_language_is(
    page: Client, owner: User, settings: Any
) -> None:
    """The words of a prompt have a direction of their own."""
    settings.LANGUAGE_CODE = "he"
    job = make_job(owner)
    for address in (url(job), LIST, START):
        html = page.get(address).content.decode()
        assert '<html lang="he" dir="rtl">' in html
        assert 'dir="auto"' in html


# Programs ---------------------------------------------------------------------------------


def post_json(client: Client, body: Any) -> Any:
    text = body if isinstance(body, str) else json.dumps(body)
    return client.post(START, text, content_type="application/json", headers=JSON)


def test_a_program_starts_a_job_by_json_and_its_id_is_the_jobs(page: Client) -> None:
    """Sent again after a lost answer, it is the same job; another wish by that id is refused."""
    wish = {"id": str(uuid.uuid4()), "prompt": "a pier", "width": 512, "height": None}
    first, second = post_json(page, wish), post_json(page, wish)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] == second.json()["id"] == wish["id"]
    other = post_json(page, {**wish, "prompt": "a boat"})
    assert (other.status_code, list(other.json()["errors"])) == (409, ["id"])
    assert ImageJob.objects.count() == 1


def test_errors_of_all_fields_are_said_at_once(page: Client) -> None:
    """Nobody wants to learn them one by one."""
    response = post_json(page, {"prompt": " ", "width": 0, "height": 9999, "seed": -1})
    assert response.status_code == 422
    assert set(response.json()["errors"]) == {"prompt", "width", "height", "seed"}


@pytest.mark.parametrize("body", ["", "[1]", "{", "\ud800".encode("utf-8", "replace").decode()])
def test_a_body_that_is_no_json_object_is_an_empty_form(page: Client, body: str) -> None:
    """It says what is missing."""
    response = post_json(page, body)
    assert (response.status_code, list(response.json()["errors"])) == (422, ["prompt"])


def test_a_prompt_has_a_limit_that_counts_as_browsers_do(page: Client) -> None:
    """A line break is one character there; the page shows how many are left."""
    html = page.get(START).content.decode()
    assert f'maxlength="{MAX_PROMPT}"' in html
    assert "imagelabs/form.js" in html
    lines = "x\r\n" * (MAX_PROMPT // 2 - 1)
    assert page.post(START, {"prompt": f"{lines}xx"}).status_code == 302
    long = page.post(START, {"prompt": "x" * (MAX_PROMPT + 1)})
    assert long.status_code == 422


# Limits of a site -------------------------------------------------------------------------


@pytest.fixture
def one_at_a_time() -> Any:
    def limit(*, job: ImageJob, **_: object) -> None:
        owned = ImageJob.objects.filter(owner=job.owner, next_poll_at__isnull=False)
        if owned.exists():
            raise JobRefusedError("One image at a time, please.")

    job_starting.connect(limit)
    yield
    job_starting.disconnect(limit)


def test_a_site_refuses_a_job_with_a_message(
    one_at_a_time: None, page: Client, owner: User, service: FakeService
) -> None:
    """Before anything is stored or sent; the same form again is still the same job."""
    wish = {"prompt": "a pier", "id": str(uuid.uuid4())}
    assert page.post(START, wish).status_code == 302
    assert page.post(START, wish).status_code == 302
    refused = page.post(START, {"prompt": "a boat"})
    assert refused.status_code == 422
    assert "One image at a time" in refused.content.decode()
    ended = make_job(owner)
    assert "One image at a time" in again(page, ended).content.decode()
    assert service.count("submit") == 1
    with pytest.raises(JobRefusedError):
        ImageJob.objects.start("x", owner=owner)


def test_jobs_are_started_from_asynchronous_code(owner: User, service: FakeService) -> None:
    """As Django's own ORM offers it."""
    job = async_to_sync(ImageJob.objects.astart)("a pier", owner=owner)
    assert job.state == JobState.RUNNING
    now = async_to_sync(ImageJob.objects.agenerate_or_defer)("a boat", wait=10, owner=owner)
    assert now.state == JobState.DONE


# A model of the site's own ----------------------------------------------------------------


def test_the_pages_serve_a_model_of_the_sites_own(page: Client, owner: User) -> None:
    """Below addresses of its own; its column is no field of the request."""
    job = Album.objects.start(
        request=ImageRequest("a pier", tiling=True), owner=owner, tiling="kitchen"
    )
    assert job.request["tiling"] is True
    assert Album.objects.get().tiling == "kitchen"
    assert job.get_absolute_url() == f"/albums/{job.pk}/"
    html = page.get(due(job).get_absolute_url()).content.decode()
    assert 'href="/albums/list/"' in html
    assert f'src="/albums/{job.pk}/image/"' in html
    assert page.get("/albums/").status_code == 200
    assert not ImageJob.objects.exists()


def test_a_request_and_a_prompt_at_once_are_refused(owner: User) -> None:
    """One of them would be ignored."""
    for given in ({"prompt": "x"}, {"width": 8}):
        with pytest.raises(ValueError, match=r"either|in the ImageRequest"):
            ImageJob.objects.start(request=ImageRequest("x"), **given)
