"""Pages over the rows: who may see what, what a page asks of the service, what it says."""

import ast
import gettext
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.core.files.base import ContentFile
from django.db import connections
from django.template.loader import render_to_string
from django.test import Client, RequestFactory
from django.urls import resolve, reverse
from django.utils import timezone, translation

from imagelabs_sdk import HttpResponse, ImageRequest, InvalidRequestError, errors
from imagelabs_sdk.contrib.django import presenters, views
from imagelabs_sdk.contrib.django.conf import sweep_settings
from imagelabs_sdk.contrib.django.forms import StartForm
from imagelabs_sdk.contrib.django.lifecycle import advance
from imagelabs_sdk.contrib.django.models import ImageJob, JobState
from imagelabs_sdk.contrib.django.presenters import JobPresenter
from imagelabs_sdk.testing import FakeService, serve_in_thread
from tests.django.fixtures import IMAGE, known, scripted

APP = Path(views.__file__).parent
START = "/images/"
UUID = uuid.UUID(int=7)
JSON = {"Accept": "application/json"}
HTMX = {"HX-Request": "true", "HX-Current-URL": "http://testserver/gallery/?page=2"}
JPEG = b"\xff\xd8\xff\xe0" + b"\0" * 40 + b"\xff\xd9"
WISH = {"prompt": "a lighthouse", "width": "512", "height": "384", "seed": "7"}


@pytest.fixture(autouse=True)
def service(service: FakeService, media: Path, settings: Any) -> Iterator[FakeService]:
    """A service that is half done, with a preview."""
    settings.SECURE_CONTENT_TYPE_NOSNIFF = False  # what is safe here is safe in a careless site
    settings.IMAGELABS = {"default": scripted(poll_interval=None)}
    known("task-1")
    cache.clear()
    yield service.progress(0.5, preview=IMAGE)
    cache.clear()


@pytest.fixture
def owner(db: None) -> User:
    return User.objects.create_user("owner")


@pytest.fixture
def page(owner: User, client: Client) -> Client:
    client.force_login(owner)
    return client


@pytest.fixture
def stranger(db: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("stranger"))
    return client


def make_job(owner: User | None, prompt: str = "a lighthouse", **columns: Any) -> ImageJob:
    """A row that was accepted and is due."""
    request = ImageRequest(prompt, width=512, height=384, seed=7, subseed=8)
    now = timezone.now()
    given = {"state": JobState.RUNNING, "task_id": "task-1", "next_poll_at": now, **columns}
    job: ImageJob = ImageJob.objects.create(
        owner=owner, request=attrs.asdict(request), seed=7, width=512, height=384,
        submitted_at=now, **given,
    )  # fmt: skip
    return job


def make_done(owner: User | None, data: bytes = IMAGE, **columns: Any) -> ImageJob:
    """A row with its image stored."""
    job = make_job(owner, **{"state": JobState.DONE, "next_poll_at": None, **columns})
    job.finished_at = timezone.now()
    job.image.save("image.png", ContentFile(data))
    return job


def body(response: Any) -> bytes:
    return b"".join(response) if response.streaming else bytes(response.content)


# Who ------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["", "image/", "preview/"])
@pytest.mark.parametrize("accept", [{}, JSON, HTMX], ids=["page", "json", "htmx"])
def test_a_stranger_finds_nothing_anywhere(
    owner: User, stranger: Client, part: str, accept: dict[str, str]
) -> None:
    """Not even a superuser: these are the owner's pages; the admin has its own."""
    for job in (make_job(owner, preview_url="x"), make_done(owner), make_done(None)):
        assert stranger.get(job.get_absolute_url() + part, headers=accept).status_code == 404


def test_a_strangers_visit_asks_the_service_nothing(
    owner: User, stranger: Client, service: FakeService
) -> None:
    """Who may not poll must not cause work."""
    stranger.get(make_job(owner).get_absolute_url())
    assert not service.sent


@pytest.mark.parametrize("part", ["", "image/", "preview/"])
def test_who_is_not_logged_in_is_sent_to_the_login_page(
    owner: User, client: Client, part: str
) -> None:
    """And comes back from there."""
    url = make_done(owner).get_absolute_url() + part
    response = client.get(url)
    assert response.status_code == 302
    assert response.url == f"/admin/login/?next={url}"  # type: ignore[attr-defined]


