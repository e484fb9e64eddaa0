"""`imagelabs serve` as a process: started, signalled, killed and started again."""

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from imagelabs_sdk import FixedInterval, ImageLabs, ImageRequest, Job
from imagelabs_sdk.server.access import AccessOptions
from imagelabs_sdk.server.engines.landscape import LandscapeEngine
from imagelabs_sdk.server.options import StoreLimits, bounds
from imagelabs_sdk.server.service import ServeOptions, Service, serve
from imagelabs_sdk.server.store.jobs import JobStore
from tests.server.test_pool import eventually

SMALL = ImageRequest("x", width=64, height=48, seed=1, subseed=1)


@attrs.define
class Served:
    """A server in a process of its own, over one store and one port."""

    folder: Path
    port: int = 0
    process: "subprocess.Popen[str] | None" = None
    starts: int = 0

    def start(self, *options: str, prefix: tuple[str, ...] = ()) -> str:
        command = [
            *prefix, sys.executable, "-m", "imagelabs_sdk", "serve", "--port", str(self.port),
            "--store", str(self.folder / "store"), *options,
        ]  # fmt: skip
        log = (self.folder / "log").open("a")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        log.close()
        assert self.process.stdout is not None
        found = re.search(r"http://[\d.]+:(\d+)", self.process.stdout.readline())
        assert found, (self.folder / "log").read_text()
        self.port = int(found[1])
        self.starts += 1
        return found[0]

    def end(self, how: int) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        return code

    def workers(self) -> list[int]:
        """Process ids of the workers, which carry the name of what they run."""
        assert self.process is not None
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [int(pid) for task in tasks for pid in task.read_text().split()]
        return [pid for pid in pids if b"spawn_main" in _command_line(pid)]


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    server = Served(tmp_path)
    yield server
    if server.process is not None:
        server.end(signal.SIGKILL)


def client_of(url: str, **settings: Any) -> ImageLabs:
    return ImageLabs(url, polling=FixedInterval(0.05), timeout=120.0, **settings)


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url + "/readyz", timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def rendered(folder: Path) -> list[tuple[str, int, int]]:
    """Each job's state, how often it was claimed, and how many workers died on it."""
    store = JobStore.open(folder / "store")
    store.close()
    with contextlib.closing(sqlite3.connect(folder / "store/jobs.db")) as db:
        return db.execute("SELECT state, attempt, deaths FROM jobs").fetchall()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_in_order(served: Served, how: int) -> None:
    """Within the grace, with no error, and what waits is kept for the next start."""
    url = served.start("--duration", "60", "--grace", "2")
    eventually(lambda: is_ready(url))
    with client_of(url) as client:
        job = client.submit(SMALL)
    begin = time.monotonic()
    assert served.end(how) == 0
    assert time.monotonic() - begin < 10
    assert rendered(served.folder)[0][0] == "queued"
    with client_of(served.start("--duration", "0")) as client:
        assert client.get_job(job.id).result().read()


