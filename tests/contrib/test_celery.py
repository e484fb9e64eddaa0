"""Images saved by Celery: message by message in this process, and by a worker of its own."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from celery import Celery, current_app, states
from celery.exceptions import Retry, TaskRevokedError

from imagelabs_sdk import (
    Adaptive,
    Backoff,
    DownloadError,
    FixedInterval,
    ImageLabs,
    ImageLabsError,
    InvalidRequestError,
    JobError,
    JobFailedError,
    JobTimeoutError,
)
from tests import faulty
from tests.django.app.settings import HAS_REDIS
from tests.faulty import PNG, FaultyServer, reply

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "celery_worker" / "images.py"
NAME = "imagelabs.save_image"
PROMPT = "a secret castle"

CHALLENGE = reply(403, b"<title>Just a moment...</title>", ("Cf-Mitigated", "challenge"))
FAILED = reply(200, {"status": "Error: a secret castle needs more memory"})


def never(seconds: float) -> None:
    raise AssertionError(f"a task slept {seconds} s")


# Message by message, in this process ----------------------------------------------------


@attrs.define
class Post:
    """A broker and a worker by hand: each delivery is one message, really sent and encoded."""

    app: Celery
    client: ImageLabs

    @property
    def task(self) -> Any:
        return self.app.tasks[NAME]

    def submit(self, path: Path, *, age: float = 0.0, **options: Any) -> str:
        """Buy an image and send its message, as if `age` seconds ago. Answers the task's id."""
        job = self.client.submit(PROMPT).to_dict()
        job["submitted_at"] -= age
        return str(self.task.apply_async((job, str(path)), **options).id)

    def take(self) -> Any:
        with self.app.connection_for_read() as connection:
            message = connection.SimpleQueue("celery").get(block=False)
            message.ack()
        return message

    def deliver(self, message: Any = None) -> Any:
        """What the task answers to one message: where the image is, or when to come again."""
        message = self.take() if message is None else message
        args, kwargs, _ = message.payload
        told = {"called_directly": False, "args": args, "kwargs": kwargs}
        self.task.push_request(**{**message.headers, **told})
        try:
            return self.task.run(*args, **kwargs)
        except Retry as again:
            return again
        finally:
            self.task.pop_request()

    def deliver_all(self, most: int = 20) -> Any:
        """Deliver until the task ends. What it plans is taken for granted, not waited for."""
        for _ in range(most):
            outcome = self.deliver()
            if not isinstance(outcome, Retry):
                return outcome
        raise AssertionError("the task does not end")


@contextmanager
def current(app: Celery | None = None) -> Iterator[None]:
    """Celery's current app is a global: leave it as it was."""
    proxy: Any = current_app
    before = proxy._get_current_object()
    if app is not None:
        app.set_current()
    try:
        yield
    finally:
        before.set_current()


OnePost = Callable[..., Post]


@pytest.fixture
def post(server: FaultyServer) -> Iterator[OnePost]:
    """Makes a post whose worker's client never sleeps; the fixture's own app is the current one."""
    app = Celery("by hand", broker="memory://", backend="cache+memory://", set_as_current=False)
    clients = []

    def make(**settings: Any) -> Post:
        settings.setdefault("polling", FixedInterval(1.0, sleep=never))
        client = ImageLabs(server.url, **settings)
        clients.append(client)
        # As documented: it has to be there before the tasks are.
        app.conf.task_annotations = {NAME: {"client": client}}
        return Post(app, client)

    with current(app):
        import imagelabs_sdk.contrib.celery  # noqa: F401 - registers the task

        yield make
        with app.connection_for_read() as connection:
            connection.SimpleQueue("celery").clear()
    for client in clients:
        client.close()


