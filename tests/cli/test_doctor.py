"""`imagelabs doctor`: which step fails on the way to the service, and what to do about it."""

import json
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import Result

from imagelabs_sdk import APIStatusError, DownloadError, ImageLabsError
from tests.cli.command import invoke
from tests.faulty import Answer, FaultyServer, reply

CHALLENGE = reply(403, b"<title>Just a moment...</title>", ("cf-mitigated", "challenge"))


def doctor(*words: object) -> Result:
    return invoke(["doctor", *words])


def steps(result: Result) -> list[tuple[str, str]]:
    return [tuple(line.split()[:2][::-1]) for line in result.stdout.splitlines()]  # type: ignore[misc]


@pytest.mark.parametrize("answer", [reply(404, {"error": "?"}), reply(200, {"x": 1})])
def test_a_service_that_answers_is_well(server: FaultyServer, answer: Answer) -> None:
    """How it refuses a task that does not exist is its own business; nothing is bought."""
    server.scripts["/progress"] = [answer]
    result = doctor("--base-url", server.url)
    assert result.exit_code == 0
    assert result.stderr == f"trying {server.url}\nThe service can be reached.\n"
    assert steps(result) == [("resolve", "ok"), ("connect", "ok"), ("poll", "ok")]
    assert [asked.path for asked in server.asked] == ["/progress"]
    server.scripts["/progress"] = [server.done()]
    assert "the service answers: done" in doctor("--base-url", server.url).stdout


@pytest.mark.parametrize(
    ("answer", "code", "remedy"),
    [
        (CHALLENGE, 4, "IMAGELABS_COOKIE to its cookies"),
        (reply(401, {}), 4, "set IMAGELABS_API_KEY"),
        (reply(500, {}), 4, "see the message"),
    ],
)
def test_what_the_service_refuses_has_its_remedy(
    server: FaultyServer, answer: Answer, code: int, remedy: str
) -> None:
    """The check of Cloudflare is the likeliest first failure."""
    server.scripts["/progress"] = [answer]
    result = doctor("--base-url", server.url)
    assert result.exit_code == code
    assert steps(result)[-1] == ("poll", "FAILED")
    assert remedy in result.stderr


def test_a_port_that_nobody_listens_on_is_found(server: FaultyServer) -> None:
    """The steps behind it are not tried."""
    server.close()
    result = doctor("--base-url", server.url)
    assert result.exit_code == 3
    assert steps(result) == [("resolve", "ok"), ("connect", "FAILED")]
    assert "firewall" in result.stderr


def test_a_name_that_does_not_exist_is_found() -> None:
    """`.invalid` never does."""
    result = doctor("--base-url", "http://service.invalid")
    assert result.exit_code == 3
    assert steps(result) == [("resolve", "FAILED")]


def test_a_certificate_that_is_not_trusted_is_found(tls_server: FaultyServer) -> None:
    """And named apart from a service that is down."""
    result = doctor("--base-url", tls_server.url)
    assert result.exit_code == 3
    assert steps(result)[-1] == ("tls", "FAILED")
    assert "REQUESTS_CA_BUNDLE" in result.stderr


def test_tls_that_works_is_told(
    tls_server: FaultyServer, tmp_path: Path, authority: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its version."""
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))  # type: ignore[attr-defined]
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    result = doctor("--base-url", tls_server.url)
    assert result.exit_code == 0
    assert "TLSv1" in result.stdout


@pytest.mark.parametrize("variable", ["IMAGELABS_PROXY", "http_proxy", "all_proxy"])
def test_a_proxy_is_what_is_connected_to(
    server: FaultyServer, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is told; what is behind it cannot be resolved from here."""
    monkeypatch.setenv(variable, server.url)
    server.scripts["http://service.test/progress"] = [reply(404, {})]
    result = doctor("--base-url", "http://service.test")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].endswith("through 127.0.0.1")


def test_the_report_names_nobody(server: FaultyServer) -> None:
    """It is pasted into a public issue."""
    server.scripts["/progress"] = [CHALLENGE]
    result = doctor("--base-url", server.url, "--report", "report.txt")
    text = Path("report.txt").read_text()
    assert "report: report.txt" in result.stderr
    assert "poll: " in text
    assert "FAILED ChallengeError challenge 403" in text
    assert "service: another one" in text
    assert "127.0.0.1" not in text
    assert str(server.port) not in text


def test_the_report_leaves_out_what_is_not_installed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow belongs to the extra of the server."""
    installed = metadata.version

    def version(package: str) -> str:
        if package == "Pillow":
            raise metadata.PackageNotFoundError(package)
        return installed(package)

    monkeypatch.setattr(metadata, "version", version)
    doctor("--base-url", url, "--report", "report.txt")
    text = Path("report.txt").read_text()
    assert f"rich {installed('rich')}" in text
    assert "Pillow" not in text


def test_programs_get_one_object_for_each_step(server: FaultyServer) -> None:
    """With the remedy."""
    server.scripts["/progress"] = [CHALLENGE]
    lines = doctor("--base-url", server.url, "--json").stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == ["resolve", "connect", "poll"]
    assert [row["ok"] for row in rows] == [True, True, False]
    assert "IMAGELABS_COOKIE" in rows[2]["hint"]


@pytest.mark.parametrize(
    ("error", "command"),
    [
        (
            APIStatusError(
                "x", status_code=404, endpoint="POST https://a.test/progress", task_id="it's"
            ),
            """curl -sS -i -X POST https://a.test/progress -H 'content-type: application/json' """
            """-d '{"task_id": "it'"'"'s"}'""",
        ),
        (
            APIStatusError("x", status_code=500, endpoint="POST https://a.test/txt2img"),
            """curl -sS -i -X POST https://a.test/txt2img -H 'content-type: application/json' """
            """-d '{"prompt": "PROMPT"}'""",
        ),
        (DownloadError("x", url="https://a.test/x.png"), "curl -sS -i -X GET https://a.test/x.png"),
        (ImageLabsError("x"), None),
    ],
)
def test_an_error_gives_the_command_that_repeats_its_request(
    error: ImageLabsError, command: str | None
) -> None:
    """For a bug report: no cookie, no key, no prompt is in it."""
    assert error.to_curl() == command
