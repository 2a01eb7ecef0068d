"""A model hub on this machine: the addresses that huggingface_hub calls to make a repository, write to it and read it.

Only the transport is imitated; huggingface_hub itself and this project run as they are. Run as a program it serves a
folder until it is killed, and prints its address: python hub_server.py FOLDER
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(".")


def commit_of(folder: Path) -> str:
    """A name of the content of a repository, in the form of a commit."""
    digest = hashlib.sha1()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/":
            return self.answer({})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path):
            folder = ROOT / found[1]
            if not folder.is_dir():
                return self.refuse(404, "RepoNotFound")
            names = [{"rfilename": p.relative_to(folder).as_posix()} for p in folder.rglob("*") if p.is_file()]
            return self.answer({"id": found[1], "modelId": found[1], "sha": commit_of(folder), "siblings": names})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            folder = ROOT / found[1]
            files = [p for p in folder.rglob("*") if p.is_file()]
            return self.answer(
                [
                    {
                        "type": "file",
                        "path": p.relative_to(folder).as_posix(),
                        "size": p.stat().st_size,
                        "oid": "0" * 40,
                    }
                    for p in files
                ]
            )
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            file = ROOT / found[1] / found[3]
            if not file.is_file():
                return self.refuse(404, "EntryNotFound" if (ROOT / found[1]).is_dir() else "RepoNotFound")
            return self.send(file.read_bytes(), ETag=f'"{hashlib.sha256(file.read_bytes()).hexdigest()}"',
                             **{"X-Repo-Commit": commit_of(ROOT / found[1])})  # fmt: skip
        return self.refuse(404, "RepoNotFound")

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self.body()
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != "Bearer hf_local" and "lfs" not in path:
            return self.refuse(401, "Unauthorized")
        if path == "/api/repos/create":
            given = json.loads(body)
            name = "/".join(filter(None, (given.get("organization"), given["name"])))
            (ROOT / name).mkdir(parents=True, exist_ok=True)
            return self.answer({"url": f"{self.address()}/{name}", "name": name, "id": name})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", path):
            files = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                 "shouldIgnore": False, "oid": None}
                for f in json.loads(body)["files"]
            ]  # fmt: skip
            return self.answer({"files": files, "commitOid": None})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {"oid": o["oid"], "size": o["size"],
                 "actions": {"upload": {"href": f"{self.address()}/lfs/{o['oid']}", "header": {}}}}
                for o in json.loads(body)["objects"]
            ]  # fmt: skip
            return self.answer({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            self.commit(ROOT / found[1], [json.loads(line) for line in body.decode().splitlines() if line.strip()])
            url = f"{self.address()}/{found[1]}/commit/{commit_of(ROOT / found[1])}"
            return self.answer({"success": True, "commitOid": commit_of(ROOT / found[1]), "commitUrl": url})
        return self.refuse(404, "RepoNotFound")

    def do_PUT(self) -> None:
        (ROOT / "lfs").mkdir(exist_ok=True)
        (ROOT / "lfs" / Path(self.path).name).write_bytes(self.body())
        self.answer({})

    def commit(self, folder: Path, lines: list[dict]) -> None:
        for line in lines:
            value = line["value"]
            target = folder / value.get("path", "")
            if line["key"] in ("file", "lfsFile"):
                target.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                target.write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                shutil.copy(ROOT / "lfs" / value["oid"], target)
            elif line["key"] == "deletedFile":
                target.unlink()

    # ---- the answers

    def address(self) -> str:
        return f"http://{self.headers['Host']}"

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, data: object) -> None:
        self.send(json.dumps(data).encode(), **{"Content-Type": "application/json"})

    def refuse(self, status: int, code: str) -> None:
        self.send(b"{}", status, **{"X-Error-Code": code, "X-Error-Message": code})

    def send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        if "--log" in sys.argv:
            print(*_, file=sys.stderr)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