def test_a_card_whose_session_has_expired_sends_the_whole_page_to_the_login(
    owner: User, client: Client
) -> None:
    """Swapped into the card, a login page would be a riddle."""
    response = client.get(make_job(owner).get_absolute_url(), headers=HTMX)
    assert response.status_code == 204
    login = "/admin/login/?next=http%3A//testserver/gallery/%3Fpage%3D2"
    assert response.headers["HX-Redirect"] == login


def test_a_program_that_is_not_logged_in_is_told_so(client: Client, db: None) -> None:
    """It can do nothing with a login page."""
    response = client.post(START, WISH, headers=JSON)
    assert response.status_code == 401
    assert response.json() == {"message": "Log in first."}


# Start ----------------------------------------------------------------------------------


def key_of(response: Any) -> str:
    """The hidden id of the form that was answered."""
    value = re.search(r'name="id" value="([^"]+)"', response.content.decode())
    assert value is not None
    return value[1]


@pytest.mark.django_db(transaction=True)
def test_the_form_becomes_a_job_of_who_sent_it(
    page: Client, owner: User, service: FakeService
) -> None:
    """The short way: a form, a press, the job's page."""
    form = page.get(START)
    response = page.post(START, {"id": key_of(form), "negative_prompt": "fog", **WISH})
    job = ImageJob.objects.get()
    assert response.status_code == 302
    assert response.headers["Location"] == job.get_absolute_url() == f"/images/{job.pk}/"
    assert (job.owner, job.alias, job.state) == (owner, "default", JobState.RUNNING)
    assert job.request["negative_prompt"] == "fog"
    assert (job.width, job.height, job.seed) == (512, 384, 7)
    assert service.count("submit") == 1


@pytest.mark.django_db(transaction=True)
def test_a_format_sets_the_size(page: Client) -> None:
    """As the SDK reads it."""
    page.post(START, {"prompt": "a pier", "aspect_ratio": "1:1", "width": ""})
    job = ImageJob.objects.get()
    assert job.width == job.height


@pytest.mark.django_db(transaction=True)
def test_pressing_twice_buys_one_image(page: Client, service: FakeService) -> None:
    """A double click, and a reload that sends the form again."""
    key = key_of(page.get(START))
    first, second = (page.post(START, {"id": key, **WISH}) for _ in range(2))
    assert first.headers["Location"] == second.headers["Location"]
    assert service.count("submit") == ImageJob.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_going_back_and_asking_for_something_else_is_another_job(page: Client) -> None:
    """A browser's "back" brings the old form, its hidden id too; the old image is not meant."""
    key = key_of(page.get(START))
    first = page.post(START, {"id": key, **WISH})
    second = page.post(START, {"id": key, **WISH, "prompt": "a pier"})
    assert first.headers["Location"] != second.headers["Location"]
    assert {job.prompt for job in ImageJob.objects.all()} == {"a lighthouse", "a pier"}


@pytest.mark.django_db(transaction=True)
def test_nobody_meets_anothers_job_by_its_id(
    page: Client, stranger: Client, owner: User, service: FakeService
) -> None:
    """Neither the id of a row nor that of a form leads to what is somebody else's."""
    key = str(uuid.uuid4())
    page.post(START, {"id": key, **WISH})
    mine = ImageJob.objects.get()
    for given in (key, str(mine.pk)):
        response = stranger.post(START, {"id": given, **WISH}, headers=JSON)
        assert (response.status_code, list(response.json()["errors"])) == (409, ["id"])
        page_of_theirs = stranger.post(START, {"id": given, **WISH}).headers["Location"]
        assert page_of_theirs != mine.get_absolute_url()
    assert ImageJob.objects.filter(owner=owner).get() == mine
    assert service.count("submit") == 2  # the same form of the stranger's is one job, too


@pytest.mark.django_db(transaction=True)
def test_a_program_gets_the_job_as_json(page: Client) -> None:
    """It needs no id of its own, unless it wants to repeat itself safely."""
    response = page.post(START, WISH, headers=JSON)
    job = ImageJob.objects.get()
    assert response.status_code == 201
    assert response.headers["Location"] == job.get_absolute_url()
    assert response.json()["id"] == str(job.pk)


@pytest.mark.django_db(transaction=True)
def test_a_service_that_refuses_is_told_of_on_the_jobs_page(
    page: Client, service: FakeService
) -> None:
    """The page that starts a job does not fail because the service does."""
    service.refuses(status=500, at="submit")
    response = page.post(START, WISH, follow=True)
    assert response.status_code == 200
    assert ImageJob.objects.get().state in (JobState.FAILED, JobState.UNKNOWN)


