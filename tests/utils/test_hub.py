"""Whether the hub answers: any HTTP answer counts, the wait is short, and there is one request per process."""

from __future__ import annotations

import http.server
import socket
import threading
import time

import pytest

from utils import hub


class Refusing(http.server.BaseHTTPRequestHandler):
    asked = 0

    def do_HEAD(self) -> None:
        type(self).asked += 1
        self.send_error(403)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    hub.is_online.cache_clear()
    yield
    hub.is_online.cache_clear()


@pytest.fixture
def server():
    Refusing.asked = 0
    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_any_http_answer_means_online_and_is_requested_once(monkeypatch, server):
    monkeypatch.setenv("HF_ENDPOINT", server)
    assert hub.hub_kwargs() == {} and hub.hub_kwargs() == {}
    assert Refusing.asked == 1


def test_a_closed_port_means_offline(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert hub.hub_kwargs() == {"local_files_only": True}


def test_no_answer_within_the_timeout_means_offline(monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        assert not hub.is_online() and time.monotonic() - began < 2


def test_no_request_is_made_in_offline_mode(monkeypatch, server):
    monkeypatch.setenv("HF_ENDPOINT", server)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.hub_kwargs() == {"local_files_only": True} and Refusing.asked == 0
