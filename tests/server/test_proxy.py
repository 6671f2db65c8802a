"""The server behind nginx, configured as the page says, with TLS: streams come as they are written, and what is shut is
shut."""

from __future__ import annotations

import getpass
import grp
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.process import ServerProcess

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None or shutil.which("openssl") is None, reason="needs nginx and openssl")
PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"
LONG: dict[str, Any] = {"prompt": "hi", "max_tokens": 12000, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def server(patient_model: Path) -> Iterator[ServerProcess]:
    running = ServerProcess.start(
        str(patient_model), "--name", "tiny", "--backend", "reference", "--log-format", "json"
    )
    yield running
    running.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def proxy(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of the proxy, which trusts its certificate."""
    folder = tmp_path_factory.mktemp("nginx")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subprocess.run([*made, *subject, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    found = re.search(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    port = free_port()
    owner = f"{getpass.getuser()} {grp.getgrgid(os.getgid()).gr_name}"
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"""daemon off; user {owner}; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
        events {{ worker_connections 64; }}
        http {{
            log_format ids "$remote_addr $request_id"; access_log {folder}/access.log ids;
            client_body_temp_path {folder}/body; {temporary}
            server {{
                listen 127.0.0.1:{port} ssl; server_name localhost;
                ssl_certificate {certificate}; ssl_certificate_key {key};
                {found[1].replace("http://127.0.0.1:8000", server.url)}
            }}
        }}"""
    )
    process = subprocess.Popen([str(NGINX), "-p", folder, "-c", folder / "nginx.conf"], stderr=subprocess.PIPE)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, process.communicate()[1].decode()
                time.sleep(0.02)
        trusted = ssl.create_default_context(cafile=certificate)
        with httpx.Client(base_url=f"https://localhost:{port}", verify=trusted, timeout=60) as client:
            yield client
    finally:
        process.terminate()
        process.wait()


def test_a_stream_comes_through_as_it_is_written_and_ends_with_its_client(
    server: ServerProcess, proxy: httpx.Client
) -> None:
    with proxy.stream("POST", "/v1/completions", json=LONG) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        assert server.health()["engine"]["live_requests"] == 1, "it is written still"
    server.wait_until_idle()


def test_bodies_are_as_large_as_the_server_takes_them(proxy: httpx.Client) -> None:
    body = {"prompt": "hi", "max_tokens": 1, "user": "x" * (2 << 20)}
    assert proxy.post("/v1/completions", json=body).status_code == 200
    assert proxy.post("/v1/completions", json={**body, "user": "x" * (17 << 20)}).status_code == 413
    form: dict[str, Any] = {"data": {"purpose": "batch"}, "files": {"file": ("big.jsonl", b"x" * (18 << 20))}}
    uploaded = proxy.post("/v1/files", **form)
    assert uploaded.json()["bytes"] == 18 << 20
    assert proxy.get(f"/v1/files/{uploaded.json()['id']}").status_code == 200
    assert proxy.delete(f"/v1/files/{uploaded.json()['id']}").status_code == 200


def test_errors_are_the_servers_own(proxy: httpx.Client) -> None:
    answer = proxy.post("/v1/completions", json={"prompt": "hi", "temperature": -1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "temperature")


@pytest.mark.parametrize(
    "path", ["/metrics", "/admin/tenants", "//admin/tenants", "/v1/..%2fadmin/tenants", "/%61dmin/x"]
)
def test_what_is_for_the_administrator_is_shut(proxy: httpx.Client, path: str) -> None:
    answer = proxy.get(str(proxy.base_url) + path)
    assert (answer.status_code, b"nginx" in answer.content) == (403, True)


def test_one_id_ties_the_logs_together(server: ServerProcess, proxy: httpx.Client) -> None:
    answer = proxy.post("/v1/completions", json={"prompt": "hi", "max_tokens": 1})
    name = answer.headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", name)
    deadline = time.monotonic() + 30
    while not any(name in line for line in server.lines):
        assert time.monotonic() < deadline
        time.sleep(0.02)