def test_an_image_is_saved_in_one_step_per_message(
    server: FaultyServer, post: OnePost, tmp_path: Path
) -> None:
    """Between two polls nothing of ours runs: the next message is planned, with the same id."""
    server.scripts["/progress"] = [faulty.QUEUED, faulty.RUNNING, server.done()]
    office = post()
    task_id = office.submit(tmp_path / "1.png", priority=3)
    for polls in (1, 2):
        again = office.deliver()
        assert (again.when, again.sig.options["task_id"]) == (1.0, task_id)
        assert again.sig.options["retries"] == polls
        assert server.count("/progress") == polls
    assert office.deliver() == str(tmp_path / "1.png")
    assert (tmp_path / "1.png").read_bytes() == PNG
    assert server.count("/txt2img") == 1


def test_the_result_is_the_path_with_its_extension(post: OnePost, tmp_path: Path) -> None:
    """A path without one gets that of the image's format."""
    office = post()
    office.submit(tmp_path / "image")
    assert office.deliver() == str(tmp_path / "image.png")


def test_a_message_that_is_delivered_twice_buys_nothing(
    server: FaultyServer, post: OnePost, tmp_path: Path
) -> None:
    """A broker's visibility timeout, a lost acknowledgement: sooner or later it happens."""
    office = post()
    office.submit(tmp_path / "1.png")
    message = office.take()
    assert office.deliver(message) == office.deliver(message) == str(tmp_path / "1.png")
    assert [path.name for path in tmp_path.iterdir()] == ["1.png"]
    assert server.count("/txt2img") == 1


def test_failed_polls_come_later_and_later_and_end_nothing(
    server: FaultyServer, post: OnePost, tmp_path: Path
) -> None:
    """The count of failures has to travel, since no worker remembers the job."""
    office = post()
    server.scripts["/progress"] = [*[reply(502)] * 12, faulty.RUNNING, reply(502), server.done()]
    office.submit(tmp_path / "1.png")
    delays = [office.deliver().when for _ in range(14)]
    assert delays == [1, 2, 4, 8, *[10] * 8, 1, 1]
    assert office.deliver() == str(tmp_path / "1.png")


def test_a_service_that_asks_for_time_gets_it(
    server: FaultyServer, post: OnePost, tmp_path: Path
) -> None:
    """Retry-After is obeyed, within reason."""
    server.scripts["/progress"] = [reply(429, b"", ("Retry-After", "40"))]
    office = post()
    office.submit(tmp_path / "1.png")
    again = office.deliver()
    assert again.when == 40
    assert "429" in str(again)  # what the worker's log says at INFO


@pytest.mark.parametrize("polling", [Adaptive(sleep=never), Backoff(sleep=never, jitter=0.0)])
def test_the_pauses_are_sane_although_only_the_latest_poll_is_known(
    server: FaultyServer, post: OnePost, tmp_path: Path, polling: Any
) -> None:
    """The strategy's history stays behind with every message."""
    server.scripts["/progress"] = [faulty.QUEUED, *[faulty.RUNNING] * 5]
    office = post(polling=polling)
    office.submit(tmp_path / "1.png", age=60.0)
    assert all(0.25 <= office.deliver().when <= 15.0 for _ in range(6))


def test_the_last_poll_comes_at_the_end_of_our_patience(
    server: FaultyServer, post: OnePost, tmp_path: Path
) -> None:
    """Not after it, and not long before."""
    server.scripts["/progress"] = [faulty.RUNNING]
    office = post(timeout=60.5, polling=FixedInterval(15.0, sleep=never))
    office.submit(tmp_path / "1.png", age=60.0)
    assert 0.0 < office.deliver().when <= 0.5


@pytest.mark.parametrize(
    ("poll", "words"),
    [(faulty.RUNNING, "still running after 3"), (reply(502), "cannot reach the service .*502")],
)
def test_patience_counts_from_the_submit(
    server: FaultyServer, post: OnePost, tmp_path: Path, poll: faulty.Answer, words: str
) -> None:
    """Not from each message: that would be no limit at all."""
    server.scripts["/progress"] = [poll]
    office = post(timeout=300.0)
    office.submit(tmp_path / "1.png", age=301.0)
    with pytest.raises(JobTimeoutError, match=f"{words}.*task-1"):
        office.deliver()


