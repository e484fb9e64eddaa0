"""Whole processes: killed, interrupted, forked by a server, monkey-patched, short of memory."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from imagelabs_sdk import ImageLabs

from . import faulty
from .faulty import PNG, FaultyServer, chunked, message

Connect = Callable[..., ImageLabs]
ROOT = Path(__file__).parent.parent


@contextmanager
def running(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-u", "-c", textwrap.dedent(code), *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def outcome(code: str, *arguments: str) -> str:
    with running(code, *arguments) as process:
        said, complaint = process.communicate(timeout=50)
    assert process.returncode == 0, complaint
    return said


SUBMIT_AND_WAIT = """
    import json, sys
    from imagelabs_sdk import ImageLabs
    job = ImageLabs(sys.argv[1], poll_interval=0.02).submit("x")
    print(json.dumps(job.to_dict()))
    job.wait()
"""


def test_kill_9_loses_nothing_that_was_printed(server: FaultyServer, connect: Connect) -> None:
    """The job lives at the service; its description is enough for another process."""
    server.scripts["/progress"] = [faulty.RUNNING]
    with running(SUBMIT_AND_WAIT, server.url) as process:
        assert process.stdout is not None
        kept = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    server.scripts["/progress"] = [server.done()]
    client = connect(server)
    assert client.get_job(kept["task_id"]).result().read() == PNG
    assert client.job_from_dict(kept).result().read() == PNG
    assert server.count("/txt2img") == 1


def test_ctrl_c_says_how_the_job_is_called(server: FaultyServer) -> None:
    """Also to who has set up no logging: the last line before the shell's prompt."""
    waiting = threading.Event()

    def poll(wire: faulty.Wire) -> None:
        faulty.RUNNING(wire)
        waiting.set()

    server.scripts["/progress"] = [poll]
    with running(SUBMIT_AND_WAIT, server.url) as process:
        assert waiting.wait(20)
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=10)
    assert "the job goes on at the service: task id task-1" in complaint
    assert "KeyboardInterrupt" in complaint


def test_greenlets_share_a_client(server: FaultyServer) -> None:
    """Under gevent's monkey-patching, which replaces sockets, threads and sleeping."""
    said = outcome(
        """
        from gevent import monkey; monkey.patch_all()
        import sys, gevent
        from imagelabs_sdk import ImageLabs
        client = ImageLabs(sys.argv[1], poll_interval=0.01)
        jobs = [gevent.spawn(lambda: client.generate("x").read()) for _ in range(20)]
        gevent.joinall(jobs, raise_error=True)
        print(len({job.value for job in jobs}), len(jobs))
        client.close()
        """,
        server.url,
    )
    assert said.split() == ["1", "20"]
    assert server.count("/txt2img") == 20


WORKER = """
import os
from imagelabs_sdk import ImageLabs

client = ImageLabs(os.environ["SERVICE"], poll_interval=0.01)
client.generate("made, and used, before the fork")


def application(environ, start_response):
    body = client.generate("x").read()
    start_response("200 OK", [("X-Worker", str(os.getpid()))])
    return [body]
"""


def test_prefork_workers_inherit_a_client(server: FaultyServer, tmp_path: Path) -> None:
    """gunicorn loads the application once and forks; each worker needs connections of its own."""
    (tmp_path / "inherited.py").write_text(WORKER)
    command = [sys.executable, "-m", "gunicorn", "inherited:application", "--preload"]
    options = ["--workers=2", "--threads=2", "--bind=127.0.0.1:0", "--graceful-timeout=2"]
    environment = {**os.environ, "SERVICE": server.url, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, *options, "--no-control-socket"] if _has_control_socket() else command + options,
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            url = _listening_at(process)
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(lambda _: _get(url), range(24)))
        finally:
            process.terminate()
            process.communicate(timeout=10)
    assert {body for body, _ in answers} == {PNG}
    by_parent = {asked.connection for asked in server.asked[:2]}
    assert not by_parent & {asked.connection for asked in server.asked[2:]}


def _has_control_socket() -> bool:
    text = subprocess.run(
        [sys.executable, "-m", "gunicorn", "--help"], capture_output=True, text=True, check=True
    ).stdout
    return "--no-control-socket" in text


def _listening_at(process: "subprocess.Popen[str]") -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if "Listening at: " in line:
            return line.partition("Listening at: ")[2].split()[0]
    raise AssertionError("gunicorn did not start")


def _get(url: str) -> tuple[bytes, str]:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read(), answer.headers["X-Worker"]


def test_memory_stays_bounded_whatever_comes(server: FaultyServer) -> None:
    """Endless bodies, bombs and floods of headers cost no more than 64 MB."""
    chunked_head = message(200, b"", [("Transfer-Encoding", "chunked")])
    flood = faulty.endless(b"100000\r\n" + b" " * 0x100000 + b"\r\n", chunked_head)
    image_flood = faulty.endless(
        b"100000\r\n" + bytes(0x100000) + b"\r\n",
        message(200, chunked(PNG, end=b""), [("Transfer-Encoding", "chunked")]),
    )
    bomb = _bomb(512)
    server.scripts["/progress"] = [
        flood,
        faulty.reply(200, bomb, ("Content-Encoding", "gzip")),
        faulty.endless(b"X-Y: " + b"z" * 1000 + b"\r\n", b"HTTP/1.1 200 OK\r\n"),
        faulty.endless(b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n" * 50),
        server.done(),
    ]
    server.scripts["/image.png"] = [
        image_flood,
        faulty.reply(200, bomb, ("Content-Encoding", "gzip")),
    ]
    said = outcome(
        """
        import resource, sys, tempfile
        from imagelabs_sdk import FixedInterval, ImageLabs, ImageLabsError
        client = ImageLabs(sys.argv[1], request_timeout=1, polling=FixedInterval(0.01))
        client.get_job("warm")
        try:
            ImageLabs("http://127.0.0.1:1", max_retries=0).submit("x")
        except ImageLabsError:
            pass
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        before = peak()
        image = client.generate("x")
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(2):
                try:
                    image.save(folder + "/x.png")
                except ImageLabsError as error:
                    print("refused", file=sys.stderr)
        print(peak() - before)
        """,
        server.url,
    )
    assert int(said) < 64


def _bomb(megabytes: int) -> bytes:
    """An image's signature and then nothing but zeros, squeezed a thousandfold."""
    import zlib

    squeeze = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    pieces = [squeeze.compress(PNG)]
    pieces += [squeeze.compress(bytes(1024 * 1024)) for _ in range(megabytes)]
    return b"".join([*pieces, squeeze.flush()])


@pytest.mark.parametrize("flag", ["-O", "-OO"])
def test_nothing_depends_on_asserts_or_docstrings(server: FaultyServer, flag: str) -> None:
    """Some deployments strip them."""
    code = "import sys; from imagelabs_sdk import ImageLabs as I; c = I(sys.argv[1]); c.submit('x')"
    subprocess.run([sys.executable, flag, "-c", code, server.url], check=True, cwd=ROOT)