@pytest.mark.parametrize(
    ("wish", "field", "english", "german"),
    [
        ({"prompt": " "}, "prompt", "Say what", "Bitte angeben"),
        ({"width": "0"}, "width", "whole number of pixels, 1 to 4096", "von Pixeln"),
        ({"height": "4097"}, "height", "whole number of pixels, 1 to 4096", "von Pixeln"),
        ({"width": "wide"}, "width", "Enter a whole number", "ganze Zahl"),
        ({"aspect_ratio": "1:99"}, "aspect_ratio", "Must be like 16:9, between 1:8", "Muss wie"),
        ({"aspect_ratio": "16:9"}, "width", "not both", "nicht beides"),
        ({"seed": "-1"}, "seed", "Must be a whole number, 0 to", "Muss eine ganze Zahl"),
        ({"id": "mine"}, "id", "valid UUID", "UUID"),
        ({"prompt": "a\0b"}, "prompt", "Null characters", "Nullzeichen"),
    ],
)
def test_what_cannot_be_drawn_is_said_at_its_field(
    page: Client, wish: dict[str, str], field: str, english: str, german: str
) -> None:
    """By the SDK's own rules, in the visitor's language; nothing is stored."""
    response = page.post(START, {**WISH, **wish}, headers=JSON)
    assert response.status_code == 422
    assert english in response.json()["errors"][field][0]
    with translation.override("de"):
        assert german in StartForm({**WISH, **wish}).errors[field][0]
    form = page.post(START, {**WISH, **wish})
    assert form.status_code == 422
    assert form.context["form"].errors.keys() == {field}
    assert not ImageJob.objects.exists()


def test_a_form_with_errors_keeps_its_id_and_what_was_typed(page: Client) -> None:
    """Mending one field must not lose the others, nor the guard against pressing twice."""
    key = str(uuid.uuid4())
    response = page.post(START, {**WISH, "id": key, "width": "0", "prompt": "<b>pier</b>"})
    assert key_of(response) == key
    assert "&lt;b&gt;pier&lt;/b&gt;" in response.content.decode()


