"""Servers that speak the OpenAI images API as the real ones do, oddities included, on loopback."""

import base64
import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

Reply = tuple[int, dict[str, Any], dict[str, str]]
_OPENAI_FIELDS = {"model", "prompt", "n", "size", "output_format", "quality", "background", "user"}


class RefusedError(Exception):
    def __init__(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None):
        self.reply: Reply = (status, body, headers or {})


class FakeOpenAI:
    """One server. `drawn` is what each image was made from; `kind` names whose ways it has."""

    def __init__(self, kind: str = "generic", api_key: str = "") -> None:
        self.kind, self.api_key = kind, api_key
        self.asked: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.drawn: list[dict[str, Any]] = []
        self.script: list[Callable[[], Reply | None]] = []  # None: break the connection

    def answer(self, path: str, fields: dict[str, Any], headers: dict[str, str]) -> Reply | None:
        self.asked.append((path, fields, headers))
        if self.script:
            return self.script.pop(0)()
        try:
            return self._answer(path, fields, headers)
        except RefusedError as refused:
            return refused.reply

    def _answer(self, path: str, fields: dict[str, Any], headers: dict[str, str]) -> Reply:
        if self.api_key and headers.get("authorization") != f"Bearer {self.api_key}":
            key = headers.get("authorization", "")
            message = f"Incorrect API key provided: {key}."
            raise RefusedError(401, {"error": {"message": message, "code": "invalid_api_key"}})
        if not path.startswith("/v1/images/"):
            raise RefusedError(404, {"detail": "Not Found"})
        drawing = getattr(self, f"_{self.kind.replace('-', '_')}")(fields)
        self.drawn.append(drawing)
        return 200, self._envelope(fields, drawing), {}

    def _envelope(self, fields: dict[str, Any], drawing: dict[str, Any]) -> dict[str, Any]:
        file = base64.b64encode(draw(drawing)).decode()
        always = self.kind in ("sdcpp", "openai", "vllm-omni")
        item = {"b64_json": file}
        if not always and fields.get("response_format") != "b64_json":
            item = {"url": "http://127.0.0.1:9/somewhere.png"}
        answer: dict[str, Any] = {"created": 1, "data": [item]}
        if self.kind in ("openai", "localai"):
            answer["usage"] = {"input_tokens": 9, "output_tokens": 272, "input_tokens_details": {}}
        return answer

    # Whose ways ---------------------------------------------------------------------------

    def _generic(self, fields: dict[str, Any]) -> dict[str, Any]:
        width, height = (int(side) for side in re.split(r"[x*]", fields["size"]))
        return {
            "prompt": fields["prompt"],
            "negative": fields.get("negative_prompt") or "",
            "seed": int(fields.get("seed") or 0),
            "steps": fields.get("num_inference_steps"),
            "guidance": fields.get("guidance_scale"),
            "size": (width, height),
            "format": fields.get("output_format") or "png",
            "file": fields.get("image"),
        }

    def _openai(self, fields: dict[str, Any]) -> dict[str, Any]:
        unknown = set(fields) - _OPENAI_FIELDS - {"image"}
        if unknown:
            message = f"Unknown parameter: '{min(unknown)}'."
            raise RefusedError(400, {"error": {"message": message, "code": "unknown_parameter"}})
        if fields["size"] == "auto":
            fields = {**fields, "size": "1024x1024"}
        if fields["size"] not in ("1024x1024", "1536x1024", "1024x1536", "auto"):
            message = f"Invalid size '{fields['size']}' for '{fields['prompt']}'."
            raise RefusedError(400, {"error": {"message": message, "param": "size"}})
        return self._generic(fields)

    def _vllm_omni(self, fields: dict[str, Any]) -> dict[str, Any]:
        if int(fields.get("num_inference_steps") or 1) > 200:
            raise RefusedError(
                422, {"detail": [{"loc": ["body"], "msg": "less than or equal to 200"}]}
            )
        return self._generic(fields)

    def _sglang(self, fields: dict[str, Any]) -> dict[str, Any]:
        return self._generic({"output_format": "jpeg", "seed": 1024, **fields})

    def _localai(self, fields: dict[str, Any]) -> dict[str, Any]:
        positive, *rest = fields["prompt"].split("|")
        known = {"prompt": positive, "negative_prompt": rest[0] if rest else ""}
        steps = fields.get("step") or 15
        if fields.get("seed", 0) >= 2**31:
            raise RefusedError(500, {"error": {"message": "cannot unmarshal number", "code": 500}})
        return self._generic({**fields, **known, "num_inference_steps": steps})

    def _xinference(self, fields: dict[str, Any]) -> dict[str, Any]:
        return self._generic({**fields, **json.loads(fields.get("kwargs") or "{}")})

    def _sdcpp(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Sizes are rounded up to 64, the seed is 42, and a tag in the prompt rules."""
        tag = re.compile(r"<sd_cpp_extra_args>(.*?)</sd_cpp_extra_args>")
        found = tag.search(fields["prompt"])
        native = json.loads(found[1]) if found else {}
        sample = native.get("sample_params", {})
        width, height = (-(-int(side) // 64) * 64 for side in fields["size"].split("x"))
        known = {
            "prompt": tag.sub("", fields["prompt"]).strip(),
            "negative_prompt": native.get("negative_prompt", ""),
            "seed": native.get("seed", 42),
            "num_inference_steps": sample.get("sample_steps", 20),
            "guidance_scale": sample.get("guidance", {}).get("txt_cfg", 7.0),
            "size": f"{width}x{height}",
        }
        drawn = self._generic({**fields, **known})
        return {**drawn, "strength": native.get("strength")}


def draw(drawing: dict[str, Any]) -> bytes:
    """A plain image whose colour depends on everything that was asked."""
    shade = hash((drawing["prompt"], drawing["negative"], drawing["seed"])) % 2**24
    image = Image.new("RGB", drawing["size"], (shade >> 16, shade >> 8 & 255, shade & 255))
    file = io.BytesIO()
    image.save(file, drawing["format"].upper().replace("JPG", "JPEG"))
    return file.getvalue()


def _form(kind: str, body: bytes) -> dict[str, Any]:
    message = BytesParser(policy=HTTP).parsebytes(f"content-type: {kind}\r\n\r\n".encode() + body)
    fields: dict[str, Any] = {}
    for part in message.iter_parts():
        name = str(part.get_param("name", header="content-disposition"))
        content = bytes(part.get_payload(decode=True))
        fields[name] = content if part.get_filename() else content.decode()
    return fields


@contextmanager
def running(fake: FakeOpenAI) -> Iterator[str]:
    """The address, ending in ``/v1``, at which `fake` answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            kind = self.headers["content-type"]
            fields = _form(kind, body) if kind.startswith("multipart/") else json.loads(body)
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = fake.answer(self.path, fields, headers)
            if reply is None:
                self.close_connection = True
                return
            data = json.dumps(reply[1]).encode()
            self.send_response(reply[0])
            for name, value in {**reply[2], "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