def test_what_renders_is_finished_before_the_end(served: Served) -> None:
    """The grace is for that."""
    url = served.start("--duration", "1.5", "--grace", "20")
    eventually(lambda: is_ready(url))
    with client_of(url) as client:
        job = client.submit(SMALL)
        eventually(lambda: job.refresh().status == "Processing")
    assert served.end(signal.SIGTERM) == 0
    assert rendered(served.folder) == [("done", 1, 0)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_it_hears_signals_under_a_shells_ampersand_and_as_pid_1(served: Served) -> None:
    """A shell starts background commands with SIGINT ignored; PID 1 has no default action."""
    ignoring = ("sh", "-c", 'trap "" INT TERM; exec "$0" "$@"')
    served.start("--duration", "0", prefix=ignoring)
    assert served.process is not None
    served.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert served.process.poll() is None
    assert served.end(signal.SIGTERM) == 0
    own_namespace = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    try:
        subprocess.run([*own_namespace, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no PID namespace can be made here")
    served.start("--duration", "0", prefix=own_namespace)
    (child,) = (
        Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
    )
    os.kill(int(child), signal.SIGTERM)
    assert served.process.wait(20) == 0


def test_a_second_server_on_the_same_store_is_refused_in_a_line(served: Served) -> None:
    """Two would render each job twice."""
    served.start("--duration", "0")
    command = [sys.executable, "-m", "imagelabs_sdk", "serve", "--port", "0", "--store"]
    second = subprocess.run(
        [*command, str(served.folder / "store")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode != 0
    assert "another server uses this store" in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_workers_die_with_a_front_that_is_killed(served: Served) -> None:
    """No killed server holds a GPU's memory."""
    url = served.start("--duration", "60")
    eventually(lambda: is_ready(url))
    with client_of(url) as client:
        client.submit(SMALL)
    workers = served.workers()
    assert workers
    served.end(signal.SIGKILL)
    eventually(lambda: not any(b"spawn_main" in _command_line(pid) for pid in workers))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_two_hundred_jobs_survive_killed_fronts_and_workers(served: Served) -> None:
    """Each is done, once, and whole; only a job whose worker died was rendered again."""
    options = ("--duration", "0.1", "--workers", "2")
    url = served.start(*options)
    with client_of(url) as client:
        jobs = [client.submit(attrs.evolve(SMALL, seed=n)) for n in range(200)]
    for round_ in range(4):
        time.sleep(1.0)
        if round_ % 2:
            for pid in served.workers()[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        else:
            served.end(signal.SIGKILL)
            served.start(*options)
    with client_of(url) as client:
        images = [client.get_job(job.id).result(timeout=120).read() for job in jobs]
    assert all(image.endswith(b"IEND\xaeB`\x82") for image in images)
    assert len(set(images)) == 200
    assert served.end(signal.SIGTERM) == 0
    rows = rendered(served.folder)
    assert [state for state, _, _ in rows] == ["done"] * 200
    repeated = sum(attempt - 1 for _, attempt, _ in rows)
    assert 0 < repeated <= 2 * 4  # two workers, four ends


@pytest.mark.parametrize("state", ["queued", "rendering", "done"])
def test_a_front_that_is_killed_in_any_state_loses_nothing(served: Served, state: str) -> None:
    """What was accepted is there after the next start."""
    url = served.start("--duration", "0" if state == "done" else "60", "--workers", "1")
    eventually(lambda: is_ready(url))
    words = {"queued": "Queue position 1", "rendering": "Processing", "done": "Done"}
    with client_of(url) as client:
        jobs = [client.submit(SMALL) for _ in range(2)]
        job: Job = jobs[1] if state == "queued" else jobs[0]
        eventually(lambda: job.refresh().status == words[state])
    served.end(signal.SIGKILL)
    with client_of(served.start("--duration", "0")) as client:
        images = {client.get_job(each.id).result().read() for each in jobs}
    assert len(images) == 1


def test_a_service_in_threads_serves_the_page_and_expires(tmp_path: Path) -> None:
    """As a part of a program of one's own: any thread may stop it."""
    engine = LandscapeEngine(duration=0, in_process=True)
    options = ServeOptions(port=0, store=tmp_path / "store", access=AccessOptions())
    service = Service(engine, options)
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        eventually(lambda: is_ready(service.url))
        with client_of(service.url) as client:
            assert client.generate(SMALL).read()
        with urllib.request.urlopen(service.url + "/", timeout=10) as response:
            assert b"<form" in response.read()
    finally:
        service.stop()
        service.stop()
        thread.join(30)
    assert not thread.is_alive()


def test_serve_ends_with_a_signal_and_puts_the_handlers_back(tmp_path: Path) -> None:
    """It is called from the main thread of any program; a signal that was ignored stays so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        serve(
            LandscapeEngine(in_process=True),
            ServeOptions(port=0, store=tmp_path / "store", grace=2.0),
            on_ready=lambda url: os.kill(os.getpid(), signal.SIGTERM),
        )
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_has_expired_is_removed_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when nobody asks for anything."""
    monkeypatch.setattr("imagelabs_sdk.server.service._EXPIRE", 0.05)
    folder = tmp_path / "store"
    options = ServeOptions(port=0, store=folder, limits=StoreLimits(keep=1))
    service = Service(LandscapeEngine(duration=0, in_process=True), options)
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        with client_of(service.url) as client:
            client.generate(SMALL)
        eventually(lambda: not list((folder / "images").iterdir()))
    finally:
        service.stop()
        thread.join(30)


def test_a_disk_that_was_full_ends_no_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What expires later is removed, once there is room."""
    expire, failures = JobStore.expire, iter([sqlite3.OperationalError("full"), OSError(28, "")])

    def full(store: JobStore) -> None:
        for failure in failures:
            raise failure
        expire(store)
        expired.set()

    expired = threading.Event()
    monkeypatch.setattr("imagelabs_sdk.server.service._EXPIRE", 0.02)
    monkeypatch.setattr(JobStore, "expire", full)
    service = Service(LandscapeEngine(in_process=True), ServeOptions(port=0))
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        assert expired.wait(20.0)
    finally:
        service.stop()
        thread.join(30)


def test_a_service_whose_workers_cannot_start_ends_and_leaves_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It hung for ever after the error."""

    def full(store: JobStore, engine: LandscapeEngine) -> None:
        raise sqlite3.OperationalError("full")

    monkeypatch.setattr(JobStore, "adopt", full)
    service = Service(LandscapeEngine(), ServeOptions(port=0))
    with pytest.raises(sqlite3.OperationalError, match="full"):
        service.run()
    eventually(lambda: "imagelabs-keeper" not in [each.name for each in threading.enumerate()])
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(service.url, timeout=10)


def test_a_service_that_cannot_listen_lets_go_of_its_store(tmp_path: Path) -> None:
    """Another port can be tried at once."""
    options = ServeOptions(port=0, store=tmp_path / "store")
    first = Service(LandscapeEngine(), options)
    port = int(first.url.rpartition(":")[2])
    other = attrs.evolve(options, port=port, store=tmp_path / "other")
    with pytest.raises(OSError, match="in use"):
        Service(LandscapeEngine(), other)
    JobStore.open(tmp_path / "other").close()
    first.stop()
    first.run()


def test_the_table_of_bounds_in_the_docs_is_the_code() -> None:
    """One table, and it is right."""
    page = (Path(__file__).parents[2] / "docs/serve.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `--([\w-]+)` \| ([\d.]+) \| (.+) \|$", page, re.M)
    fields = [field for each in bounds().values() for field in each]
    assert rows == [
        (field.name.replace("_", "-"), f"{field.default:.12g}", field.metadata["help"])
        for field in fields
    ]
