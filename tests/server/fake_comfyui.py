"""A ComfyUI server as the real one behaves, oddities included, on loopback.

In a thread (`FakeComfyUI`), or as a process of its own that can be killed:
``python -m tests.server.fake_comfyui PORT``.
"""

import asyncio
import io
import json
import struct
import sys
import threading
import uuid
from typing import Any

from aiohttp import WSMsgType, web
from PIL import Image
from PIL.PngImagePlugin import PngInfo

Graph = dict[str, Any]

OBJECT_INFO: dict[str, Any] = {
    "CheckpointLoaderSimple": {"input": {"required": {"ckpt_name": [["sdxl.safetensors"], {}]}}},
    "CLIPTextEncode": {"input": {"required": {"text": ["STRING", {}], "clip": ["CLIP"]}}},
    "EmptyLatentImage": {
        "input": {
            "required": {
                "width": ["INT", {"min": 16, "max": 16384, "step": 8}],
                "height": ["INT", {"min": 16, "max": 16384, "step": 8}],
                "batch_size": ["INT", {"min": 1, "max": 4096}],
            }
        }
    },
    "KSampler": {
        "input": {
            "required": {
                "seed": ["INT", {"min": 0, "max": 2**64 - 1}],
                "steps": ["INT", {"min": 1, "max": 10000}],
                "cfg": ["FLOAT", {"min": 0.0, "max": 100.0}],
                "sampler_name": [["euler"], {}],
                "scheduler": [["normal"], {}],
                "positive": ["CONDITIONING"],
                "negative": ["CONDITIONING"],
                "latent_image": ["LATENT"],
                "model": ["MODEL"],
                "denoise": ["FLOAT", {"min": 0.0, "max": 1.0}],
            }
        }
    },
    "VAEDecode": {"input": {"required": {"samples": ["LATENT"], "vae": ["VAE"]}}},
    "VAEEncode": {"input": {"required": {"pixels": ["IMAGE"], "vae": ["VAE"]}}},
    "LoadImage": {"input": {"required": {"image": [["example.png"], {"image_upload": True}]}}},
    "SaveImage": {
        "input": {"required": {"images": ["IMAGE"], "filename_prefix": ["STRING", {}]}},
        "output_node": True,
    },
}


def stock_workflow() -> Graph:
    """The text-to-image graph that ComfyUI starts with, in the API's format."""
    return {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 156680208700286,
                "steps": 4,
                "cfg": 8.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
                "model": ["4", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["5", 0],
            },
        },
        "4": {
            "class_type": "CheckpointLoaderSimple",
            "inputs": {"ckpt_name": "sdxl.safetensors"},
        },
        "5": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": 512, "height": 512, "batch_size": 1},
        },
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {
            "class_type": "SaveImage",
            "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]},
        },
    }


class _InterruptedError(Exception):
    pass


