"""The default transport over real loopback sockets, against a peer that misbehaves."""

import os
import pickle
import ssl
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme
from urllib3 import ProxyManager

from imagelabs_sdk import (
    APIConnectionError,
    APITimeoutError,
    Deadline,
    FixedInterval,
    ImageLabs,
    ImageLabsError,
    InvalidRequestError,
    JobTimeoutError,
    RequestsTransport,
    SubmissionUnknownError,
)
from imagelabs_sdk.transports import _system_trust
from imagelabs_sdk.transports._connections import install_deadlines
from tests import faulty
from tests.faulty import PNG, FaultyServer, message
from tests.transports.peers import BROKEN, SLOW, closed_port, get, tunnelling

Connect = Callable[..., ImageLabs]


def test_a_request_arrives_as_it_was_meant(server: FaultyServer, connect: Connect) -> None:
    """Header by header what the reference implementation sends, and nothing of python-requests."""
    connect(server, cookies={"cf_clearance": "c"}).submit("a lighthouse")
    asked = server.asked[0]
    assert (asked.method, asked.path) == ("POST", "/txt2img")
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["x-requested-with"] == "XMLHttpRequest"
    assert asked.headers["origin"] == server.url
    assert asked.headers["user-agent"].startswith("Mozilla/5.0")
    assert asked.headers["cookie"] == "cf_clearance=c"
    assert asked.headers["accept-encoding"] == "gzip"
    assert "python" not in str(asked.headers).lower()


def test_a_transport_does_not_judge(server: FaultyServer, carry: Any) -> None:
    """A 500 is a response like any other, and so is a redirect, which is not followed."""
    server.scripts["/500"] = [faulty.reply(500, b"oops")]
    server.scripts["/302"] = [faulty.reply(302, b"", ("Location", server.url + "/500"))]
    assert carry(get(server.url + "/500")) == (500, b"oops")
    assert carry(get(server.url + "/302")) == (302, b"")
    assert server.count("/500") == 1


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_answer_is_one_of_our_errors(server: FaultyServer, carry: Any, kind: str) -> None:
    """Whatever HTTP library is below, its exceptions end here."""
    server.scripts["/x"] = [BROKEN[kind]]
    with pytest.raises(APIConnectionError) as caught:
        carry(get(server.url + "/x"))
    assert caught.value.delivered == "maybe"
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_poll_does_not_lose_the_job(
    server: FaultyServer, connect: Connect, kind: str
) -> None:
    """The job behind it is healthy, and paid for."""
    server.scripts["/progress"] = [faulty.QUEUED, BROKEN[kind], faulty.RUNNING, server.done()]
    assert connect(server).generate("x").read() == PNG
    assert server.count("/txt2img") == 1


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_answer_to_a_submit_is_never_sent_again(
    server: FaultyServer, connect: Connect, kind: str
) -> None:
    """It may have been accepted: one request on the wire, and an error that says so."""
    server.scripts["/txt2img"] = [BROKEN[kind], faulty.ACCEPTED]
    with pytest.raises(SubmissionUnknownError) as caught:
        connect(server, max_retries=5).generate("x")
    assert caught.value.delivered == "maybe"
    assert isinstance(caught.value.__cause__, ImageLabsError)
    assert server.count("/txt2img") == 1


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".test", "x..y"])
def test_a_name_that_leads_nowhere_surely_delivered_nothing(carry: Any, host: str) -> None:
    """Whether the resolver or the encoding refuses it."""
    with pytest.raises(APIConnectionError) as caught:
        carry(get(f"http://{host}/"))
    assert caught.value.delivered == "no"


def test_a_refused_submit_is_tried_again_and_then_told() -> None:
    """`max_retries` more attempts, each after a pause."""
    slept: list[float] = []
    polling = FixedInterval(0.01, sleep=slept.append)
    client = ImageLabs(f"http://127.0.0.1:{closed_port()}", max_retries=3, polling=polling)
    with pytest.raises(APIConnectionError) as caught:
        client.submit("x")
    assert caught.value.delivered == "no"
    assert len(slept) == 3
    client.close()