def test_what_only_the_database_refuses_is_an_error_of_the_form(
    page: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is nobody's field."""

    def refuse(*_: object, **__: object) -> None:
        raise InvalidRequestError("request: the database cannot hold it", field="request")

    monkeypatch.setattr(type(ImageJob.objects), "start", refuse)
    response = page.post(START, WISH, headers=JSON)
    assert response.status_code == 422
    assert response.json() == {"errors": {"__all__": ["request: the database cannot hold it"]}}


def test_a_form_of_fewer_fields_asks_for_fewer(db: None) -> None:
    """A site that offers only a prompt needs only leave fields out."""

    class Short(StartForm):
        id = width = height = seed = aspect_ratio = negative_prompt = None  # type: ignore[assignment]

    form = Short({"prompt": "a pier"})
    assert form.is_valid()
    assert form.image_request == ImageRequest("a pier")


@pytest.mark.django_db(transaction=True)
def test_a_form_without_an_id_works(page: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then pressing twice buys twice, as the site has chosen."""

    class Short(StartForm):
        id = None  # type: ignore[assignment]

    monkeypatch.setattr(views.StartView, "form_class", Short)
    assert page.post(START, {"prompt": "a pier"}).status_code == 302


@pytest.mark.django_db(transaction=True)
def test_the_visitor_does_not_choose_the_client(page: Client, settings: Any) -> None:
    """Nor the owner, nor any column."""
    other = User.objects.create_user("other")
    settings.IMAGELABS = {**settings.IMAGELABS, "dear": {}}
    page.post(START, {**WISH, "alias": "dear", "owner": other.pk, "state": "done"})
    job = ImageJob.objects.get()
    assert (job.alias, job.state) == ("default", JobState.RUNNING)
    assert job.owner != other


@pytest.mark.django_db(transaction=True)
def test_a_site_chooses_the_client_where_it_mounts_the_view(
    owner: User, settings: Any, rf: RequestFactory
) -> None:
    """As it does its own model."""
    settings.IMAGELABS = {"dear": settings.IMAGELABS["default"]}
    request = rf.post("/", WISH)
    request.user, request.csrf_processing_done = owner, True  # type: ignore[attr-defined]
    response = views.StartView.as_view(alias="dear", model=ImageJob)(request)
    assert response.status_code == 302
    assert ImageJob.objects.get().alias == "dear"


@pytest.mark.parametrize("middleware", ["with", "without"])
def test_a_foreign_site_cannot_start_a_job(owner: User, settings: Any, middleware: str) -> None:
    """Even where the site has left out the middleware."""
    if middleware == "without":
        settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "Csrf" not in name]
    client = Client(enforce_csrf_checks=True)
    client.force_login(owner)
    assert client.post(START, WISH).status_code == 403
    assert not ImageJob.objects.exists()
    form = client.get(START)
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', form.content.decode())
    assert token is not None
    assert client.post(START, {**WISH, "csrfmiddlewaretoken": token[1]}).status_code == 302


# Status ---------------------------------------------------------------------------------


def test_five_tabs_cost_the_service_no_more_than_one(
    page: Client, owner: User, service: FakeService
) -> None:
    """Whoever comes first polls; the row tells the others."""
    url = make_job(owner).get_absolute_url()
    answers = [page.get(url, headers=JSON).json() for _ in range(5)]
    assert service.count("progress") == 1
    assert {answer["percent"] for answer in answers} == {50}


def test_five_tabs_at_the_same_moment_cost_one_poll(
    page: Client, owner: User, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All have read the row while it was due; the lease lets one of them poll."""
    job = make_job(owner)
    rows = [ImageJob.objects.get(pk=job.pk) for _ in range(5)]
    monkeypatch.setattr(views.JobView, "get_job", lambda _: rows.pop())
    answers = [page.get(job.get_absolute_url(), headers=JSON).json() for _ in range(5)]
    assert not rows
    assert service.count("progress") == 1
    assert [answer["percent"] for answer in answers] == [50] * 5


def test_the_page_takes_the_job_to_its_end(page: Client, owner: User) -> None:
    """No worker is needed, as long as somebody watches."""
    known("task-1").done()
    job = make_job(owner)
    answer = page.get(job.get_absolute_url(), headers=JSON).json()
    assert answer["state"] == "done"
    assert answer["image"] == f"{job.get_absolute_url()}image/"
    assert answer["refresh"] is None
    assert body(page.get(answer["image"])) == IMAGE


def test_json_tells_all_that_a_page_needs(page: Client, owner: User) -> None:
    """And of the service's addresses nothing."""
    job = make_job(owner)
    url = job.get_absolute_url()
    answer = page.get(url, headers=JSON).json()
    job.refresh_from_db()
    preview = answer.pop("preview")
    assert re.fullmatch(rf"{url}preview/\?\w{{16}}", preview)
    assert answer.pop("created_at")
    assert answer == {
        "id": str(job.pk),
        "url": url,
        "state": "running",
        "status": "Processing",
        "percent": 50,
        "seconds_left": None,
        "error_code": "",
        "message": "Being drawn.",
        "image": None,
        "thumbnail": None,
        "seed": 7,
        "width": 512,
        "height": 384,
        "finished_at": None,
        "refresh": JobPresenter(job).refresh,
    }


@pytest.mark.parametrize(
    "accept", ["application/json", "application/json, text/html;q=0.5", "text/plain, application/*"]
)
def test_json_is_for_who_prefers_it(page: Client, owner: User, accept: str) -> None:
    """By the header alone."""
    url = make_done(owner).get_absolute_url()
    assert page.get(url, headers={"Accept": accept}).headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("accept", ["*/*", "text/html,application/json;q=0.9", "image/png"])
def test_everybody_else_gets_the_page(page: Client, owner: User, accept: str) -> None:
    """Also who accepts neither: a page is more help than a refusal."""
    response = page.get(make_done(owner).get_absolute_url(), headers={"Accept": accept})
    assert response.templates[0].name == "imagelabs/job.html"


def test_no_cache_keeps_what_changes(page: Client, owner: User) -> None:
    """Nor gives one form of it to who asked for the other."""
    for response in (page.get(make_job(owner).get_absolute_url()), page.get(START)):
        assert {"no-store", "private"} <= set(response.headers["Cache-Control"].split(", "))
        assert {"Accept", "HX-Request"} <= set(response.headers["Vary"].split(", "))


def test_htmx_gets_the_card_alone(page: Client, owner: User) -> None:
    """It is put in the place of the one before."""
    response = page.get(make_job(owner).get_absolute_url(), headers=HTMX)
    assert [used.name for used in response.templates] == ["imagelabs/_job.html"]


@pytest.mark.parametrize("whole", ["HX-Boosted", "HX-History-Restore-Request"])
def test_htmx_gets_the_whole_page_where_it_shows_whole_pages(
    page: Client, owner: User, whole: str
) -> None:
    """A boosted link to a job, and the way back to it."""
    headers = {**HTMX, whole: "true"}
    response = page.get(make_job(owner).get_absolute_url(), headers=headers)
    assert response.templates[0].name == "imagelabs/job.html"


def test_a_running_card_asks_again_and_a_finished_one_stops(page: Client, owner: User) -> None:
    """It stops by having no trigger, and without JavaScript by not refreshing."""
    soon = timezone.now() + timedelta(seconds=1.5)
    job = make_job(owner, next_poll_at=soon, fraction=0.5)
    html = page.get(job.get_absolute_url()).content.decode()
    assert 'hx-trigger="every 2s"' in html
    key = JobPresenter(job).preview_key
    assert f'hx-get="{job.get_absolute_url()}?seen=drawing&amp;shown={key}"' in html
    assert '<noscript><meta http-equiv="refresh" content="3"></noscript>' in html
    assert 'value="50"' in html
    html = page.get(make_done(owner).get_absolute_url()).content.decode()
    for word in ("hx-", 'http-equiv="refresh"', "aria-busy", "<progress"):
        assert word not in html


@pytest.mark.parametrize(("seconds", "refresh"), [(0.0, 1), (2.5, 3), (60.0, 3)])
def test_a_page_asks_its_row_more_often_than_the_row_asks_the_service(
    owner: User, seconds: float, refresh: int
) -> None:
    """Asking a row is cheap, and somebody else may have settled it."""
    job = make_job(owner, next_poll_at=timezone.now() + timedelta(seconds=seconds))
    assert JobPresenter(job).refresh == refresh


def test_only_news_is_said_aloud(page: Client, owner: User) -> None:
    """A live region that is filled anew each second is read anew each second."""
    url = make_job(owner, fraction=0.5).get_absolute_url()
    page.get(url)
    says = 'role="status"'
    assert says not in page.get(f"{url}?seen=drawing", headers=HTMX).content.decode()
    assert says in page.get(f"{url}?seen=waiting", headers=HTMX).content.decode()
    assert says in page.get(f"{url}?seen=drawing").content.decode()


def test_a_preview_stays_until_the_next_image_is_loaded(page: Client, owner: User) -> None:
    """Else the frame would be empty for a moment, each second."""
    url = make_job(owner).get_absolute_url()
    page.get(url)
    key = JobPresenter(ImageJob.objects.get()).preview_key
    before = page.get(f"{url}?seen=drawing&shown=before%22", headers=HTMX).content.decode()
    assert '-preview-before&quot;" hx-preserve="true" alt="">' in before
    same = page.get(f"{url}?seen=drawing&shown={key}", headers=HTMX).content.decode()
    assert same.count(f'-preview-{key}" hx-preserve="true" src=') == 1
    assert same.count("<img") == 1


def test_a_page_whose_service_hangs_is_shown_in_time(
    page: Client, owner: User, service: FakeService
) -> None:
    """What comes of the poll is in the row; the page shows what is known."""
    known("task-1").hangs(at="progress")
    response = page.get(make_job(owner).get_absolute_url(), headers=JSON)
    assert service.clock.elapsed == pytest.approx(views._A_POLL)
    assert response.json()["state"] == "running"
    assert ImageJob.objects.get().failures == 1


@pytest.mark.parametrize(
    "trouble", [HttpResponse(500), HttpResponse(200, {}, b"<html>"), HttpResponse(404)]
)
def test_a_page_never_fails_because_the_service_does(
    page: Client, owner: User, trouble: HttpResponse
) -> None:
    """Whatever it answers."""
    known("task-1").answers(trouble, at="progress")
    assert page.get(make_job(owner).get_absolute_url()).status_code == 200


def test_a_page_of_a_client_that_is_gone_from_the_settings_is_shown(
    page: Client, owner: User
) -> None:
    """Its preview is not."""
    job = make_job(owner, alias="former", preview_url="http://127.0.0.1/p.png")
    assert page.get(job.get_absolute_url()).status_code == 200
    assert page.get(f"{job.get_absolute_url()}preview/").status_code == 404


def test_a_job_that_is_deleted_while_a_page_polls_is_not_there(
    page: Client, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody prunes, or deletes it in the admin."""
    job = make_job(owner)
    row = ImageJob.objects.get(pk=job.pk)
    ImageJob.objects.all().delete()
    monkeypatch.setattr(views.JobView, "get_job", lambda _: row)
    assert page.get(job.get_absolute_url()).status_code == 404


def test_pages_are_outside_of_transactions(
    page: Client, owner: User, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `ATOMIC_REQUESTS` a poll would keep a connection idle in a transaction."""
    for alias in connections:
        monkeypatch.setitem(connections.settings[alias], "ATOMIC_REQUESTS", True)
    url = make_job(owner).get_absolute_url()
    assert page.get(url, headers=JSON).json()["percent"] == 50
    for name in ("start", "job", "image", "preview"):
        view = resolve(reverse(f"imagelabs:{name}", args=[] if name == "start" else [UUID])).func
        assert view._non_atomic_requests == set(connections)  # type: ignore[attr-defined]


def test_what_people_typed_is_text(page: Client, owner: User) -> None:
    """In the page, its title, and as the image's description."""
    evil = "\"><script>alert(1)</script>' onerror='x"
    html = page.get(make_done(owner, prompt=evil).get_absolute_url()).content.decode()
    assert "<script>" not in html
    assert "onerror='" not in html
    assert html.count("&quot;&gt;&lt;script&gt;") == 3


def test_numbers_are_numbers_in_every_language(page: Client, owner: User, settings: Any) -> None:
    """An attribute with a thousands separator is none."""
    settings.USE_THOUSAND_SEPARATOR = True
    job = make_done(owner)
    ImageJob.objects.update(width=1152)
    assert 'width="1152"' in page.get(job.get_absolute_url()).content.decode()


def test_nothing_in_the_pages_is_inline(page: Client, owner: User) -> None:
    """What a strict Content-Security-Policy would not run."""
    for url in (START, make_job(owner).get_absolute_url(), make_done(owner).get_absolute_url()):
        html = page.get(url).content.decode()
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:", html)


# What is said ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "phase", "words"),
    [
        ({"state": "queued", "task_id": ""}, "queued", "Waiting to be sent"),
        ({"state": "submitting", "task_id": ""}, "submitting", "on its way"),
        ({"fraction": None}, "waiting", "Waiting"),
        ({"fraction": 0.0}, "waiting", "Waiting"),
        ({"fraction": 0.1}, "drawing", "Being drawn"),
        ({"fraction": 0.1, "failures": 2}, "drawing", "Being drawn"),
        ({"fraction": 0.1, "failures": 3}, "trouble", "longer than usual"),
        ({"state": "done"}, "done", "is ready"),
        ({"state": "unknown"}, "unknown", "cannot tell"),
        ({"state": "failed", "error_code": "JobFailedError"}, "failed", "other words"),
        ({"state": "failed", "error_code": "PermissionError"}, "failed", "on our side"),
    ],
)
def test_each_state_is_told_in_plain_words(
    page: Client, owner: User, columns: dict[str, Any], phase: str, words: str
) -> None:
    """With what one can do about it; never in the service's words, or a program's."""
    later = (
        None
        if columns.get("state") in ("done", "unknown", "failed")
        else sweep_settings().lease_time
    )
    job = make_job(owner, **{"next_poll_at": later and timezone.now() + later, **columns})
    assert JobPresenter(job).phase == phase
    html = page.get(job.get_absolute_url()).content.decode()
    assert words in html
    assert columns.get("error_code", "no code") not in html


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (7, ["about 7 s left", "noch etwa 7 s"]),
        (42, ["about 40 s left", "noch etwa 40 s"]),
        (130, ["about 2 min left", "noch etwa 2 min"]),
    ],
)
def test_a_page_says_how_long_it_may_still_take(
    page: Client, owner: User, monkeypatch: pytest.MonkeyPatch, seconds: int, words: list[str]
) -> None:
    """In round numbers: it is a guess."""
    now = timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: now)
    expected, later = now + timedelta(seconds=seconds), now + timedelta(seconds=30)
    job = make_job(owner, fraction=0.5, next_poll_at=later, expected_at=expected)
    assert words[0] in page.get(job.get_absolute_url()).content.decode()
    assert page.get(job.get_absolute_url(), headers=JSON).json()["seconds_left"] == seconds
    with translation.override("de"):
        assert JobPresenter(job).time_left == words[1]


