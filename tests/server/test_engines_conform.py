"""Every engine keeps the promises of the contract."""

import json

from imagelabs_sdk.server.engines.comfyui import ComfyUIConfig, Workflow
from imagelabs_sdk.server.engines.conformance import check_engine
from imagelabs_sdk.server.engines.openai import OpenAIConfig
from tests.server.fake_comfyui import RunningComfyUI, stock_workflow
from tests.server.fake_openai import FakeOpenAI, running
from tests.server.monitor import job


def test_the_engine_for_openai_servers_conforms() -> None:
    with running(FakeOpenAI("vllm-omni")) as url:
        check_engine(OpenAIConfig(backend=url, dialect="vllm-omni"), job().request)


def test_the_engine_for_comfyui_conforms() -> None:
    server = RunningComfyUI()
    try:
        workflow = Workflow.parse(json.dumps(stock_workflow()))
        check_engine(ComfyUIConfig(backends=(server.url,), workflow=workflow), job().request)
    finally:
        server.stop()
