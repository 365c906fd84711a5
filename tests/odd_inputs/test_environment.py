"""What stands in the environment, and where the project stands: each gives one message, or the right result. A line a case."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from typer.testing import CliRunner

from flows.server import PrefectEngine
from grape import net
from grape.cli import app
from grape.errors import GrapeError
from grape.pipeline import Hooks
from grape.project import Project
from grape.track import StageRun, store
from grape.track.deliver import Delivery
from grape.track.spool import Spool

SECRET = "hunter2-Zaubernuß"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`Project.enter` sets variables of the process; give them back."""
    before = dict(os.environ)
    for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)
    tempfile.tempdir = None


@pytest.fixture
def project(project_dir: Path) -> Project:
    return Project(project_dir)


@pytest.fixture
def closed() -> Iterator[int]:
    """A port that nobody else can take and nobody answers at."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


class Health(BaseHTTPRequestHandler):
    """What Prefect's API answers at /api/health, and any other server at any path."""

    def do_GET(self) -> None:
        body = b"true" if self.path == "/api/health" else b"<html>welcome</html>"
        self.send_response(401 if self.path.startswith("/locked") else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Health) as answering:
        thread = threading.Thread(target=answering.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield answering.server_port
        answering.shutdown()
        thread.join()


# MLFLOW_TRACKING_URI -> words of the refusal, None: it is taken.
STORES = [
    ("databricks", "Databricks workspace"),
    ("databricks://profile", "Databricks workspace"),
    ("databricks-uc", "Databricks workspace"),
    ("uc://x", "Databricks workspace"),
    ("nonsense", "neither a server nor a database"),
    ("./mlruns", "no longer writes to a plain folder"),
    ("/tmp/mlruns", "no longer writes to a plain folder"),
    ("file:", "no longer writes to a plain folder"),
    ("file:///tmp/x", "no longer writes to a plain folder"),
    ("localhost:5000", "neither a server nor a database"),
    ("127.0.0.1:5000", "neither a server nor a database"),
    ("ftp://files.example.org/x", "no store of the kind ftp://"),
    ("s3://bucket/x", "no store of the kind s3://"),
    ("oracle://host/db", "no store of the kind oracle://"),
    ("http://", "not the address of a server"),
    ("http://:5000", "not the address of a server"),
    ("https:///path", "not the address of a server"),
    ("http:/127.0.0.1:5000", "not the address of a server"),
    ("http://127.0.0.1:70000", "not the address of a server"),
    ("http://127.0.0.1:0", "not the address of a server"),
    ("http://127.0.0.1:port", "not the address of a server"),
    ("http://[::1", "not the address of a server"),
    ("http://two words", "not the address of a server"),
    ("http://line\nfeed", "not the address of a server"),
    ("sqlite://", "in memory is gone"),
    ("sqlite:///:memory:", "in memory is gone"),
    ("postgresql://user@127.0.0.1/db", "driver is not installed"),
    ("mysql+pymysql://127.0.0.1/db", "driver is not installed"),
    ("postgresql+nodriver://127.0.0.1/db", "not a database's address"),
    ("postgresql://127.0.0.1:port/db", "not a database's address"),
    ("http://127.0.0.1:5000", None),
    ("https://user:word@mlflow.example.org/base/", None),
    ("http://[::1]:5000", None),
    ("sqlite:////somewhere/mlflow.db", None),
    ("sqlite:///mlflow.db", None),
]


@pytest.mark.parametrize(("uri", "words"), STORES, ids=repr)
def test_a_tracking_uri(project: Project, monkeypatch: pytest.MonkeyPatch, uri: str, words: str | None) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    if words is None:
        assert store.checked_uri(project) == uri
        return
    with pytest.raises(GrapeError, match=words) as caught:
        Hooks().refuse(project)
    assert "MLFLOW_TRACKING_URI=" in str(caught.value) and not project.state.exists()
    ui = CliRunner().invoke(app, ["ui"])
    assert ui.exit_code == 2 and words in ui.stderr and "Traceback" not in ui.output


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "not the address of a server"),
        ("127.0.0.1:4200/api", "not the address of a server"),
        ("localhost:4200/api", "not the address of a server"),
        ("ftp://127.0.0.1/api", "not the address of a server"),
        ("http://", "not the address of a server"),
        ("http://:4200/api", "not the address of a server"),
        ("http://127.0.0.1:port/api", "not the address of a server"),
        ("http://127.0.0.1:99999/api", "not the address of a server"),
        ("http://[::1/api", "not the address of a server"),
        ("http://ho st/api", "not the address of a server"),
        (f"http://user:{SECRET}@127.0.0.1:4200/api", "PREFECT_API_AUTH_STRING"),
        (f"http://127.0.0.1:4200/api?key={SECRET}", "PREFECT_API_KEY"),
        (f"user:{SECRET}@127.0.0.1", "not the address of a server"),
    ],
    ids=repr,
)
def test_an_address_of_prefect(project: Project, monkeypatch: pytest.MonkeyPatch, url: str, words: str) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    with pytest.raises(GrapeError, match=words) as caught:
        PrefectEngine().prepare(project)
    assert "PREFECT_API_URL=" in str(caught.value) and SECRET not in str(caught.value)
    assert not project.state.exists()


