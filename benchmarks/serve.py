"""`imagelabs serve` under load, and killed again and again.

    python -m benchmarks.serve --clients 200 --seconds 600
    python -m benchmarks.serve --kill

The load: five submits a second in all, 512 x 512, by clients that poll their job every two
seconds and fetch its image. The kill: 200 jobs, and the front killed with SIGKILL every three
seconds until all are done. Both print what they saw; any error is an exit code.
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from imagelabs_sdk import FixedInterval, ImageLabs, ImageRequest

_RATE = 5.0  # submits a second, of all clients together
_POLL = 2.0  # seconds between the polls of a client
_KILL = 3.0  # seconds between kills
_JOBS = 200
_END = b"IEND\xaeB`\x82"


@attrs.define
class Served:
    """A server in a process of its own.

    Attributes:
        folder: Of its store.
        options: Of the command.
        port: 0 until it has been started once.
    """

    folder: Path
    options: tuple[str, ...]
    port: int = 0
    process: "subprocess.Popen[str] | None" = None

    def start(self) -> str:
        """Start it, and return its address once it listens."""
        store = ["--port", str(self.port), "--store", str(self.folder / "store")]
        command = [sys.executable, "-m", "imagelabs_sdk", "serve", *store, *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        found = re.search(r"http://[\d.]+:(\d+)", self.process.stdout.readline())
        if found is None:
            raise SystemExit("the server did not start")
        self.port = int(found[1])
        return found[0]

    def end(self, how: int) -> None:
        """Send it a signal and wait for its end."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def usage(self) -> tuple[float, float]:
        """Return CPU seconds and resident megabytes of the front; zeros where /proc is not."""
        assert self.process is not None
        try:
            path = Path(f"/proc/{self.process.pid}")
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            pages = int((path / "statm").read_text().split()[1])
        except OSError:
            return 0.0, 0.0
        ticks = os.sysconf("SC_CLK_TCK")
        return (int(fields[11]) + int(fields[12])) / ticks, pages * os.sysconf(
            "SC_PAGESIZE"
        ) / 2**20


@contextmanager
def served(*options: str) -> Iterator[Served]:
    """Run a server over a store that is removed in the end."""
    with tempfile.TemporaryDirectory() as folder:
        server = Served(Path(folder), options)
        server.start()
        try:
            yield server
        finally:
            server.end(signal.SIGTERM)


@attrs.define
class Load:
    """Many clients, each in a thread with one connection.

    Attributes:
        url: Of the server.
        until: When to stop, by the monotonic clock.
        taken: Seconds of each request, by its path.
        errors: What went wrong, counted.
    """

    url: str
    until: float
    taken: dict[str, list[float]] = attrs.Factory(dict)
    errors: Counter[str] = attrs.Factory(Counter)
    _turn: int = 0
    _begin: float = attrs.Factory(time.monotonic)
    _lock: threading.Lock = attrs.Factory(threading.Lock)

    def run(self, clients: int) -> None:
        """Run all clients to the end."""
        threads = [threading.Thread(target=self._client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self) -> None:
        parts = urlsplit(self.url)
        with contextlib.closing(
            http.client.HTTPConnection(parts.hostname or "", parts.port or 0, timeout=60)
        ) as connection:
            while (due := self._next_turn()) < self.until:
                time.sleep(max(0.0, due - time.monotonic()))
                try:
                    self._one_job(connection)
                except (OSError, http.client.HTTPException, ValueError) as exc:
                    self.errors[repr(exc)] += 1
                    connection.close()

    def _next_turn(self) -> float:
        with self._lock:
            self._turn += 1
            return self._begin + self._turn / _RATE

    def _one_job(self, connection: http.client.HTTPConnection) -> None:
        wanted = {"prompt": "a lighthouse", "width": 512, "height": 512}
        task = json.loads(self._ask(connection, "POST", "/txt2img", wanted))
        while time.monotonic() < self.until:
            answer = json.loads(self._ask(connection, "POST", "/progress", task))
            if answer["final_image_url"]:
                image = self._ask(connection, "GET", urlsplit(answer["final_image_url"]).path)
                if not image.endswith(_END):
                    raise ValueError("half an image")
                return
            time.sleep(_POLL)

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any = None
    ) -> bytes:
        begin = time.monotonic()
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        data = response.read()
        with self._lock:
            self.taken.setdefault(path.split("/")[1], []).append(time.monotonic() - begin)
        if response.status != http.HTTPStatus.OK:
            raise ValueError(f"{path.split('/')[1]}: {response.status}")
        return data


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def load(clients: int, seconds: float) -> bool:
    """Run the load, print what it took, and return True if nothing went wrong."""
    with served("--duration", "0.3", "--workers", "2") as server:
        run = Load(f"http://127.0.0.1:{server.port}", time.monotonic() + seconds)
        watch = threading.Thread(target=_watch, args=(server, run.until))
        watch.start()
        own, (busy, before) = time.process_time(), server.usage()
        run.run(clients)
        watch.join()
        used, after = server.usage()
    _say(f"{clients} clients, {seconds:.0f} s, {_RATE:g} submits/s")
    for name, values in sorted(run.taken.items()):
        values.sort()
        middle, late = values[len(values) // 2], values[int(0.95 * (len(values) - 1))]
        figures = " ".join(f"{1000 * each:.1f}" for each in (middle, late, values[-1]))
        _say(f"  {name:9} {len(values):7} requests, ms at p50, p95, most: {figures}")
    _say(f"  front: CPU {(used - busy) / seconds:.2f}, {before:.0f} MB then {after:.0f} MB")
    _say(f"  generator: CPU {(time.process_time() - own) / seconds:.2f}")
    _say(f"  errors: {dict(run.errors) or 'none'}")
    return not run.errors


def _watch(server: Served, until: float) -> None:
    while time.monotonic() < until:
        time.sleep(min(60.0, max(0.1, until - time.monotonic())))
        _say(f"  front: {server.usage()[1]:.0f} MB")


def kill() -> bool:
    """Kill the front every few seconds until all jobs are done; return True if each was, once."""
    with served("--duration", "0.2", "--workers", "2") as server:
        request = ImageRequest("a lighthouse", width=64, height=64, subseed=1, seed=1)
        url, kills, begin = f"http://127.0.0.1:{server.port}", 0, time.monotonic()
        with ImageLabs(url, polling=FixedInterval(0.2), timeout=600) as client:
            jobs = [client.submit(attrs.evolve(request, seed=n)) for n in range(_JOBS)]
            database = server.folder / "store/jobs.db"
            while _states(database)["done"] < _JOBS and kills < 100:
                time.sleep(_KILL)
                server.end(signal.SIGKILL)
                server.start()
                kills += 1
            images = {client.get_job(job.id).result().read() for job in jobs}
    whole = sum(image.endswith(_END) for image in images)
    _say(f"{_JOBS} jobs, {kills} kills in {time.monotonic() - begin:.0f} s: {whole} images, whole")
    return whole == _JOBS


def _states(database: Path) -> Counter[str]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return Counter(dict(connection.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state")))


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--kill", action="store_true", help="kill the front instead")
    options = parser.parse_args()
    if not (kill() if options.kill else load(options.clients, options.seconds)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