def test_a_message_that_comes_too_late_still_polls(post: OnePost, tmp_path: Path) -> None:
    """A broker may hold it for an hour after a crash; the image has been paid for."""
    office = post()
    office.submit(tmp_path / "1.png", age=86_400.0)
    assert office.deliver() == str(tmp_path / "1.png")


def test_a_clock_that_runs_behind_the_callers_does_no_harm(
    server: FaultyServer, post: OnePost, tmp_path: Path
) -> None:
    """Two machines never agree on the time; patience may not grow by it."""
    server.scripts["/progress"] = [faulty.RUNNING]
    office = post(timeout=300.0, polling=FixedInterval(400.0, sleep=never))
    office.submit(tmp_path / "1.png", age=-600.0)
    assert 299.0 < office.deliver().when <= 300.0


def test_an_image_that_cannot_be_fetched_is_tried_again(
    server: FaultyServer, post: OnePost, tmp_path: Path
) -> None:
    """By other messages; the job is done, and only its image is late."""
    image = server.scripts["/image.png"]
    server.scripts["/image.png"] = [reply(404), reply(404), *image]
    office = post()
    office.submit(tmp_path / "1.png")
    assert office.deliver().when == 2.0
    assert office.deliver() == str(tmp_path / "1.png")


@pytest.mark.parametrize(("age", "polls"), [(0.0, 4), (301.0, 1)])
def test_an_image_that_never_comes_is_said_to_be_missing(
    server: FaultyServer, post: OnePost, tmp_path: Path, age: float, polls: int
) -> None:
    """Not that the job timed out: it is done."""
    server.scripts["/image.png"] = [reply(404)]
    office = post(timeout=300.0)
    office.submit(tmp_path / "1.png", age=age)
    with pytest.raises(DownloadError, match=r"404.*task-1"):
        office.deliver_all()
    assert server.count("/progress") == 2 * polls  # each asks anew for the address that is stale
    assert not list(tmp_path.iterdir())


def test_a_cloudflare_page_is_not_waited_for(
    server: FaultyServer, post: OnePost, tmp_path: Path
) -> None:
    """Time does not pass the check; a person does."""
    server.scripts["/progress"] = [CHALLENGE]
    office = post()
    office.submit(tmp_path / "1.png")
    with pytest.raises(JobError, match=r"cf_clearance.*task-1"):
        office.deliver_all()
    assert server.count("/progress") == 2


def test_one_challenge_after_another_failure_ends_nothing(
    server: FaultyServer, post: OnePost, tmp_path: Path
) -> None:
    """Challenges count, and not what failed before."""
    server.scripts["/progress"] = [reply(500, {}), CHALLENGE, server.done()]
    office = post()
    office.submit(tmp_path / "1.png")
    office.deliver_all()
    assert (tmp_path / "1.png").exists()


@pytest.mark.parametrize("serializer", ["json", "pickle"])
@pytest.mark.parametrize(
    ("poll", "kind", "words"),
    [
        (FAILED, JobFailedError, "the job failed.*task-1"),
        (reply(404, {"error": "no such task"}), JobError, "404: no such task.*task-1"),
    ],
)
def test_the_caller_gets_a_typed_error_by_any_serializer(  # noqa: PLR0917 - a table's columns
    server: FaultyServer,
    post: OnePost,
    tmp_path: Path,
    serializer: str,
    poll: faulty.Answer,
    kind: type[ImageLabsError],
    words: str,
) -> None:
    """JSON backends make an error anew from its class and its positional arguments."""
    server.scripts["/progress"] = [poll]
    office = post(cookies={"session": "crumb"})
    office.app.conf.update(result_serializer=serializer, accept_content=["json", "pickle"])
    task_id = office.submit(tmp_path / "1.png")
    with pytest.raises(kind) as raised:
        office.deliver()
    backend: Any = office.app.backend
    backend.mark_as_failure(task_id, raised.value)
    with pytest.raises(kind, match=words) as told:
        office.app.AsyncResult(task_id).get()
    assert type(told.value) is kind
    assert str(told.value) == str(raised.value)
    stored = str(backend.get(backend.get_key_for_task(task_id)))
    assert "task-1" in stored
    assert not [word for word in ("crumb", "secret castle") if word in stored]