@pytest.mark.parametrize(
    "columns",
    [
        {"expected_at": None},
        {"expected_at": timezone.now() - timedelta(seconds=5)},
        {"failures": 3},
        {"state": "done", "next_poll_at": None},
    ],
)
def test_nothing_is_promised_that_is_not_known(owner: User, columns: dict[str, Any]) -> None:
    """A guess that has not come true, and one in times of trouble, are none."""
    expected = timezone.now() + timedelta(seconds=60)
    presenter = JobPresenter(make_job(owner, **{"expected_at": expected, **columns}))
    assert (presenter.seconds_left, presenter.time_left) == (None, "")


def test_every_error_that_ends_a_job_has_words() -> None:
    """A new one is "something went wrong on our side" until somebody finds words for it."""
    kinds = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.ImageLabsError)
    }
    without = {"ImageLabsError", "JobError", "ForbiddenAddressError", "SubmissionUnknownError",
               "JobStoppedError", "BatchStoppedError", "NotSupportedError"}  # fmt: skip
    assert set(presenters._FAILED) == kinds - without


def test_a_card_can_be_shown_without_its_view(owner: User) -> None:
    """In a gallery of the site's own."""
    jobs = [make_job(owner), make_done(owner)]
    html = "".join(
        render_to_string("imagelabs/_job.html", {"presenter": JobPresenter(job)}) for job in jobs
    )
    assert all(f'id="job-{job.pk}"' in html for job in jobs)


