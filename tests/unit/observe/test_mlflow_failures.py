"""An MLflow store that fails, in whatever way, costs a run one line on stderr."""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vgg_ddp.config import TrainConfig
from vgg_ddp.observe import mlflow as observed
from vgg_ddp.observe.mlflow import recorded
from vgg_ddp.run.files import Row, write_metrics
from vgg_ddp.run.runs import Run
from vgg_ddp.run.storage import Folder

MakeRows = Callable[[int], list[Row]]
Answer = tuple[int, bytes]
EXPERIMENT = {"experiment_id": "1", "name": "vgg11-ddp", "lifecycle_stage": "active"}
RECORD = {"info": {"run_id": "r", "run_uuid": "r", "experiment_id": "1", "status": "RUNNING"}, "data": {}}
# The answers of an intact server to the first requests of a run: get the experiment, create the run, log its settings.
START = [(200, json.dumps(content).encode()) for content in ({"experiment": EXPERIMENT}, {"run": RECORD}, {})]
LOGIN_PAGE = (200, b"<html>Please log in</html>")
FAILURES: dict[str, tuple[list[Answer], str]] = {
    "internal error": ([(500, b"oops")], "too many 500 error responses"),
    "forbidden": ([(403, b'{"error_code": "PERMISSION_DENIED", "message": "not yours"}')], "not yours"),
    "not found": ([(404, b"")], "failed with error code 404"),
    "login page": ([LOGIN_PAGE], "not in a valid JSON format"),
    "empty answer": ([(200, b"{}")], "Invalid value"),
    "closed connection": ([(0, b"")], "Max retries exceeded"),
    "slow": ([(-1, b"")], "Read timed out"),
    "deleted experiment": (
        [START[0], (400, b'{"error_code": "INVALID_STATE", "message": "The experiment is deleted."}')],
        "The experiment is deleted.",
    ),
    "error in the middle": ([*START, (500, b"oops")], "too many 500 error responses"),
    "closed in the middle": ([*START, (0, b"")], "Max retries exceeded"),
    "login page in the middle": ([*START, LOGIN_PAGE], "not in a valid JSON format"),
    "error at the end": ([*START, START[2], (500, b"oops")], "too many 500 error responses"),
}


@contextmanager
def server(answers: list[Answer]) -> Iterator[str]:
    """A server that gives these answers in turn, then the last one again; its URL.

    Status 0 closes the connection; -1 answers too late.
    """
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, content = left.pop(0) if len(left) > 1 else left[0]
            if status > 0:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            elif status < 0:
                over.wait(10)

        do_GET = do_POST = do_PATCH = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    over = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        over.set()
        http.shutdown()


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(observed, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(observed, "SECONDS_FOR_LOCK", 0.2)


def note_of(run: Folder, make_rows: MakeRows, uri: str, capfd: pytest.CaptureFixture[str]) -> str:
    """Record a run of two epochs, which must print one line; return that line."""
    with recorded(Run(TrainConfig(epochs=2, mlflow=uri), "run", run, exists=False)):
        write_metrics(run, make_rows(2))
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1, printed
    assert printed.err.startswith(f"NOTE: MLflow at {uri} cannot be used (")
    assert printed.err.endswith("; the run itself is not affected.\n")
    return printed.err


@pytest.mark.parametrize("failure", FAILURES)
def test_failing_server_is_one_note(
    run: Folder, make_rows: MakeRows, capfd: pytest.CaptureFixture[str], failure: str
) -> None:
    answers, expected = FAILURES[failure]
    with server(answers) as uri:
        assert expected in note_of(run, make_rows, uri, capfd)


def test_server_that_hangs_at_the_end_is_given_up(
    run: Folder, make_rows: MakeRows, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    monkeypatch.setattr(observed, "SECONDS_TO_FINISH", 1.0)
    started = time.monotonic()
    with server([*START, (-1, b"")]) as uri:
        with recorded(Run(TrainConfig(mlflow=uri), "run", run, exists=False)):
            write_metrics(run, make_rows(1))
        assert time.monotonic() - started < 8
        assert capfd.readouterr().err == (
            f"NOTE: MLflow at {uri} did not finish within 1 s; the run itself is not affected.\n"
        )


def make_folder(file: Path) -> None:
    file.mkdir()


def make_text(file: Path) -> None:
    file.write_text("not a database" * 100)


def make_other_database(file: Path) -> None:
    with closing(sqlite3.connect(file)) as store:
        store.execute("CREATE TABLE experiments (name TEXT)")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (make_folder, "unable to open database file"),
        (make_text, "file is not a database"),
        (make_other_database, "no such column"),
    ],
)
def test_file_that_cannot_be_used_is_one_note(
    make: Callable[[Path], None],
    expected: str,
    run: Folder,
    make_rows: MakeRows,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    make(tmp_path / "mlflow.db")
    started = time.monotonic()
    assert expected in note_of(run, make_rows, f"sqlite:///{tmp_path}/mlflow.db", capfd)
    # MLflow itself would try for two minutes.
    assert time.monotonic() - started < 20


def test_locked_file_is_one_note(
    run: Folder, make_rows: MakeRows, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as other:
        other.execute("CREATE TABLE experiments (name TEXT)")
        other.execute("BEGIN EXCLUSIVE")
        assert "database is locked" in note_of(run, make_rows, f"sqlite:///{tmp_path}/mlflow.db", capfd)