def test_a_job_of_another_service_is_refused(
    server: FaultyServer, other: FaultyServer, post: OnePost, tmp_path: Path
) -> None:
    """The wrong service would say that it knows no such task."""
    office = post()
    job = {**office.client.submit(PROMPT).to_dict(), "base_url": other.url}
    office.task.apply_async((job, str(tmp_path / "1.png")))
    with pytest.raises(InvalidRequestError, match="base_url"):
        office.deliver()
    assert not other.asked


def test_messages_show_no_prompt(server: FaultyServer, post: OnePost, tmp_path: Path) -> None:
    """What a message says of its arguments goes to logs, events and monitors; retries, too."""
    server.scripts["/progress"] = [faulty.RUNNING]
    office = post()
    office.submit(tmp_path / "1.png")
    for _ in range(2):
        message = office.take()
        assert "castle" in str(message.payload)
        assert "castle" not in str(message.headers)
        office.deliver(message)


@pytest.mark.parametrize("age", [0.0, 86_400.0])
def test_without_a_worker_the_task_waits_where_it_is(
    server: FaultyServer, post: OnePost, tmp_path: Path, age: float
) -> None:
    """Eagerly, Celery would call a retry at once, and again, until the stack overflows."""
    running = [] if age else [faulty.RUNNING] * 3
    server.scripts["/progress"] = [*running, server.done()]
    pauses: list[float] = []
    office = post(polling=FixedInterval(2.0, sleep=pauses.append))
    office.app.conf.task_always_eager = True
    job = {**office.client.submit(PROMPT).to_dict(), "submitted_at": time.time() - age}
    result = office.task.delay(job, str(tmp_path / "1.png"))
    assert (result.get(), result.id != "") == (str(tmp_path / "1.png"), True)
    assert len(pauses) == len(running)
    assert office.task(job, str(tmp_path / "2.png")) == str(tmp_path / "2.png")


def test_an_eager_task_raises_what_a_worker_would(
    server: FaultyServer, post: OnePost, tmp_path: Path
) -> None:
    """Tests of an application shall see its production's errors."""
    server.scripts["/progress"] = [FAILED]
    office = post()
    job = office.client.submit(PROMPT).to_dict()
    with pytest.raises(JobFailedError, match="task-1"):
        office.task.apply((job, str(tmp_path / "1.png"))).get()