# The image ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "media_type", "ending"), [(IMAGE, "image/png", "png"), (JPEG, "image/jpeg", "jpg")]
)
def test_an_image_is_served_as_what_its_bytes_are(
    page: Client, owner: User, data: bytes, media_type: str, ending: str
) -> None:
    """Its name in the storage says nothing; and a browser must not guess otherwise."""
    job = make_done(owner, data)
    response = page.get(f"{job.get_absolute_url()}image/")
    assert body(response) == data
    name = f"image-{job.pk.hex[:8]}.{ending}"
    for header, value in {
        "Content-Type": media_type,
        "Content-Length": str(len(data)),
        "Content-Disposition": f'inline; filename="{name}"',
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cache-Control": "private, no-cache",
    }.items():
        assert response.headers[header] == value


def test_an_image_that_the_browser_has_is_not_sent_again(
    page: Client, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor read from the storage."""
    job = make_done(owner)
    url = f"{job.get_absolute_url()}image/"
    first = page.get(url)
    body(first)
    first.close()
    monkeypatch.setattr(views, "_file_response", None)
    by_tag = page.get(url, headers={"If-None-Match": first.headers["ETag"]})
    later = page.get(url, headers={"If-Modified-Since": first.headers["Last-Modified"]})
    for response in (by_tag, later):
        assert response.status_code == 304
        assert response.headers["ETag"] == first.headers["ETag"]
        assert response.headers["Cache-Control"] == "private, no-cache"
    monkeypatch.undo()


def test_an_image_of_somebody_else_is_no_304_either(owner: User, stranger: Client) -> None:
    """Who knows the tag still sees nothing."""
    url = f"{make_done(owner).get_absolute_url()}image/"
    assert stranger.get(url, headers={"If-None-Match": "*"}).status_code == 404


def test_the_head_of_an_image_can_be_asked_for(page: Client, owner: User) -> None:
    """Its size and type, and none of its bytes."""
    response = page.head(f"{make_done(owner).get_absolute_url()}image/")
    assert response.headers["Content-Type"] == "image/png"
    assert response.headers["Content-Length"] == str(len(IMAGE))
    assert not body(response)
    response.close()


@pytest.mark.parametrize("data", [b"<script>alert(1)</script>", b""])
def test_a_file_that_is_no_image_is_not_served(page: Client, owner: User, data: bytes) -> None:
    """Whoever has put it there."""
    job = make_done(owner, data)
    assert page.get(f"{job.get_absolute_url()}image/").status_code == 404


def test_an_image_that_is_gone_or_not_there_yet_is_not_found(page: Client, owner: User) -> None:
    """The page shows its description instead."""
    gone = make_done(owner)
    gone.image.storage.delete(str(gone.image.name))
    for job in (gone, make_job(owner)):
        assert page.get(f"{job.get_absolute_url()}image/").status_code == 404


# The preview ----------------------------------------------------------------------------


def preview_of(owner: User) -> str:
    job = make_job(owner)
    advance(job)
    return f"{job.get_absolute_url()}preview/"


def test_a_preview_comes_from_us_and_is_fetched_once(
    page: Client, owner: User, service: FakeService
) -> None:
    """Its host is not told who polls, and many tabs cost it no more than one."""
    url = preview_of(owner)
    for _ in range(5):
        response = page.get(url)
        assert response.content == IMAGE
    assert service.count("preview") == 1
    for header, value in {
        "Content-Type": "image/png",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cache-Control": "private, max-age=60",
    }.items():
        assert response.headers[header] == value


def test_a_new_preview_has_another_address(owner: User) -> None:
    """So that a page shows it."""
    old, new = (
        JobPresenter(make_job(owner, preview_url=f"/p.png?{step}")).preview_key for step in "12"
    )
    assert old != new


@pytest.mark.parametrize(
    "say",
    [
        lambda s: s.refuses(status=404, at="preview"),
        lambda s: s.html(at="preview"),
        lambda s: s.answers(HttpResponse(200), at="preview"),
        lambda s: s.hangs(at="preview"),
    ],
    ids=["missing", "a page", "empty", "silent"],
)
def test_a_preview_that_cannot_be_had_is_quietly_missing(
    page: Client, owner: User, service: FakeService, say: Callable[[FakeService], object]
) -> None:
    """And not asked for again at once, by any tab."""
    say(service)
    url = preview_of(owner)
    assert page.get(url).status_code == 404
    assert service.clock.elapsed <= views._A_PREVIEW
    asked = service.count("preview")
    assert page.get(url).status_code == 404
    assert service.count("preview") == asked


def test_a_preview_may_not_lead_into_the_house(
    page: Client, owner: User, imagelabs_server: str, settings: Any
) -> None:
    """The SDK's checks of addresses, which are those of connections, hold for previews, too."""
    settings.IMAGELABS = {"default": {"OPTIONS": {"base_url": imagelabs_server}}}
    inside = FakeService()
    with serve_in_thread(inside) as other:
        job = make_job(owner, preview_url=f"{other}/previews/task-1")
        assert page.get(f"{job.get_absolute_url()}preview/").status_code == 404
    assert not inside.sent


def test_a_job_without_a_preview_has_none(page: Client, owner: User) -> None:
    """As before the first poll."""
    assert page.get(f"{make_job(owner).get_absolute_url()}preview/").status_code == 404


def test_a_large_preview_is_not_kept(
    page: Client, owner: User, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caches have limits, and other things to keep."""
    monkeypatch.setattr(views, "_MAX_KEPT", 10)
    url = preview_of(owner)
    assert [page.get(url).status_code for _ in range(2)] == [200, 200]
    assert service.count("preview") == 2


# Words ----------------------------------------------------------------------------------


def said_in(path: Path) -> set[str]:
    """The texts that a file has translated."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".html":
        return set(re.findall(r"""{% translate ["'](.+?)["'] %}""", source))
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return {
        ast.literal_eval(argument)
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id in ("_", "ngettext")
        for argument in call.args
        if isinstance(argument, ast.Constant)
    }


def test_every_text_has_a_german_translation() -> None:
    """A catalogue without its latest texts shows two languages at once."""
    folder = APP / "locale/de/LC_MESSAGES"
    with (folder / "django.mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    paths = [*APP.rglob("*.py"), *APP.rglob("*.html")]
    texts = {text for path in paths for text in said_in(path)}
    known = set(compiled._catalog)  # type: ignore[attr-defined]
    singular = {key[0] if isinstance(key, tuple) else key for key in known} - {""}
    assert len(texts) > 60
    assert {text for text in texts if text not in singular} == {"%d jobs are due now."}
    source = (folder / "django.po").read_text(encoding="utf-8")
    assert "fuzzy" not in source
    assert source.count("\nmsgid ") == len(singular), "compile the messages"
    assert not re.search(r'msgstr(\[\d\])? ""\n\n', source)


def test_a_page_speaks_the_visitors_language(page: Client, owner: User) -> None:
    """Where the site lets it choose."""
    with translation.override("de"):
        html = page.get(make_done(owner).get_absolute_url()).content.decode()
    assert '<html lang="de">' in html
    assert "Das Bild ist fertig." in html
