"""push_to_hub and from_pretrained by a hub id, against a server on this machine that speaks the hub's protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.pretrained import load
from pipelines.pretrained.upload import check_repository
from tests.pipelines.pretrained.conftest import call_of
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
SERVER = Path(__file__).with_name("hub_server.py")
CLIENT = """
import json, os, sys
from pipelines.text_diffusion import TextDiffusionPipeline as P
from tests.pipelines.pretrained.conftest import call_of

def error(call):
    try:
        call()
    except ValueError as found:
        return str(found)

pipe = P.from_pretrained(sys.argv[1], device="cpu")
refused = error(lambda: pipe.push_to_hub("me/model", token="wrong"))
url = pipe.push_to_hub("me/model", token="hf_local", license="mit", language="en")
again = pipe.push_to_hub("me/model", token="hf_local", license="mit", language="en")
pulled = P.from_pretrained("me/model", device="cpu")
missing = error(lambda: P.from_pretrained("me/other"))
foreign = error(lambda: P.from_pretrained("me/foreign"))
print(json.dumps([refused, url, again, pulled(**call_of(pulled)).texts, missing, foreign]))
"""
OFFLINE = """
import json, sys
from pipelines.text_diffusion import TextDiffusionPipeline as P
from tests.pipelines.pretrained.conftest import call_of
pipe = P.from_pretrained("me/model", device="cpu")
print(json.dumps(pipe(**call_of(pipe)).texts))
"""


def run(code: str, *arguments: str, **environment: str) -> list:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_repository_is_written_read_and_found_again_offline(saved, loaded, tmp_path):
    hub, cache = tmp_path / "hub", tmp_path / "cache"
    (hub / "me/foreign").mkdir(parents=True)
    (hub / "me/foreign/config.json").write_text("{}")
    server = subprocess.Popen([sys.executable, SERVER, hub], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache)}
        refused, url, again, texts, missing, foreign = run(CLIENT, str(saved("latents")), **online)
    finally:
        server.kill()
        server.wait()
    assert "me/model cannot be uploaded (the hub refuses the token, status 401)" in refused
    assert url.startswith(f"{address}/me/model/commit/") and again == url
    assert texts == loaded("latents")(**call_of(loaded("latents"))).texts
    assert "me/other is not a run folder" in missing and "the hub has none of this name" in missing
    assert "me/foreign is a repository without model_index.json" in foreign
    assert "\n" not in refused + missing + foreign
    expected = {p.relative_to(saved("latents")): p.read_bytes() for p in saved("latents").rglob("*") if p.is_file()}
    found = {p.relative_to(hub / "me/model"): p.read_bytes() for p in (hub / "me/model").rglob("*") if p.is_file()}
    card = found.pop(Path("README.md")).decode()
    assert found == {name: content for name, content in expected.items() if name.name != "README.md"}
    assert 'from_pretrained("me/model")' in card and "license: mit" in card and "# model" in card
    assert run(OFFLINE, HF_HUB_OFFLINE="1", HF_HOME=str(cache)) == texts


def test_without_a_network_it_is_one_line(loaded, tmp_path):
    with pytest.raises(UserError, match="me/model cannot be uploaded .*: check the network") as caught:
        loaded("latents").push_to_hub("me/model", token="x")
    assert "\n" not in str(caught.value)
    for name in ("", "a/b/c", "a b", None, 3, "../x"):
        with pytest.raises(UserError, match="repo_id is .*: give the id of a repository"):
            loaded("latents").push_to_hub(name)
    with pytest.raises(UserError, match="me/model cannot be uploaded"):
        loaded("latents").save_pretrained(tmp_path / "kept", push_to_hub="me/model")
    assert (tmp_path / "kept" / "model_index.json").is_file()
    assert check_repository("gpt2") == "gpt2"


def test_what_looks_like_a_path_is_never_looked_up(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "is_online", lambda: pytest.fail("the hub was asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/name").mkdir(parents=True)
    for name in ("./runs/x", "/runs/x", "runs/a/b", "~/x", "owner/name", Path("me/model")):
        assert load.find_folder(name) == Path(name).expanduser()
