"""The rooms of the house and who may import whom, held against the code."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import imagelabs_sdk

ROOT = Path(imagelabs_sdk.__file__).parent

SPINE = [
    "validation",
    "_redact",
    "errors",
    "deadline",
    "models",
    "wire",
    "transports.base",
    "endpoints",
    "polling",
    "downloads",
    "images",
    "settings",
    "context",
    "eta",
]
PUBLIC = ["__init__"]
KIT = ["testing.clock", "testing.script", "testing.service", "testing.transport"]
DJANGO = [
    f"contrib.django.{room}"
    for room in ("choices", "conf", "clients", "poll", "lifecycle", "storage", "managers", "models")
]
ENGINE = ["server.engines.base", "server.engines.references", "server.engines.tuning"]
MAY_IMPORT = {
    "__init__": [],
    "_deprecation": [],
    "_extras": [],
    "_redact": [],
    "curl": [],
    "errors": ["curl", "_redact"],
    "urls": ["_redact"],
    "validation": ["_redact", "errors", "urls"],
    "settings": ["validation", "ledger"],
    "reference": ["settings"],
    "deadline": ["validation"],
    "reference_images": ["formats", "validation"],
    "models": ["reference_images", "validation", "_redact", "parameters", "sidecar"],
    "_json": [],
    "wire": ["_json", "_redact", "errors", "models", "urls"],
    "transports.__init__": [],
    "transports.base": ["errors", "deadline"],
    "transports.handler": ["errors", "deadline", "transports.base"],
    "transports._secrets": ["_redact", "provenance", "transports.base"],
    "transports.cassette": ["_files", "validation", "errors", "deadline", "formats",
                            "transports._secrets", "transports.base"],
    "transports.observed": ["errors", "deadline", "transports.base"],
    "transports.requests": ["validation", "deadline", "transports.base", "transports._session"],
    "transports._session": ["_redact", "errors", "deadline", "transports.base",
                            "transports._addresses", "transports._body",
                            "transports._connections", "transports._cookies",
                            "transports._environment", "transports._failures",
                            "transports._system_trust"],
    "transports.curl_cffi": ["_extras", "_redact", "validation", "errors", "deadline", "settings",
                             "transports.base", "transports._addresses", "transports._body",
                             "transports._cookies", "transports._environment",
                             "transports._failures", "transports._libcurl"],
    "transports._libcurl": ["deadline"],
    "transports._system_trust": [],
    "transports._cookies": [],
    "transports._environment": ["validation"],
    "transports._failures": ["_redact", "errors"],
    "transports._connections": ["deadline", "transports._addresses"],
    "transports._addresses": ["deadline"],
    "transports._body": [],
    "_answers": ["_redact", "errors", "wire", "transports.base"],
    "extensions": ["transports.base"],
    "endpoints": ["_answers", "_redact", "settings", "errors", "deadline", "models", "wire",
                  "transports.base", "extensions"],
    "polling": ["validation", "errors", "models"],
    "formats": [],
    "_pieces": ["formats"],
    "_exif": [],
    "provenance": ["_pieces"],
    "parameters": ["_exif", "_pieces", "provenance"],
    "_files": [],
    "ledger": ["_journal", "_redact", "errors", "models", "wire"],
    "_journal": ["_files", "_redact", "errors"],
    "eta": ["models", "polling"],
    "downloads": ["_answers", "_redact", "settings", "errors", "deadline", "formats",
                  "transports.base", "urls"],
    "sidecar": ["_files"],
    "viewing": ["models"],
    "images": ["_redact", "validation", "errors", "deadline", "formats", "models", "downloads",
               "_files", "sidecar", "urls", "viewing"],
    "job_errors": ["errors", "models", "wire"],
    "waiting": ["context", "extensions", "models"],
    "jobs": [*SPINE, "extensions", "job_errors", "waiting"],
    "batch.__init__": [],
    "batch.admission": ["errors", "endpoints"],
    "batch.checkpoint": ["_journal", "errors", "images", "models", "urls", "validation", "wire"],
    "batch.scheduler": [*SPINE, "extensions", "jobs", "waiting", "batch.admission",
                        "batch.checkpoint"],
    "batch.batch": [*SPINE, "jobs", "job_errors", "batch.checkpoint", "batch.scheduler"],
    "context": ["deadline", "endpoints", "downloads", "polling", "settings", "transports.base",
                "transports.requests", "transports.observed"],
    "_logging": ["validation"],
    "client": ["_logging", "validation", "settings", "reference", "context", "images", "models",
               "jobs", "batch.batch", "batch.scheduler"],
    "server.__init__": [],
    "server.engines.__init__": [],
    "server.engines.base": ["models", "provenance"],
    "server.engines.landscape.__init__": ["server.engines.landscape.engine"],
    "server.engines.landscape.scene": ["models"],
    "server.engines.landscape.shapes": ["server.engines.landscape.scene"],
    "server.engines.landscape.painter": ["server.engines.landscape.__init__",
        "server.engines.landscape.scene", "server.engines.landscape.shapes"],
    "server.engines.landscape.engine": ["validation", "models", "server.engines.base",
        "server.engines.landscape.renders", "server.engines.landscape.scene",
        "server.engines.tuning"],
    "server.engines.landscape.renders": ["models", "provenance", "server.engines.base",
        "server.engines.landscape.scene", "server.engines.landscape.painter",
        "server.engines.tuning"],
    "server.engines.landscape.timeline": ["provenance", "server.encoding", "server.store.jobs",
        "server.engines.base", "server.engines.landscape.engine",
        "server.engines.landscape.renders"],
    "server.engines.tuning": ["validation", "models"],
    "server.engines.references": ["validation", "models"],
    "server.engines.files": ["formats"],
    "server.engines.backend": ["_redact", "errors", "deadline", "transports.base", "validation"],
    "server.engines.openai.__init__": ["server.engines.openai.config"],
    "server.engines.openai.dialects": ["validation", "models", "server.engines.tuning"],
    "server.engines.openai.config": ["validation", "models", *ENGINE,
        "server.engines.openai.dialects", "server.engines.openai.engine",
        "server.engines.backend", "transports.requests"],
    "server.engines.openai.engine": ["errors", "deadline", "provenance", *ENGINE,
        "server.engines.backend", "server.engines.files", "server.engines.openai.dialects"],
    "server.engines.diffusers.__init__": ["server.engines.diffusers.config"],
    "server.engines.diffusers.models": ["validation"],
    "server.engines.diffusers.latents": [],
    "server.engines.diffusers.config": ["validation", "models", *ENGINE,
        "server.engines.diffusers.models", "server.engines.diffusers.engine"],
    "server.engines.diffusers.engine": ["models", *ENGINE, "server.engines.diffusers.latents",
        "server.engines.diffusers.models"],
    "server.engines.comfyui.__init__": ["server.engines.comfyui.config",
        "server.engines.comfyui.workflow"],
    "server.engines.comfyui.workflow": ["validation"],
    "server.engines.comfyui.config": ["validation", "models", *ENGINE, "transports.requests",
        "server.engines.backend", "server.engines.comfyui.workflow",
        "server.engines.comfyui.engine"],
    "server.engines.comfyui.events": [],
    "server.engines.comfyui.jobs": ["deadline", "server.engines.backend", "server.engines.base"],
    "server.engines.comfyui.engine": ["errors", "deadline", "provenance", *ENGINE,
        "server.engines.backend", "server.engines.files", "server.engines.comfyui.events",
        "server.engines.comfyui.jobs", "server.engines.comfyui.workflow"],
    "server.engines.catalog": ["errors", "validation", "server.engines.base",
        "server.engines.tuning", "server.engines.landscape.__init__",
        "server.engines.diffusers.__init__", "server.engines.diffusers.models",
        "server.engines.openai.__init__", "server.engines.comfyui.__init__",
        "server.engines.comfyui.engine"],
    "server.engines.conformance": ["errors", "models", "server.engines.base"],
    "server.store.__init__": [],
    "server.store.images": [],
    "server.store.database": [],
    "server.store.records": ["models", "server.engines.base"],
    "server.store.capacity": ["errors", "models", "server.options", "server.store.images",
                              "server.store.records"],
    "server.store.queue": ["errors", "models", "wire", "server.engines.base"],
    "server.store.jobs": ["models", "provenance", "wire", "server.engines.base", "server.options",
                          "server.store.capacity", "server.store.database",
                          "server.store.images", "server.store.queue", "server.store.records"],
    "server.encoding": [],
    "server.worker": ["provenance", "server.encoding", "server.engines.base"],
    "server.options": ["validation"],
    "server.pool": ["errors", "server.engines.base", "server.options", "server.store.jobs",
                    "server.store.records", "server.worker"],
    "server.app": ["errors", "models", "wire", "transports.base", "server.engines.base",
                   "server.store.images", "server.store.jobs", "server.store.records"],
    "server.access": ["errors", "transports.base", "server.app"],
    "server.metrics": ["transports.base", "server.store.jobs"],
    "server.site": ["transports.base", "server.access", "server.app"],
    "server.sockets": [],
    "server.http": ["wire", "transports.base", "server.app", "server.options", "server.sockets"],
    "server.wsgi": ["transports.base", "server.app"],
    "server.service": ["server.access", "server.app", "server.engines.base", "server.http",
                       "server.metrics", "server.options", "server.pool", "server.site",
                       "server.store.jobs"],
    "server.local": ["transports.base", "server.app", "server.engines.base",
                     "server.engines.landscape.engine", "server.engines.landscape.timeline",
                     "server.options", "server.pool", "server.store.jobs"],
    "embedded": ["_extras", "client", "polling", "server.engines.base",
                 "server.engines.landscape.__init__",
                 "server.local", "transports.handler"],
    "testing.__init__": [*KIT, "testing.backend", "testing.conformance",
                         "testing.scenario", "testing.sockets"],
    "testing.peer": [],
    "testing.conformance": ["validation", "errors", "deadline", "transports.base", "testing.peer"],
    "testing.backend": [*SPINE, *KIT],
    "testing.fixtures": ["client", "deadline", "transports.base", "transports.curl_cffi",
                         "transports.requests", *KIT, "testing.backend", "testing.django",
                         "testing.sockets"],
    "testing.django": ["client", "contrib.django.sweep", *KIT, "testing.backend"],
    "testing.clock": ["polling", "validation"],
    "testing.script": ["validation", "models", "wire", "transports.base"],
    "testing.transport": ["errors", "deadline", "transports.base", *KIT[:2]],
    "testing.service": [*SPINE, "client", "extensions", *KIT],
    "testing.sockets": ["transports.base", *KIT],
    "testing.scenario": ["validation", "errors", *KIT, "testing.sockets"],
    "cli.__init__": [],
    "cli.output": PUBLIC,
    "cli.files": [],
    "cli.prompts": [],
    "cli.captions": [],
    "cli.contact_sheet": ["_files", "cli.captions"],
    "cli.fields": [],
    "cli.items": [*PUBLIC, "models", "cli.fields", "cli.prompts"],
    "cli.signals": [],
    "cli.option_names": PUBLIC,
    "cli.exits": [*PUBLIC, "_extras", "cli.option_names", "cli.output", "cli.signals"],
    "cli.runtime": [*PUBLIC, "cli.exits", "embedded"],
    "cli.options": [*PUBLIC, "cli.files", "cli.runtime"],
    "cli.display": [*PUBLIC, "cli.output", "cli.runtime"],
    "cli.interrupts": [*PUBLIC, "cli.output", "cli.runtime"],
    "cli.preview": [*PUBLIC, "cli.contact_sheet"],
    "cli.single": [*PUBLIC, "cli.display", "cli.exits", "cli.interrupts", "cli.options",
                   "cli.output", "cli.preview", "cli.runtime"],
    "cli.batch": [*PUBLIC, "cli.__init__", "cli.contact_sheet", "cli.display", "cli.exits",
                  "cli.files", "cli.interrupts", "cli.items", "cli.options", "cli.output"],
    "cli.engines": ["cli.exits", "cli.option_names", "cli.options", "cli.output",
                    "server.engines.catalog", "server.engines.diffusers.models"],
    "cli.serve": ["testing.scenario", "cli.engines", "cli.exits", "cli.option_names",
                  "cli.options", "cli.output", "server.access",
                  "server.engines.landscape.__init__", "server.engines.landscape.renders",
                  "server.options", "server.service", "server.store.database"],
    "cli.commands": [*PUBLIC, "cli.batch", "cli.doctor", "cli.engines", "cli.exits", "cli.fields",
                     "cli.files", "cli.items", "cli.jobs", "cli.options", "cli.output",
                     "cli.prompts", "cli.runtime", "cli.serve", "cli.show", "cli.single"],
    "cli.doctor": [*PUBLIC, "cli.exits", "cli.option_names", "cli.options", "cli.output",
                   "cli.runtime"],
    "cli.jobs": [*PUBLIC, "cli.display", "cli.exits", "cli.files", "cli.option_names",
                 "cli.options", "cli.output", "cli.runtime"],
    "cli.show": [*PUBLIC, "parameters", "sidecar", "cli.option_names", "cli.options", "cli.output"],
    "__main__": ["cli.commands"],
    "contrib.__init__": [],
    "contrib.celery": [*PUBLIC, "_extras"],
    "contrib.g4f": PUBLIC,
    **{f"contrib.django.{room}": [] for room in
       ("management.__init__", "management.commands.__init__", "migrations.__init__",
        "templatetags.__init__", "signals", "choices", "conf", "storage", "threads")},
    "contrib.django.__init__": ["_extras", "contrib.django.clients"],
    "contrib.django.clients": [*PUBLIC, "contrib.django.conf"],
    "contrib.django.checks": [*DJANGO[1:3], "contrib.django.django_tasks"],
    "contrib.django.apps": ["contrib.django.checks", "contrib.django.receivers"],
    "contrib.django.poll": [*PUBLIC, "errors", *DJANGO[:3], "contrib.django.storage"],
    "contrib.django.lifecycle": [*PUBLIC, "contrib.django.signals", *DJANGO[:4],
                                 "contrib.django.storage"],
    "contrib.django.managers": [*PUBLIC, *DJANGO[:5], "contrib.django.signals"],
    "contrib.django.models": DJANGO[:-1],
    "contrib.django.receivers": [*DJANGO, "contrib.django.django_tasks", "contrib.django.signals"],
    "contrib.django.migrations.0001_initial": DJANGO,
    "contrib.django.health": PUBLIC,
    "contrib.django.sweep": [*PUBLIC, *DJANGO, "contrib.django.health", "contrib.django.threads"],
    "contrib.django.presenters": DJANGO,
    "contrib.django.templatetags.imagelabs": [*DJANGO, "contrib.django.presenters"],
    "contrib.django.forms": PUBLIC,
    "contrib.django.views": [*PUBLIC, *DJANGO, "formats", "contrib.django.presenters",
                             "contrib.django.forms", "contrib.django.signals"],
    "contrib.django.urls": ["contrib.django.models", "contrib.django.views"],
    "contrib.django.admin": [*DJANGO, "contrib.django.views"],
    "contrib.django.django_tasks": ["contrib.django.models", "contrib.django.sweep"],
    "contrib.django.tasks": ["contrib.django.sweep"],
    "contrib.django.management.commands.imagelabs_prune": [*DJANGO, "contrib.django.receivers",
                                                           "contrib.django.sweep"],
    "contrib.django.management.commands.imagelabs_sweep": [*DJANGO, "contrib.django.sweep"],
}  # fmt: skip

EXTRAS = {
    "viewing": {"PIL"},
    "cli.engines": {"click"},
    **{
        f"cli.{room}": {"click"}
        for room in (
            "batch",
            "commands",
            "doctor",
            "exits",
            "fields",
            "files",
            "items",
            "jobs",
            "option_names",
            "options",
            "output",
            "prompts",
            "show",
            "single",
        )
    },
    "cli.captions": {"PIL"},
    "cli.serve": {"click"},
    "cli.contact_sheet": {"PIL"},
    "cli.display": {"rich"},
    "cli.preview": {"PIL", "rich"},
    "cli.runtime": {"click", "rich"},
    "contrib.celery": {"celery"},
    "contrib.django.django_tasks": {"django", "django_tasks"},
    "contrib.django.managers": {"asgiref", "django"},
    "contrib.django.storage": {"PIL", "django"},
    "contrib.django.tasks": {"celery"},
    "server.engines.backend": {"urllib3"},
    "server.engines.base": {"PIL"},
    "server.engines.files": {"PIL"},
    "server.engines.comfyui.engine": {"PIL"},
    "server.engines.diffusers.engine": {"PIL", "diffusers", "torch", "transformers"},
    "server.engines.diffusers.latents": {"PIL", "torch"},
    "server.engines.diffusers.models": {"huggingface_hub"},
    "server.engines.comfyui.events": {"websocket"},
    "server.engines.openai.engine": {"PIL"},
    "server.engines.references": {"PIL"},
    "server.engines.landscape.renders": {"PIL"},
    "server.encoding": {"PIL"},
    "server.engines.conformance": {"PIL"},
    "server.worker": {"PIL"},
    "server.engines.landscape.painter": {"PIL"},
    "server.http": {"h11"},
    "server.metrics": {"prometheus_client"},
    "testing.django": {"django"},
    "testing.fixtures": {"pytest"},
    "transports._environment": {"requests"},
    "transports._libcurl": {"curl_cffi"},
    "transports._system_trust": {"truststore"},
    "transports._session": {"requests", "urllib3"},
    "transports.curl_cffi": {"curl_cffi"},
    "urls": {"idna"},
    "transports._connections": {"urllib3"},
}


# Their hints name the model, whose manager calls them: Django's own circle of row and manager.
NAME_THE_ROW = {f"contrib.django.{room}" for room in ("lifecycle", "managers", "poll", "storage")}


def rooms() -> list[str]:
    paths = (path.relative_to(ROOT).with_suffix("") for path in ROOT.rglob("*.py"))
    return sorted(".".join(path.parts) for path in paths)


ROOMS = rooms()


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def walk(node: ast.AST, *, hints: bool) -> list[ast.AST]:
    if is_for_types_only(node) and not hints:
        return []
    children = ast.iter_child_nodes(node)
    return [node, *(inner for child in children for inner in walk(child, hints=hints))]


def imports(room: str, *, hints: bool = False) -> set[str]:
    """Absolute names of what a room imports when it runs, with `hints` also for type checkers."""
    tree = ast.parse((ROOT / (room.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    package = ["imagelabs_sdk", *room.split(".")[:-1]]
    found: set[str] = set()
    for node in walk(tree, hints=hints):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{origin}.{name.name}" for name in node.names}
    return found


def own_room(name: str) -> str | None:
    """The room that holds `name`: itself, or the nearest module or package above it."""
    top, *parts = name.split(".")
    if top != "imagelabs_sdk":
        return None
    for end in range(len(parts), 0, -1):
        room = ".".join(parts[:end])
        for known in (room, f"{room}.__init__"):
            if known in ROOMS:
                return known
    return "__init__"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_its_place_on_the_way_allows(room: str) -> None:
    """Data flows one way; a room that reaches back or around makes every later change dearer."""
    own = {own_room(name) for name in imports(room)} - {None}
    assert own <= set(MAY_IMPORT[room])


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_no_package_that_is_not_its_own(room: str) -> None:
    """The core needs requests and attrs alone, and requests only where bytes are carried."""
    top = {name.partition(".")[0] for name in imports(room)}
    foreign = top - set(sys.stdlib_module_names) - {"imagelabs_sdk", "attrs"}
    allowed = {"django"} if room.startswith("contrib.django.") else set()
    assert foreign <= EXTRAS.get(room, allowed)


def test_no_import_goes_round() -> None:
    """Neither when a function is called nor in a type hint: such a circle only hides."""
    graph = {
        room: {own_room(name) for name in imports(room, hints=room not in NAME_THE_ROW)} - {None}
        for room in ROOMS
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises a CycleError that names them


def test_the_table_names_no_room_that_is_gone() -> None:
    """A table that outlives its rooms holds nothing."""
    assert set(MAY_IMPORT) == set(ROOMS)


def test_each_room_has_a_row_in_the_document() -> None:
    """Who looks for a room's task finds it: by its name, or by the folder that has one row."""
    document = (ROOT.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    first_cells = re.findall(r"^\| (.*?) \|", document, re.MULTILINE)
    named = re.findall(r"`([\w/.]+)`", " ".join(first_cells))
    modules = {name.removesuffix(".py").rpartition("/")[2] for name in named}
    folders = {name.rstrip("/").rpartition("/")[2] for name in named if name.endswith("/")}
    folders -= {"server", "cli", "contrib", "django"}  # have a table, or a row for each room
    modules_here = [room.split(".") for room in ROOMS if not room.endswith(".__init__")]
    missing = [path for path in modules_here if path[-1] not in modules and not folders & {*path}]
    assert not missing


def test_every_public_name_can_be_had_from_the_package() -> None:
    """Names are loaded lazily, so a wrong one would only show at its first use."""
    for name in imagelabs_sdk.__all__:
        assert getattr(imagelabs_sdk, name) is not None
    assert set(imagelabs_sdk.__all__) <= set(dir(imagelabs_sdk))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = imagelabs_sdk.no_such_name


def test_the_lazy_names_and_the_typed_names_are_the_same() -> None:
    """Type checkers read one list, the interpreter another."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.name
        for block in tree.body
        if is_for_types_only(block)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == set(imagelabs_sdk.__all__) - {"__version__"}


def test_making_a_client_does_not_load_the_network_stack() -> None:
    """Importing requests costs a fifth of a second, which many a script never needs."""
    code = (
        "import sys; before = set(sys.modules); from imagelabs_sdk import ImageLabs; ImageLabs();"
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {
        "attr",
        "attrs",
        "requests",
        "urllib3",
        "http.client",
        "ssl",
        "email",
        "click",
        "rich",
        "PIL",
    }
    assert not heavy & set(done.stdout.split())


def test_the_table_of_promises_names_tests_that_exist() -> None:
    """A promise whose test was renamed away is held by nothing."""
    page = ROOT.parent / "docs/maintainers/promises.md"
    promised = re.findall(r"`(test_\w+)`", page.read_text())
    source = "".join(path.read_text() for path in (ROOT.parent / "tests").rglob("test_*.py"))
    assert len(promised) > 30
    assert not [name for name in promised if f"def {name}(" not in source]