def test_no_time_left_means_nothing_is_sent(server: FaultyServer, carry: Any) -> None:
    """A deadline that has passed is not stretched."""
    with pytest.raises(APITimeoutError) as caught:
        carry(get(server.url + "/x"), 0.0)
    assert caught.value.delivered == "no"
    assert server.connections == 0


def test_the_whole_way_works_over_tls(
    tls_server: FaultyServer, connect: Connect, bundle: str
) -> None:
    """With a bundle of one's own, as behind a company's proxy."""
    assert connect(tls_server, verify=bundle).generate("x").read() == PNG


def test_the_standard_variable_names_the_bundle(
    tls_server: FaultyServer, connect: Connect, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What works for requests works here."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    assert connect(tls_server).generate("x").read() == PNG


def test_the_machine_says_which_authorities_it_trusts(
    tls_server: FaultyServer, connect: Connect, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a company's proxy that opens TLS; what `requests` trusts does not count then."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", bundle)
    with pytest.raises(APIConnectionError, match="certificate is not trusted") as caught:
        connect(tls_server, verify="system", max_retries=0).submit("x")
    assert '"system" for the authorities of this machine' in str(caught.value)
    monkeypatch.setenv("SSL_CERT_FILE", bundle)  # OpenSSL's word for what the machine trusts
    assert connect(tls_server, verify="system").submit("x").id == "task-1"


@pytest.mark.parametrize("through_proxy", [False, True])
def test_only_the_machine_is_asked_also_through_a_proxy(
    server: FaultyServer, tls_server: FaultyServer, connect: Connect, bundle: str,
    monkeypatch: pytest.MonkeyPatch, *, through_proxy: bool,
) -> None:  # fmt: skip
    """Every machine of a test trusts the same; so another answer stands for this one's."""
    context = ssl.create_default_context(cafile=bundle)
    monkeypatch.setattr(_system_trust, "system_context", lambda: context)
    server.scripts[f"127.0.0.1:{tls_server.port}"] = [tunnelling(server, tls_server.port)]
    more = {"proxy": server.url} if through_proxy else {}
    assert connect(tls_server, verify="system", **more).submit("x").id == "task-1"
    assert server.count(f"127.0.0.1:{tls_server.port}") == through_proxy


def test_without_the_extra_the_machine_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said when the client is made, and by name."""
    monkeypatch.setitem(sys.modules, "truststore", None)
    with pytest.raises(InvalidRequestError, match=r"imagelabs_sdk\[truststore\]"):
        ImageLabs(verify="system")


def test_a_certificate_that_is_not_trusted_is_an_error(
    tls_server: FaultyServer, connect: Connect
) -> None:
    """And nothing was sent to whoever showed it."""
    with pytest.raises(APIConnectionError, match="certificate is not trusted") as caught:
        connect(tls_server, max_retries=0).generate("x")
    assert caught.value.delivered == "no"
    assert not tls_server.asked


@pytest.mark.parametrize("path", ["/no/such/bundle.pem", 7, None])
def test_a_bundle_that_is_not_there_is_said_before_anything(path: Any) -> None:
    """Not as a request whose fate is unknown."""
    with pytest.raises(InvalidRequestError, match="verify"):
        ImageLabs("https://h.test", verify=path)


def test_a_bundle_of_the_environment_that_is_not_there_is_said(
    server: FaultyServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is sent."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle.pem")
    with pytest.raises(InvalidRequestError, match="verify"):
        connect(server).submit("x")
    assert not server.asked


def test_tls_versions_below_1_2_are_not_offered() -> None:
    """The safe choice is the default; we leave it alone."""
    assert ssl.create_default_context().minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("kind", SLOW)
def test_a_slow_submit_ends_at_the_deadline(
    server: FaultyServer, connect: Connect, kind: str
) -> None:
    """`timeout` bounds everything, down to a single byte of a header."""
    server.scripts["/txt2img"] = [SLOW[kind]]
    with pytest.raises(SubmissionUnknownError, match="in time"):
        connect(server).generate("x", timeout=0.25)
    assert server.count("/txt2img") == 1


@pytest.mark.parametrize("kind", SLOW)
def test_a_slow_poll_ends_at_the_deadline(
    server: FaultyServer, connect: Connect, kind: str
) -> None:
    """With the job in hand."""
    server.scripts["/progress"] = [SLOW[kind]]
    with pytest.raises(JobTimeoutError) as caught:
        connect(server).generate("x", timeout=0.25)
    assert caught.value.task_id == "task-1"


@pytest.mark.parametrize("kind", SLOW)
def test_a_slow_poll_costs_no_more_than_one_exchange(
    server: FaultyServer, connect: Connect, kind: str
) -> None:
    """`request_timeout` bounds it, and the next poll succeeds."""
    server.scripts["/progress"] = [SLOW[kind], server.done()]
    assert connect(server, request_timeout=0.2).generate("x").read() == PNG


@pytest.mark.parametrize("seconds", [float("inf"), 1e10, 1e300])
def test_no_limit_is_a_limit_like_another(
    server: FaultyServer, connect: Connect, seconds: float
) -> None:
    """Sockets take only so large a number."""
    client = connect(server, timeout=seconds, request_timeout=seconds)
    assert client.generate("x").read() == PNG


def test_a_proxy_is_used_when_given_or_set(
    server: FaultyServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By argument, by our variable or by the standard one; its password goes to it alone."""
    proxy = server.url.replace("http://", "http://user:word@")
    server.scripts["http://service.test/txt2img"] = [faulty.ACCEPTED]

    class Service:
        url = "http://service.test"

    connect(Service, proxy=proxy).submit("x")
    monkeypatch.setenv("HTTP_PROXY", proxy)
    connect(Service).submit("x")
    monkeypatch.setenv("NO_PROXY", "service.test")
    with pytest.raises(APIConnectionError):
        connect(Service, max_retries=0).submit("x")
    assert len(server.asked) == 2
    assert {asked.headers["proxy-authorization"] for asked in server.asked} == {
        "Basic dXNlcjp3b3Jk"
    }


def test_a_proxy_in_any_spelling_honours_the_deadline(connect: Connect) -> None:
    """requests spells it anew, and keeps its connections by that."""
    client = connect(FaultyAddress, proxy=f"HTTP://u:%zz@LocalHost:{closed_port()}", max_retries=0)
    with pytest.raises(APIConnectionError) as caught:
        client.submit("x")
    assert caught.value.delivered == "no"


class FaultyAddress:
    url = "http://service.test"


def test_tls_goes_through_a_tunnel(
    server: FaultyServer, tls_server: FaultyServer, connect: Connect, bundle: str
) -> None:
    """The proxy sees the host's name and no more."""
    target = f"127.0.0.1:{tls_server.port}"
    server.scripts[target] = [tunnelling(server, tls_server.port)]
    connect(tls_server, proxy=server.url, verify=bundle).submit("x")
    assert server.asked[0].method == "CONNECT"
    assert tls_server.count("/txt2img") == 1


def test_a_tunnel_of_urllib3s_own_is_opened_as_ever(
    server: FaultyServer, tls_server: FaultyServer, bundle: str
) -> None:
    """A session of the caller's sends requests that are not ours, too."""
    server.scripts[f"127.0.0.1:{tls_server.port}"] = [tunnelling(server, tls_server.port)]
    with ProxyManager(server.url, ca_certs=bundle) as manager:
        install_deadlines(manager)
        assert manager.request("GET", tls_server.url + "/x").status == 404
    assert server.asked[0].method == "CONNECT"


def test_what_tls_has_decrypted_already_is_not_waited_for(
    tls_server: FaultyServer, connect: Connect, bundle: str
) -> None:
    """A stop is looked at before each read: the socket itself may have nothing any more."""
    image = PNG[:-12] + b"\0\0\x9c\x40tEXt" + bytes(40_000) + b"\0" * 4 + PNG[-12:]
    tls_server.scripts["/image.png"] = [faulty.reply(200, image)]
    client = connect(tls_server, verify=bundle)
    assert client.generate("x").read(stop=threading.Event()) == image


def test_a_proxy_that_refuses_surely_delivered_nothing(
    server: FaultyServer, tls_server: FaultyServer, connect: Connect
) -> None:
    """The request never got past it; and the password is not told."""
    server.scripts[f"127.0.0.1:{tls_server.port}"] = [faulty.reply(407)]
    proxy = server.url.replace("http://", "http://user:hush@")
    with pytest.raises(APIConnectionError) as caught:
        connect(tls_server, proxy=proxy, max_retries=0).submit("x")
    assert caught.value.delivered == "no"
    assert "hush" not in f"{caught.value} {caught.value.__cause__!r}"


@pytest.mark.parametrize(
    "proxy", ["http://u:hush@127.0.0.1:99999", "http://u:hush@", "http://u:\u20ac@h"]
)
def test_a_proxy_that_makes_no_sense_is_said_without_its_password(
    server: FaultyServer, connect: Connect, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    """Wherever it comes from."""
    with pytest.raises(InvalidRequestError) as wrong:
        RequestsTransport(proxy=proxy)
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(APIConnectionError) as caught:
        connect(server, max_retries=0).submit("x")
    shown = "".join(traceback.format_exception(caught.value)) + str(wrong.value)
    assert caught.value.delivered == "no"
    assert "hush" not in shown
    assert "\u20ac" not in shown


def test_one_client_serves_32_threads(server: FaultyServer, connect: Connect) -> None:
    """Every job its own answer, and no connection used by two threads."""
    client = connect(server)
    numbers = iter(range(1000))
    lock = threading.Lock()

    def accept(wire: faulty.Wire) -> None:
        with lock:
            wire.send(message(200, b'{"task_id": "task-%d"}' % next(numbers)))

    server.scripts["/txt2img"] = [accept]
    with ThreadPoolExecutor(32) as pool:
        tasks = list(pool.map(lambda _: client.generate("x").task_id, range(96)))
    assert len(set(tasks)) == 96
    assert server.connections <= 32


def test_a_client_made_before_a_fork_works_on_both_sides(
    server: FaultyServer, connect: Connect
) -> None:
    """Prefork servers inherit it; parent and child must not share a connection."""
    client = connect(server)
    client.generate("x")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if client.generate("x").read() == PNG else 2
        finally:
            os._exit(code)
    assert client.generate("x").read() == PNG
    assert os.waitpid(child, 0)[1] == 0
    assert server.connections == 2


def test_a_closed_client_works_again(server: FaultyServer, connect: Connect) -> None:
    """A result outlives its client."""
    with connect(server) as client:
        image = client.generate("x")
    client.close()
    assert image.read() == PNG


def test_closing_closes_the_connections_of_all_threads(
    server: FaultyServer, connect: Connect
) -> None:
    """Not only those of the thread that closes."""
    client = connect(server)
    gate = threading.Barrier(5)

    def work(_: int) -> None:
        gate.wait()
        client.submit("x")
        gate.wait()
        gate.wait()

    with ThreadPoolExecutor(4) as pool:
        done = pool.map(work, range(4))
        gate.wait()
        gate.wait()
        sessions = list(client._context.transport._sessions.all)  # type: ignore[attr-defined]
        assert sum(held(session) for session in sessions) == 4
        client.close()
        assert sum(held(session) for session in sessions) == 0
        gate.wait()
        list(done)


def held(session: Any) -> int:
    """Connections that a session keeps."""
    manager = session._session.get_adapter("http://x").poolmanager
    return sum(
        any(conn and conn.sock for conn in list(manager.pools.get(key).pool.queue))
        for key in manager.pools.keys()  # noqa: SIM118 - no dict
    )


def test_a_transport_pickles_without_its_connections(
    server: FaultyServer, connect: Connect
) -> None:
    """Settings travel, sockets do not."""
    transport = RequestsTransport(proxy="http://h.test:1", verify=False)
    assert pickle.loads(pickle.dumps(transport)) == transport
    client = connect(server)
    image = client.generate("x")
    again = pickle.loads(pickle.dumps(image))
    assert again == image
    assert again.read() == PNG
    again.job._context.transport.close()


def test_files_and_sockets_are_closed_after_failures(
    server: FaultyServer, connect: Connect
) -> None:
    """Failures are where handles leak."""
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("this system does not list its open files")
    client = connect(server, request_timeout=0.2)
    client.submit("x")
    before = len(list(folder.iterdir()))
    for broken in BROKEN.values():
        server.scripts["/progress"] = [broken]
        with pytest.raises(ImageLabsError):
            client.get_job("t").refresh()
    server.scripts["/progress"] = [SLOW["silence"]]
    with pytest.raises(APITimeoutError):
        client.get_job("t").refresh()
    client.close()
    held_by_client = len(list(folder.iterdir())) - before
    assert held_by_client <= 2 * len(server.threads)


def test_a_url_is_sent_to_the_letter(server: FaultyServer, carry: Any) -> None:
    """Also through a proxy, which is told the whole of it: its query may be signed."""
    carry(get(f"{server.url}/a%2fb?x=%7e%zz"))
    transport = RequestsTransport(proxy=server.url)
    for url in ("http://h.invalid/a%2fb?x=%7e%zz", "http://h.invalid/plain?x=1"):
        transport.send(get(url), deadline=Deadline.after(5)).close()
    transport.close()
    assert [each.path for each in server.asked] == [
        "/a%2fb?x=%7e%zz",
        "http://h.invalid/a%2fb?x=%7e%zz",
        "http://h.invalid/plain?x=1",
    ]


# The environment ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_other_variables_name_the_bundle_too(
    tls_server: FaultyServer,
    connect: Connect,
    bundle: str,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """As curl and OpenSSL read them."""
    monkeypatch.setenv(name, bundle)
    assert connect(tls_server).generate("x").read() == PNG
    monkeypatch.setenv(name, "/no/such/bundle.pem")
    with pytest.raises(InvalidRequestError, match="verify"):
        connect(tls_server).submit("x")


def test_folders_of_authorities_may_be_named(
    tls_server: FaultyServer,
    connect: Connect,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenSSL finds a certificate in one by the hash of its subject."""
    pem = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(pem)
    command = ["openssl", "x509", "-hash", "-noout", "-in", str(pem)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    pem.rename(tmp_path / f"{found.stdout.strip()}.0")
    monkeypatch.setenv("SSL_CERT_DIR", f"/no/such/folder{os.pathsep}{tmp_path}")
    assert connect(tls_server).generate("x").read() == PNG
    monkeypatch.setenv("SSL_CERT_DIR", "/no/such/folder")
    with pytest.raises(APIConnectionError, match="certificate is not trusted"):
        connect(tls_server, max_retries=0).submit("x")


def test_our_variable_for_the_proxy_honours_no_proxy(
    server: FaultyServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both come from the environment; a proxy that was given to the client is used always."""
    proxy = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setenv("IMAGELABS_PROXY", proxy)
    with pytest.raises(APIConnectionError, match="the proxy"):
        connect(server, max_retries=0).submit("x")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    connect(server).submit("x")
    with pytest.raises(APIConnectionError, match="the proxy"):
        connect(server, max_retries=0, proxy=proxy).submit("x")
    assert server.count("/txt2img") == 1


def test_a_proxy_that_fails_is_named(
    server: FaultyServer, tls_server: FaultyServer, connect: Connect, bundle: str
) -> None:
    """Not the service, which was never asked; without the proxy's password."""
    port = closed_port()
    for base in (server, tls_server):
        with pytest.raises(APIConnectionError, match=f"the proxy 127.0.0.1:{port}: ") as caught:
            connect(base, proxy=f"http://u:hush@127.0.0.1:{port}", max_retries=0).submit("x")
        assert caught.value.delivered == "no"
        assert "hush" not in str(caught.value)
    target = f"127.0.0.1:{tls_server.port}"
    server.scripts[target] = [faulty.reply(502)]
    with pytest.raises(APIConnectionError, match=f"the proxy 127.0.0.1:{server.port}: .*502"):
        connect(tls_server, proxy=server.url, max_retries=0).submit("x")


def test_a_service_that_fails_behind_a_proxy_is_named(
    server: FaultyServer, tls_server: FaultyServer, connect: Connect, bundle: str
) -> None:
    """The proxy has done its part."""
    target = f"127.0.0.1:{tls_server.port}"
    server.scripts[target] = [tunnelling(server, tls_server.port)]
    where = f"{target} by proxy 127.0.0.1:{server.port}"
    with pytest.raises(APIConnectionError, match=f"{where}: .*not trusted"):
        connect(tls_server, proxy=server.url, max_retries=0).submit("x")
    tls_server.scripts["/txt2img"] = [faulty.reset()]
    with pytest.raises(SubmissionUnknownError, match=where):
        connect(tls_server, proxy=server.url, verify=bundle).submit("x")