@pytest.mark.parametrize(
    ("path", "words"),
    [("/api", ""), ("/api/", ""), ("/locked/api", ""), ("", "not Prefect's API"), ("/nowhere", "not Prefect's API")],
    ids=repr,
)
def test_a_server_is_asked_directly_and_must_be_prefects(
    monkeypatch: pytest.MonkeyPatch, server: int, closed: int, path: str, words: str
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed}")
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server}{path}")
    if not words:
        net.prefect_health(net.prefect_api())
        return
    with pytest.raises(OSError, match=words):
        net.prefect_health(net.prefect_api())


@pytest.mark.parametrize(
    ("lower", "upper", "right"),
    [
        (None, None, "127.0.0.1,localhost,::1"),
        ("intern.example.org", None, "intern.example.org,127.0.0.1,localhost,::1"),
        (None, "a, .b ,,", "a,.b,127.0.0.1,localhost,::1"),
        ("a", "b,localhost", "a,b,localhost,127.0.0.1,::1"),
        ("*", "a", "*"),
        ("a", "b,*", "*"),
    ],
)
def test_what_is_not_asked_through_a_proxy(
    project: Project, monkeypatch: pytest.MonkeyPatch, lower: str | None, upper: str | None, right: str
) -> None:
    for name, value in (("no_proxy", lower), ("NO_PROXY", upper)):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert {project.environment()[name] for name in ("no_proxy", "NO_PROXY")} == {right}


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_no_library_asks_a_proxy_for_this_machine(
    project: Project, monkeypatch: pytest.MonkeyPatch, server: int, closed: int, variable: str
) -> None:
    monkeypatch.setenv(variable, f"http://user:{SECRET}@127.0.0.1:{closed}".replace("ß", "s"))
    project.enter()
    url = f"http://127.0.0.1:{server}/api/health"
    assert net.open_url(url, 5).read() == httpx.get(url).content == requests.get(url, timeout=5).content == b"true"
    store._probe(url)


def test_a_judge_on_this_machine_is_asked_directly(monkeypatch: pytest.MonkeyPatch, server: int, closed: int) -> None:
    from grape.reward.critics.transport import Endpoint, Exchange

    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{closed}")
    with Exchange(Endpoint(f"http://127.0.0.1:{server}/v1")) as asked:
        assert asked.client.get(f"http://127.0.0.1:{server}/api/health").text == "true"


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1",
        "http://127.0.0.1:x/v1",
        "http://127.0.0.1:99999",
        "http://two words/v1",
        f"http://{SECRET}@127.0.0.1/v1",
        f"http://a:{SECRET}@[::1",
        f"http://h/v1?key={SECRET}",
    ],
)
def test_a_judge_at_no_address(url: str) -> None:
    from grape.reward.critics.transport import Endpoint

    with pytest.raises(GrapeError, match="address") as caught:
        Endpoint(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:pa@ss@host:1/x", "http://host:1/x"),
        ("http://user:pa/ss@host/x", "http://host/x"),
        ("http://token@host/x?key=1", "http://host/x"),
        ("postgresql://host/db?password=1", "postgresql://host/db"),
        ("user:word@host", "host"),
        ("sqlite:////home/me@work/a?b.db", "sqlite:////home/me@work/a?b.db"),
        ("http://host/x", "http://host/x"),
    ],
)
def test_what_is_shown_of_an_address(url: str, shown: str) -> None:
    assert net.public(url) == shown


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@h", f"API request to http://user:{SECRET}@h/api failed"),
        ("MLFLOW_TRACKING_URI", "http://user:a%2Fbcd@h", "wrong password a/bcd"),
        ("https_proxy", f"http://u:{SECRET}@p:1", f"ProxyError(http://u:{SECRET}@p:1)"),
        ("MLFLOW_TRACKING_TOKEN", SECRET, f"Bearer {SECRET} was refused"),
        ("PREFECT_API_AUTH_STRING", f"admin:{SECRET}", f"admin:{SECRET}"),
        ("UNRELATED", "x", f"postgresql+psycopg2://me:{SECRET}@h/db"),
    ],
)
def test_texts_of_others_lose_their_passwords(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, text: str) -> None:
    monkeypatch.setenv(variable, value)
    assert SECRET not in net.scrub(text) and "a/bcd" not in net.scrub(text)
    assert net.scrub("plain words at http://host/x, me@home") == "plain words at http://host/x, me@home"


