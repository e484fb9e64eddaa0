"""Engines behind `imagelabs serve`: the same script for each, and a front that is killed."""

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imagelabs_sdk import FixedInterval, ImageLabs, JobFailedError
from imagelabs_sdk.provenance import read_provenance
from imagelabs_sdk.server.engines.base import EngineConfig
from imagelabs_sdk.server.engines.comfyui import ComfyUIConfig, Workflow
from imagelabs_sdk.server.engines.landscape import LandscapeEngine
from imagelabs_sdk.server.engines.openai import OpenAIConfig
from imagelabs_sdk.server.http import running as listening
from imagelabs_sdk.server.local import LocalServer
from tests.server.fake_comfyui import RunningComfyUI, stock_workflow
from tests.server.fake_openai import FakeOpenAI, running

SCRIPT = """
import sys
from imagelabs_sdk import ImageLabs
with ImageLabs(sys.argv[1]) as client:
    image = client.generate("a lighthouse", width=64, height=64, seed=7, timeout=60)
    image.save(sys.argv[2])
    print(image.info["engine"], image.info["seed"], *image.read()[:8])
"""


@pytest.fixture
def comfy() -> Iterator[RunningComfyUI]:
    server = RunningComfyUI()
    yield server
    server.stop()


def comfyui(comfy: RunningComfyUI) -> ComfyUIConfig:
    workflow = Workflow.parse(json.dumps(stock_workflow()))
    return ComfyUIConfig(backends=(comfy.url,), workflow=workflow)


def run_script(engine: EngineConfig, target: Path) -> str:
    server = LocalServer(engine)
    try:
        with listening(server) as url:
            command = [sys.executable, "-c", SCRIPT, url, str(target)]
            return subprocess.run(
                command, check=True, capture_output=True, text=True, timeout=60
            ).stdout
    finally:
        server.close()


def test_the_same_script_gets_an_image_from_every_engine(
    comfy: RunningComfyUI, tmp_path: Path
) -> None:
    with running(FakeOpenAI("vllm-omni")) as url:
        engines: list[EngineConfig] = [
            LandscapeEngine(duration=0.0),
            comfyui(comfy),
            OpenAIConfig(backend=url, dialect="vllm-omni"),
        ]
        for engine in engines:
            target = tmp_path / f"{engine.name}.png"
            assert run_script(engine, target).startswith(f"{engine.name} 7 137 80 78 71")
            found = read_provenance(target.read_bytes())
            assert found is not None
            assert found.info["engine"] == engine.name


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Front:
    """`imagelabs serve` on one store and one port, which can be killed and started again."""

    def __init__(self, store: Path, *options: str) -> None:
        self.port = free_port()
        serving = ["serve", "--port", str(self.port), "--store", str(store)]
        self.command = [sys.executable, "-m", "imagelabs_sdk", *serving, *options]
        self.process = self.start()

    def start(self) -> "subprocess.Popen[str]":
        process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert "Serving on" in process.stdout.readline()
        return process

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def restart(self) -> None:
        self.process = self.start()


@contextmanager
def front(store: Path, *options: str) -> Iterator[Front]:
    made = Front(store, *options)
    try:
        yield made
    finally:
        made.kill()


def client_of(made: Front) -> ImageLabs:
    return ImageLabs(f"http://127.0.0.1:{made.port}", polling=FixedInterval(0.05))


def test_a_front_that_is_killed_while_comfyui_renders_finds_its_job_there(
    comfy: RunningComfyUI, tmp_path: Path
) -> None:
    workflow = tmp_path / "workflow_api.json"
    workflow.write_text(json.dumps(stock_workflow()))
    options = ("--engine", "comfyui", "--backend", comfy.url, "--workflow", str(workflow))
    comfy.fake.open_gate.clear()
    with front(tmp_path / "store", *options) as made, client_of(made) as client:
        job = client.submit("a lighthouse", width=64, height=64)
        assert comfy.fake.at_gate.wait(30)
        made.kill()
        made.restart()
        comfy.fake.open_gate.set()
        assert job.result(timeout=60).read().startswith(b"\x89PNG")
    assert len(comfy.fake.executed) == 1
    assert comfy.fake.asked.count("POST /prompt") == 1


def test_a_front_that_is_killed_during_a_post_says_that_the_image_may_exist(
    tmp_path: Path,
) -> None:
    fake, begun, end = FakeOpenAI("generic"), threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        end.wait(60)

    fake.script = [slow]
    with running(fake) as url:
        options = ("--engine", "openai", "--backend", url)
        with front(tmp_path / "store", *options) as made, client_of(made) as client:
            job = client.submit("a lighthouse", width=64, height=64)
            assert begun.wait(30)
            made.kill()
            made.restart()
            with pytest.raises(JobFailedError, match="may have been made"):
                job.wait(timeout=60)
        end.set()
    assert len(fake.asked) == 1


def test_a_lost_backend_leaves_its_job_to_the_other(comfy: RunningComfyUI) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    workflow = Workflow.parse(json.dumps(stock_workflow()))
    engine = ComfyUIConfig(backends=(gone, comfy.url), workflow=workflow, give_up_after=0.05)
    server = LocalServer(engine)
    try:
        with listening(server) as url, ImageLabs(url, polling=FixedInterval(0.05)) as client:
            jobs = [client.submit("a lighthouse", width=64, height=64, seed=n) for n in range(3)]
            assert all(job.result(timeout=60).read() for job in jobs)
    finally:
        server.close()
    assert len(comfy.fake.executed) == 3