class FakeComfyUI:
    """One server. What it was asked and did is in its attributes, for tests to read.

    Attributes:
        executed: Ids in the order in which they were run, cached runs included.
        asked: Method and path of each request.
        has_jobs_api: False: an older version, without ``/api/jobs``.
        takes_prompt_id: False: older still; it mints ids of its own.
        lingers: A finished job is among the running ones until its history was asked for.
        fails_with: A message with which the sampler fails; empty: it does not.
        open_gate: While it is not set, the sampler waits after its first step.
    """

    def __init__(self) -> None:
        self.pending: list[tuple[Any, ...]] = []
        self.running: list[tuple[Any, ...]] = []
        self.history: dict[str, Any] = {}
        self.files: dict[tuple[str, str, str], bytes] = {}
        self.cache: dict[str, dict[str, Any]] = {}
        self.executed: list[str] = []
        self.asked: list[str] = []
        self.sockets: dict[str, tuple[web.WebSocketResponse, dict[str, Any]]] = {}
        self.has_jobs_api = self.takes_prompt_id = self.has_websocket = True
        self.fails_with = ""
        self.lingers = False
        self._read: set[str] = set()
        self.open_gate = threading.Event()
        self.open_gate.set()
        self.at_gate = threading.Event()
        self.interrupted = False
        self.graphs: list[Graph] = []
        self._count = 0
        self._wake: asyncio.Event

    # The queue ----------------------------------------------------------------------------

    async def work(self) -> None:
        self._wake = asyncio.Event()
        while True:
            while not self.pending:
                self._wake.clear()
                await self._wake.wait()
            self.pending.sort(key=lambda item: float(item[0]))
            item = self.pending.pop(0)
            self.running.append(item)
            await self._execute(item)
            while self.lingers and item[1] not in self._read:
                await asyncio.sleep(0.005)
            self.running.remove(item)

    async def _execute(self, item: tuple[Any, ...]) -> None:
        _, handle, graph, extra, _ = item
        self.executed.append(handle)
        messages: list[Any] = []
        self.interrupted = False
        outputs: dict[str, Any] = {}
        await self._tell(extra, "execution_start", {"prompt_id": handle}, messages)
        try:
            key = json.dumps(graph, sort_keys=True)
            cached = list(graph) if key in self.cache else []
            data = {"nodes": cached, "prompt_id": handle}
            await self._tell(extra, "execution_cached", data, messages)
            if key not in self.cache:
                await self._sample(handle, graph, extra)
                self.cache[key] = self._save(graph)
            outputs = self.cache[key]
            status, end, more = "success", "execution_success", {}
        except _InterruptedError:
            status, end, more = "error", "execution_interrupted", {"node_id": "3"}
        except RuntimeError as exc:
            status, end = "error", "execution_error"
            more = {"node_type": "KSampler", "exception_message": str(exc)}
        self.history[handle] = {
            "prompt": [*item[:3], extra, item[4]],
            "outputs": outputs,
            "status": {"status_str": status, "completed": not more, "messages": messages},
        }
        await self._tell(extra, end, {"prompt_id": handle, **more}, messages)
        data = {"node": None, "prompt_id": handle}
        await self._tell(extra, "executing", data, [])

    async def _sample(self, handle: str, graph: Graph, extra: dict[str, Any]) -> None:
        steps = graph["3"]["inputs"]["steps"]
        for step in range(1, steps + 1):
            data = {"value": step, "max": steps, "prompt_id": handle, "node": "3"}
            await self._tell(extra, "progress", data, [])
            nodes = {"3": {"value": step, "max": steps, "state": "running"}}
            await self._tell(extra, "progress_state", {"prompt_id": handle, "nodes": nodes}, [])
            await self._preview(handle, extra)
            while not self.open_gate.is_set() and not self.interrupted:
                self.at_gate.set()
                await asyncio.sleep(0.005)
            await asyncio.sleep(0)
            if self.interrupted:
                raise _InterruptedError
        if self.fails_with:
            raise RuntimeError(self.fails_with)
        decoding = {"value": 1, "max": 4, "prompt_id": handle, "node": "8"}  # falls back
        await self._tell(extra, "progress", decoding, [])

    def _save(self, graph: Graph) -> dict[str, Any]:
        size = [512, 512]
        if "width" in graph["5"]["inputs"]:
            size = [graph["5"]["inputs"][side] // 8 * 8 for side in ("width", "height")]
        shade = hash((graph["6"]["inputs"]["text"], graph["3"]["inputs"]["seed"])) % 2**24
        colour = (shade >> 16, shade >> 8 & 255, shade & 255)
        info = PngInfo()
        info.add_text("prompt", json.dumps(graph))
        info.add_text("workflow", json.dumps({"nodes": []}))
        file = io.BytesIO()
        Image.new("RGB", (size[0], size[1]), colour).save(file, "PNG", pnginfo=info)
        self._count += 1
        name = f"ComfyUI_{self._count:05}_.png"
        self.files["output", "", name] = file.getvalue()
        return {"9": {"images": [{"filename": name, "subfolder": "", "type": "output"}]}}

    # The websocket -------------------------------------------------------------------------

    async def _tell(
        self, extra: dict[str, Any], kind: str, data: dict[str, Any], messages: list[Any]
    ) -> None:
        messages.append([kind, {**data, "timestamp": 1}])
        if extra.get("client_id") in self.sockets:
            socket, _ = self.sockets[extra["client_id"]]
            await _quietly(socket.send_json({"type": kind, "data": data}))

    async def _preview(self, handle: str, extra: dict[str, Any]) -> None:
        if extra.get("client_id") not in self.sockets:
            return
        socket, flags = self.sockets[extra["client_id"]]
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "JPEG")
        if flags.get("supports_preview_metadata"):
            metadata = json.dumps({"prompt_id": handle, "image_type": "image/jpeg"}).encode()
            head = struct.pack(">II", 4, len(metadata)) + metadata
        else:
            head = struct.pack(">II", 1, 1)
        await _quietly(socket.send_bytes(head + file.getvalue()))

    async def ws(self, request: web.Request) -> web.StreamResponse:
        if not self.has_websocket:
            raise web.HTTPNotFound
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        sid = request.query.get("clientId") or uuid.uuid4().hex
        flags: dict[str, Any] = {}
        self.sockets[sid] = (socket, flags)
        status = {"status": {"exec_info": {"queue_remaining": len(self.pending)}}, "sid": sid}
        await socket.send_json({"type": "status", "data": status})
        first = True
        async for message in socket:
            if message.type is WSMsgType.TEXT and first:
                data = json.loads(message.data)
                if data.get("type") == "feature_flags":
                    flags.update(data["data"])
                    answer = {"supports_preview_metadata": True}
                    await socket.send_json({"type": "feature_flags", "data": answer})
            first = False
        if self.sockets.get(sid, (None,))[0] is socket:
            del self.sockets[sid]
        return socket

    # HTTP ---------------------------------------------------------------------------------

    async def post_prompt(self, request: web.Request) -> web.Response:
        data = await request.json()
        handle = data.get("prompt_id") if self.takes_prompt_id else None
        if handle is None:
            handle = str(uuid.uuid4())
        elif str(uuid.UUID(handle)) != handle:
            error = {"type": "invalid_prompt_id", "message": "prompt_id must be a valid UUID"}
            return web.json_response({"error": error, "node_errors": {}}, status=400)
        errors = _validate(data["prompt"], self.files)
        if errors:
            error = {"type": "prompt_outputs_failed_validation", "message": "Prompt has errors"}
            return web.json_response({"error": error, "node_errors": errors}, status=400)
        extra = {**data.get("extra_data", {}), "create_time": 1}
        if "client_id" in data:
            extra["client_id"] = data["client_id"]
        number = len(self.executed) + len(self.pending)
        self.graphs.append(data["prompt"])
        self.pending.append((number, handle, data["prompt"], extra, ["9"]))
        self._wake.set()
        return web.json_response({"prompt_id": handle, "number": number, "node_errors": {}})

    async def get_job(self, request: web.Request) -> web.Response:
        handle = request.match_info["id"]
        if handle in self.history:
            entry = self.history[handle]
            failed = entry["status"]["status_str"] == "error"
            job = {
                "id": handle,
                "status": "failed" if failed else "completed",
                "outputs": entry["outputs"],
                "execution_status": entry["status"],
            }
            return web.json_response(job)
        for status, queue in (("in_progress", self.running), ("pending", self.pending)):
            if handle in [item[1] for item in queue]:
                return web.json_response({"id": handle, "status": status})
        return web.json_response({"error": "Job not found"}, status=404)

    def _cancel(self, handle: str) -> bool:
        if handle in [item[1] for item in self.running]:
            self.interrupted = True
            return True
        before = len(self.pending)
        self.pending = [item for item in self.pending if item[1] != handle]
        return len(self.pending) < before

    async def cancel_job(self, request: web.Request) -> web.Response:
        return web.json_response({"cancelled": self._cancel(request.match_info["id"])})

    async def get_history(self, request: web.Request) -> web.Response:
        handle = request.match_info["id"]
        found = {handle: self.history[handle]} if handle in self.history else {}
        self._read.update(found)
        return web.json_response(found)

    async def get_queue(self, _: web.Request) -> web.Response:
        queues = {"queue_running": self.running, "queue_pending": self.pending}
        return web.json_response(queues)

    async def post_queue(self, request: web.Request) -> web.Response:
        handles = (await request.json()).get("delete", [])
        self.pending = [item for item in self.pending if item[1] not in handles]
        return web.Response()

    async def interrupt(self, request: web.Request) -> web.Response:
        handle = (await request.json()).get("prompt_id")
        if handle is None or handle in [item[1] for item in self.running]:
            self.interrupted = True
        return web.Response()

    async def object_info(self, _: web.Request) -> web.Response:
        return web.json_response(OBJECT_INFO)

    async def system_stats(self, _: web.Request) -> web.Response:
        return web.json_response({"system": {"comfyui_version": "0.9.0"}, "devices": []})

    async def view(self, request: web.Request) -> web.Response:
        query = request.query
        kind, folder = query.get("type", "output"), query.get("subfolder", "")
        data = self.files.get((kind, folder, query["filename"]))
        if data is None:
            raise web.HTTPNotFound
        return web.Response(body=data, content_type="image/png")

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        image: Any = form["image"]
        kind, folder = str(form.get("type", "input")), str(form.get("subfolder", ""))
        self.files[kind, folder, image.filename] = image.file.read()
        return web.json_response({"name": image.filename, "subfolder": folder, "type": kind})

    def app(self) -> web.Application:
        @web.middleware
        async def note(request: web.Request, handler: Any) -> web.StreamResponse:
            self.asked.append(f"{request.method} {request.path}")
            if request.path.startswith("/api/jobs") and not self.has_jobs_api:
                raise web.HTTPNotFound
            answer: web.StreamResponse = await handler(request)
            return answer

        async def worker(_: web.Application) -> Any:
            task = asyncio.create_task(self.work())
            yield
            task.cancel()

        app = web.Application(middlewares=[note], client_max_size=2**26)
        app.add_routes(
            [
                web.get("/ws", self.ws),
                web.post("/prompt", self.post_prompt),
                web.get("/api/jobs/{id}", self.get_job),
                web.post("/api/jobs/{id}/cancel", self.cancel_job),
                web.get("/history/{id}", self.get_history),
                web.get("/queue", self.get_queue),
                web.post("/queue", self.post_queue),
                web.post("/interrupt", self.interrupt),
                web.get("/object_info", self.object_info),
                web.get("/system_stats", self.system_stats),
                web.get("/view", self.view),
                web.post("/upload/image", self.upload),
            ]
        )
        app.cleanup_ctx.append(worker)
        return app


