"""A verified run goes to a hub: an endpoint on this machine that speaks the hub's protocol."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import ROOT

from loki_ds.disk.files import write_json
from loki_ds.disk.run_folder import RunFolder

TRAINING = {"push_to_hub": True, "hub_model_id": "me/tools", "hub_token": "hf_right"}


class Hub(BaseHTTPRequestHandler):
    """Who asks, new repositories, and commits of files that come inside them."""

    protocol_version = "HTTP/1.1"
    files: ClassVar[dict[str, bytes]]
    commits: ClassVar[list[str]]

    def do_GET(self) -> None:
        known = self.headers["Authorization"] == "Bearer hf_right"
        self._answer({"name": "me", "type": "user"} if known else {"error": "Invalid token"}, 200 if known else 401)

    def do_POST(self) -> None:
        text = self._body().decode()
        if self.path.endswith("/create"):
            return self._answer({"url": f"http://{self.headers['Host']}/me/tools", "name": "me/tools", "id": "1"})
        if "/preupload/" in self.path:
            asked = [file["path"] for file in json.loads(text)["files"]]
            return self._answer(
                {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]}
            )
        if "/commit/" not in self.path:  # the card's metadata are looked at
            return self._answer({"errors": [], "warnings": []})
        for line in map(json.loads, text.splitlines()):
            if line["key"] == "header":
                self.commits.append(line["value"]["summary"])
            elif line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self._answer({"commitUrl": f"http://{self.headers['Host']}/me/tools/commit/1", "commitOid": "1"})

    def _body(self) -> bytes:
        """Of a stated length, or in chunks."""
        if length := self.headers["Content-Length"]:
            return self.rfile.read(int(length))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, answer: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    class Fresh(Hub):
        files: ClassVar[dict[str, bytes]] = {}
        commits: ClassVar[list[str]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Fresh)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", Fresh
    server.shutdown()


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A finished run of few bytes."""
    folder = RunFolder(tmp_path / "run")
    written = {"model/README.md": "card", "model/model.safetensors": "weights", "adapter/adapter_config.json": "{}"}
    for name, text in (written | {"report/report.html": "page"}).items():
        (folder.root / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.root / name).write_text(text)
    write_json(folder.root / "stages.json", {"retain": {"margin": 0.01}})
    return folder


def asked(what: str, training: dict[str, Any], run: RunFolder, endpoint: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, for the endpoint is read when the library is imported."""
    code = (
        "import json, logging, sys; logging.basicConfig(); logging.getLogger('loki_ds').setLevel('INFO')\n"
        "from loki_ds.disk.run_folder import RunFolder; from loki_ds.refusal import shown_once\n"
        "from loki_ds.stages import publish\n"
        "with shown_once(): print(getattr(publish, sys.argv[1])(json.loads(sys.argv[2]), RunFolder(sys.argv[3])))"
    )
    command = [sys.executable, "-c", code, what, json.dumps(training), str(run.root)]
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_model_adapter_and_report_are_published_once(run: RunFolder, hub: tuple[str, type[Hub]]) -> None:
    endpoint, received = hub
    assert "go to me/tools as me" in asked("check_publishing", TRAINING, run, endpoint).stdout
    done = asked("publish", TRAINING, run, endpoint)
    assert done.returncode == 0, done.stderr
    assert received.commits == ["model, by loki-ds", "adapter, by loki-ds", "report, by loki-ds"]
    sent = {path.relative_to(run.root) for path in run.root.rglob("*") if path.is_file()} - {Path("stages.json")}
    assert {Path("model", name) if len(Path(name).parts) == 1 else Path(name) for name in received.files} == sent
    assert received.files["model.safetensors"] == b"weights"
    assert "already there" in asked("publish", TRAINING, run, endpoint).stderr
    assert len(received.commits) == 3
    (run.model / "model.safetensors").write_text("others")
    asked("publish", TRAINING, run, endpoint)
    assert received.files["model.safetensors"] == b"others"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hub_model_id": None}, "training.hub_model_id is missing: ORG/NAME on the hub"),
        ({"hub_model_id": "a/b/c"}, "training.hub_model_id is 'a/b/c'"),
        ({"hub_token": "hf_wrong"}, "the hub does not say who we are; log in where it can be reached"),
    ],
)
def test_what_cannot_be_published_is_said_first(
    changes: dict[str, Any], says: str, run: RunFolder, hub: tuple[str, type[Hub]]
) -> None:
    done = asked("check_publishing", TRAINING | changes, run, hub[0])
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_hub_that_is_gone_costs_nothing_and_the_command_is_given(run: RunFolder) -> None:
    done = asked("publish", TRAINING, run, "http://127.0.0.1:1")
    assert done.returncode == 2
    assert f"all is here still, publish it by hand: hf upload me/tools {run.model}" in done.stderr
    assert run.inputs_of("publish") is None