def test_the_clients_settings_are_the_environments_unless_given(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Read late, in the process that works, and once."""
    app = Celery("plain", broker="memory://", set_as_current=False)
    task: Any = app.tasks[NAME]
    monkeypatch.setenv("IMAGELABS_BASE_URL", server.url)
    with ImageLabs() as client:
        job = client.submit(PROMPT).to_dict()
    assert task(job, str(tmp_path / "1.png")) == str(tmp_path / "1.png")
    assert task.client is task.client
    task.client.close()


# By a worker process --------------------------------------------------------------------

needs_redis = pytest.mark.skipif(not HAS_REDIS, reason="no Redis at 127.0.0.1:6379")

SETTINGS = """
import json, os
from images import app
from imagelabs_sdk import ImageLabs

client = ImageLabs(poll_interval=0.05)  # made before the fork
app.conf.task_annotations = {"imagelabs.save_image": {"client": client}}
app.conf.update(json.loads(os.environ["SETTINGS"]))
"""
REDIS = os.environ.get("IMAGELABS_TEST_REDIS", "redis://127.0.0.1:6379/13")
PREFIX = f"imagelabs-test-{os.getpid()}-"
WORKER = f"{PREFIX}worker"


def conf(**broker_options: str) -> dict[str, Any]:
    """Keys of our own, so that runs at the same time do not meet."""
    ours = {"global_keyprefix": PREFIX}
    return {
        "broker_transport_options": {**ours, **broker_options},
        "result_backend_transport_options": ours,
    }


def eventually(happened: Callable[[], object]) -> None:
    """Waits for it, within bounds that no healthy run comes near."""
    ends = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)


class Worker:
    """The example's worker in processes of its own, whose log is kept."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.log, self.url = folder, folder / "worker.log", url
        (folder / "fast.py").write_text(SETTINGS)
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "celery", "-A", "fast", "worker", "--pool", "prefork"]
        options = ["-c", "2", "-l", "DEBUG", "-E", "--without-mingle", "--without-gossip"]
        paths = os.pathsep.join([str(ROOT), str(EXAMPLE.parent)])
        # Without Django: Celery would run the checks of the settings that pytest was given.
        environment = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *options],
                cwd=self.folder,
                env={
                    **environment,
                    "IMAGELABS_BASE_URL": self.url,
                    "PYTHONPATH": paths,
                    "REDIS_URL": REDIS,
                    "SETTINGS": json.dumps(conf(client_name=WORKER)),
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """All of its processes, as a machine that loses power."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


@attrs.define
class Site:
    """A service, a worker, and the example as its caller."""

    server: FaultyServer
    worker: Worker
    example: Any
    client: ImageLabs

    @property
    def app(self) -> Celery:
        app: Celery = self.example.app
        return app

    def send(self, path: Path, **options: Any) -> Any:
        job = self.client.submit(PROMPT)
        return self.app.tasks[NAME].apply_async((job.to_dict(), str(path)), **options)

    @contextmanager
    def broker(self) -> Iterator[Any]:
        """Redis, as Celery sees it."""
        with self.app.connection_for_read() as connection:
            yield connection.default_channel

    def is_idle(self) -> bool:
        """Whether neither the broker nor a worker has a message."""
        with self.broker() as channel:
            return not channel.client.llen("celery") and not channel.client.hlen("unacked")

    def lose_power(self) -> None:
        """Kill the worker; the broker's visibility timeout ends; another worker starts."""
        self.worker.kill()
        with self.broker() as channel:
            # What it gave to a connection that is about to break would be lost.
            eventually(lambda: WORKER not in [c["name"] for c in channel.client.client_list()])
            channel.visibility_timeout = 0
            channel.qos.restore_visible(num=None, interval=1)
        self.worker.start()


@pytest.fixture(scope="module")
def whole_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    import redis

    spec = importlib.util.spec_from_file_location("images", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch, current():
        patch.setenv("REDIS_URL", REDIS)
        spec.loader.exec_module(example)
    example.app.conf.update(conf())
    server = FaultyServer()
    worker = Worker(tmp_path_factory.mktemp("worker"), server.url)
    with ImageLabs(server.url) as client:
        yield Site(server, worker, example, client)
    worker.kill()
    example.app.close()
    server.close()
    with redis.Redis.from_url(REDIS) as connection:
        for key in connection.scan_iter(f"{PREFIX}*"):
            connection.delete(key)


@pytest.fixture
def site(whole_site: Site) -> Iterator[Site]:
    """As after start: worker processes are slow to start, so that all tests share them."""
    fresh = FaultyServer()
    whole_site.server.scripts = fresh.scripts
    fresh.close()
    whole_site.server.scripts["/progress"] = [whole_site.server.done()]
    whole_site.server.asked.clear()
    with current(whole_site.app):
        yield whole_site


@needs_redis
def test_a_worker_saves_what_the_caller_bought(site: Site, tmp_path: Path) -> None:
    """And shows the prompt nowhere, not even at DEBUG and with events."""
    accepted = [reply(200, {"task_id": f"task-{n}"}) for n in range(3)]
    site.server.scripts["/txt2img"] = accepted
    site.server.scripts["/progress"] = [*[faulty.RUNNING] * 7, site.server.done()]
    seen: list[dict[str, Any]] = []
    with site.app.connection_for_read() as connection:
        receiver = site.app.events.Receiver(connection, handlers={"*": seen.append})
        consuming = receiver.consume(limit=None, timeout=30, wakeup=False)
        watching = threading.Thread(target=lambda: [None for _ in consuming])
        watching.start()
        results = [site.send(tmp_path / f"{n}.png") for n in range(3)]
        assert [result.get(30) for result in results] == [
            str(tmp_path / f"{n}.png") for n in range(3)
        ]
        eventually(lambda: sum(event["type"] == "task-succeeded" for event in seen) == 3)
        receiver.should_stop = True
        watching.join(30)
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {PNG}
    assert site.server.count("/txt2img") == 3
    assert any(event["type"] == "task-retried" for event in seen)
    for shown in (str(seen), site.worker.log.read_text()):
        assert NAME in shown
        assert "castle" not in shown


@needs_redis
def test_the_example_does_what_it_says(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the worker that its own command line starts."""
    monkeypatch.setenv("IMAGELABS_BASE_URL", site.server.url)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["images.py", "a pier", "--out", "pier.png"])
    site.example.main()
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "pier.png")
    assert (tmp_path / "pier.png").read_bytes() == PNG


@needs_redis
def test_a_service_that_is_down_for_a_while_costs_time_alone(site: Site, tmp_path: Path) -> None:
    """More failures than one process would bear with, and then the image."""
    down = [faulty.reset(), reply(503), reply(200, b"<html>"), faulty.reset(), reply(500)]
    site.server.scripts["/progress"] = [faulty.RUNNING, *down, site.server.done()]
    assert site.send(tmp_path / "1.png").get(30) == str(tmp_path / "1.png")
    assert site.server.count("/txt2img") == 1


@needs_redis
def test_two_workers_with_one_message_save_one_image(site: Site, tmp_path: Path) -> None:
    """Both poll, and both save, even at the same time."""
    site.server.scripts["/progress"] = [*[faulty.RUNNING] * 4, site.server.done()]
    site.send(tmp_path / "1.png", task_id="twin")
    message = (site.client.get_job("task-1").to_dict(), str(tmp_path / "1.png"))
    twin = site.app.tasks[NAME].apply_async(message, task_id="twin")
    assert twin.get(30) == str(tmp_path / "1.png")
    eventually(site.is_idle)
    assert [path.name for path in tmp_path.iterdir()] == ["1.png"]
    assert site.server.count("/txt2img") == 1
    twin.forget()


@needs_redis
def test_a_failed_job_is_the_callers_typed_error(site: Site, tmp_path: Path) -> None:
    """Over the broker and back."""
    site.server.scripts["/progress"] = [faulty.RUNNING, FAILED]
    with pytest.raises(JobFailedError, match=r"the job failed.*task-1"):
        site.send(tmp_path / "1.png").get(30)


@needs_redis
def test_revoked_is_no_longer_looked_after(site: Site, tmp_path: Path) -> None:
    """That is all there is to do: the service goes on drawing."""
    site.server.scripts["/progress"] = [faulty.RUNNING]
    result = site.send(tmp_path / "1.png")
    eventually(lambda: result.state == states.RETRY)
    result.revoke()
    with pytest.raises(TaskRevokedError):
        result.get(30)
    eventually(site.is_idle)
    assert not list(tmp_path.iterdir())


@needs_redis
@pytest.mark.parametrize("all_of_it", [False, True])
def test_kill_9_in_the_middle_loses_nothing(site: Site, tmp_path: Path, all_of_it: bool) -> None:
    """One process of the pool, or the whole worker: the message comes back, the job goes on."""
    looking = threading.Event()

    def poll(wire: faulty.Wire) -> None:
        looking.set()
        wire.hang()

    site.server.scripts["/progress"] = [faulty.RUNNING, poll, faulty.RUNNING, site.server.done()]
    result = site.send(tmp_path / "1.png")
    assert looking.wait(30)
    if all_of_it:
        site.lose_power()
    else:
        active = site.app.control.inspect(timeout=2.0).active() or {}
        (task,) = [task for tasks in active.values() for task in tasks]
        os.kill(task["worker_pid"], signal.SIGKILL)
    assert result.get(30) == str(tmp_path / "1.png")
    assert (tmp_path / "1.png").read_bytes() == PNG
    assert site.server.count("/txt2img") == 1