async def _quietly(sending: Any) -> None:
    try:
        await sending
    except (ConnectionError, RuntimeError):
        return


def _validate(graph: Graph, files: dict[tuple[str, str, str], bytes]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node, parts in graph.items():
        errors = []
        info = OBJECT_INFO.get(parts["class_type"], {})
        for name, kind in info.get("input", {}).get("required", {}).items():
            value = parts["inputs"].get(name)
            limits = kind[1] if len(kind) > 1 else {}
            if value is None:
                errors.append({"message": "Required input is missing", "details": name})
            elif "min" in limits and not isinstance(value, list):
                for over, word in (
                    (value < limits["min"], "smaller than min"),
                    (value > limits["max"], "bigger than max"),
                ):
                    if over:
                        errors.append({"message": f"Value {value} {word}", "details": name})
            elif limits.get("image_upload"):
                folder, _, file = value.rpartition("/")
                if ("input", folder, file) not in files:
                    errors.append({"message": "Invalid image file", "details": value})
        if errors:
            found[node] = {"class_type": parts["class_type"], "errors": errors}
    return found


class RunningComfyUI:
    """A fake server in a thread, on a port of its own, until `stop`."""

    def __init__(self, fake: FakeComfyUI | None = None, port: int = 0) -> None:
        self.fake = fake or FakeComfyUI()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.port = port
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(30)
        self.url = f"http://127.0.0.1:{self.port}"

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        runner = web.AppRunner(self.fake.app(), shutdown_timeout=0.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = runner.addresses[0][1]
        self._stop = asyncio.Event()
        self._ready.set()
        await self._stop.wait()
        for socket, _ in list(self.fake.sockets.values()):
            await socket.close()
        await runner.cleanup()

    def stop(self) -> None:
        self.fake.open_gate.set()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)


if __name__ == "__main__":
    web.run_app(FakeComfyUI().app(), host="127.0.0.1", port=int(sys.argv[1]), print=None)