def test_no_password_is_printed_or_written(
    project: Project, monkeypatch: pytest.MonkeyPatch, closed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A stage that fails, doctor and ui, with a password wherever one can be."""
    address = f"http://user:{SECRET}@127.0.0.1:{closed}"
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "HTTP_PROXY", "https_proxy"):
        monkeypatch.setenv(name, address)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    project.enter()
    with pytest.raises(RuntimeError), StageRun(project, "sft", {}, 0):
        raise RuntimeError(f"{address}/v1 refused the key {SECRET}")
    said = [CliRunner().invoke(app, words).output for words in (["ui"], ["doctor"], ["mlflow", "sync"])]
    assert "127.0.0.1" in said[0] and "PREFECT_API_AUTH_STRING" in said[1] and "cannot be reached" in said[2]
    written = [path.read_text(errors="replace") for path in project.root.rglob("*") if path.is_file()]
    assert any("refused the key" in text for text in written)
    assert not any(SECRET in text for text in (*said, *written, caplog.text))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Project(tmp_path_factory.mktemp("database"))
    store.connect(made)
    return made.state / "mlflow.db"


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
@pytest.mark.parametrize("name", ["a?b", "a$HOME", "a%20b", "a#b", "a b", "zwölf", 'a"b', "a\\b", "a@b", "~", "{x}", "a?b%23#c"])
def test_the_records_stay_in_the_project(tmp_path: Path, database: Path, name: str) -> None:
    project = Project(tmp_path / name)
    project.state.mkdir(parents=True)
    shutil.copyfile(database, project.state / "mlflow.db")
    (project.root / 'da"ta\\').write_text("x")
    with StageRun(project, "sft", {}, 0, deliver=False) as run:
        run.artifact(project.root / 'da"ta\\', "plots")
        run.dataset('da"ta\\', "training")
    (spool,) = Spool.pending(project)
    delivery = Delivery(project, spool)
    delivery.pump()
    client: Any = delivery.store.client
    (logged,) = client.search_runs([delivery.store.experiment_id])
    assert [file.path for file in client.list_artifacts(logged.info.run_id, "plots")] == ['plots/da"ta\\']
    assert json.loads(logged.inputs.dataset_inputs[0].dataset.source)["path"] == 'da"ta\\'
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(list((project.state / "mlartifacts").rglob("da*"))) == 1


@pytest.mark.parametrize(("url", "here"), [
    ("http://127.0.0.1:1", True), ("http://LOCALHOST", True), ("http://localhost.", True), ("http://x.localhost:8", True),
    ("http://[::1]:1", True), ("http://[::ffff:127.0.0.1]", True), ("http://0.0.0.0:8000", True), ("http://127.9.9.9", True),
    ("http://localhost.example.org", False), ("http://10.0.0.1", False), ("http://[::ffff:10.0.0.1]", False), ("nonsense", False),
    ("http://", False), ("", False), ("http://[::1", False),
])  # fmt: skip
def test_what_is_this_machine(url: str, here: bool) -> None:
    assert net.is_loopback(url) is here
