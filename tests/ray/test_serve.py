"""serve.py: requests over HTTP, a killed replica under load, and the end of the server."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from support.command import PATIENCE, free_port, marked_processes, open_to_the_network, started, wait_until
from support.random_model import CLASSES, Pixels, random_images, write_random_model
from support.serving import SERVE, Response, call, classify, npy, png, probabilities
from vgg_ddp.serving.contract import MAX_BYTES
from vgg_ddp.weights.model_file import load_classifier

CLIENTS, REQUESTS, KILL_AFTER = 16, 1000, 300


class Server(NamedTuple):
    port: int
    process: subprocess.Popen[str]
    folder: Path
    log: Path

    def replicas(self) -> set[int]:
        found = marked_processes(self.folder.name).items()
        return {pid for pid, command in found if command.startswith("ray::ServeReplica")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("run"), random_images(20))


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return random_images(20)


@pytest.fixture(scope="module")
def expected(model: Path, pixels: Pixels) -> npt.NDArray[np.float32]:
    """The probabilities that predict.py prints."""
    found: npt.NDArray[np.float32] = load_classifier(str(model)).probabilities(pixels).numpy()
    assert len(set(found.argmax(axis=1))) > 1
    return found


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("serve"), free_port()
    command = [sys.executable, SERVE, model, "--port", port, "--replicas", 2, "--max-batch", 8]
    log = folder / "log"
    with started(folder, list(map(str, command)), log) as process:
        wait_until(lambda: "Try it" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield Server(port, process, folder, log)


def test_output_is_four_lines_and_the_printed_command_works(server: Server, model: Path, pixels: Pixels) -> None:
    # On a busy machine, the processes of Ray Serve warn that they are slow.
    lines = [line for line in server.log.read_text().splitlines() if not line.startswith("(")]
    assert [line.partition(":")[0] for line in lines] == ["Model", "Replicas", "Listening", "Try it"]
    assert lines[0] == f"Model:     {model}: 3 classes, 32 x 32 pixels"
    (server.folder / "image.png").write_bytes(png(pixels[0]))
    command = lines[3].partition(":")[2]
    result = subprocess.run(command, shell=True, cwd=server.folder, capture_output=True, text=True, timeout=PATIENCE)
    assert json.loads(result.stdout)["predictions"][0]["class"] in CLASSES


def test_predictions_equal_those_of_predict(server: Server, pixels: Pixels, expected: npt.NDArray[np.float32]) -> None:
    assert call(server.port, "/ping").status == 200
    single = probabilities(classify(server.port, png(pixels[0])))
    np.testing.assert_allclose(single, expected[:1], atol=1e-4)
    # More images than a batch may have.
    for body, kind in (
        (npy(pixels), "application/x-npy"),
        (json.dumps({"instances": pixels.tolist()}).encode(), "application/json"),
    ):
        np.testing.assert_allclose(probabilities(classify(server.port, body, kind)), expected, atol=1e-4)


def test_bad_requests_get_a_4xx_status_and_the_reason(server: Server, pixels: Pixels) -> None:
    image = png(pixels[0])
    streamed = iter([bytes(2**20)] * 2 * (MAX_BYTES // 2**20))
    for path, body, headers, status, text in (
        ("/invocations", b"hello", {"Content_Type": "image/png"}, 400, "not a valid image/png: not PNG or JPEG"),
        ("/invocations", image, {"Content_Type": "text/plain"}, 415, "content type text/plain: expected one of"),
        ("/invocations", image, {"Content_Type": "image/png", "Accept": "text/csv"}, 406, "expected application/json"),
        ("/invocations", bytes(MAX_BYTES + 1), {"Content_Type": "image/png"}, 413, f"expected at most {MAX_BYTES}"),
        ("/invocations", streamed, {"Content_Type": "image/png"}, 413, f"expected at most {MAX_BYTES}"),
        ("/invocations", None, {}, 404, "expected POST /invocations or GET /ping"),
        ("/", image, {}, 404, "expected POST /invocations or GET /ping"),
    ):
        response = call(server.port, path, body, **headers)
        assert response.status == status, (path, headers, response)
        assert text in response.body.splitlines()[0]


def test_server_listens_on_loopback_only(server: Server) -> None:
    assert len(server.replicas()) == 2
    assert open_to_the_network(server.folder.name) == []


def test_replica_killed_under_load_costs_only_5xx_and_is_replaced(
    server: Server, pixels: Pixels, expected: npt.NDArray[np.float32]
) -> None:
    images, before = [png(image) for image in pixels], server.replicas()
    done: list[tuple[int, Response]] = []

    def send(number: int) -> None:
        index = number % len(images)
        response = classify(server.port, images[index])
        done.append((index, response))
        if number == KILL_AFTER:
            os.kill(min(before), signal.SIGKILL)

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(send, range(REQUESTS)))
    assert len(done) == REQUESTS
    failed = [response for _, response in done if response.status != 200]
    assert all(500 <= response.status < 600 for response in failed), failed
    # Those that the replica had accepted.
    assert len(failed) <= 2 * CLIENTS
    for index, response in done:
        if response.status == 200:
            np.testing.assert_allclose(probabilities(response), expected[[index]], atol=1e-4)
            (prediction,) = json.loads(response.body)["predictions"]
            assert prediction["class"] == CLASSES[expected[index].argmax()]
    wait_until(lambda: len(server.replicas() - {min(before)}) == 2)
    with ThreadPoolExecutor(CLIENTS) as clients:
        again = list(clients.map(lambda image: classify(server.port, image), images))
    assert {response.status for response in again} == {200}


def test_sigterm_finishes_the_requests_in_flight_and_leaves_nothing_running(server: Server) -> None:
    body, has_stopped = npy(random_images(1000)), threading.Event()

    def send() -> Iterator[bytes]:
        """The body, whose second half the client sends after the signal."""
        yield body[: len(body) // 2]
        # Until a replica has the request.
        time.sleep(1)
        server.process.terminate()
        has_stopped.wait(PATIENCE)
        yield body[len(body) // 2 :]

    with ThreadPoolExecutor(1) as clients:
        request = clients.submit(call, server.port, "/invocations", send(), Content_Type="application/x-npy")
        wait_until(lambda: "SIGTERM" in server.log.read_text())
        assert not request.done()
        has_stopped.set()
        assert len(probabilities(request.result())) == 1000
    assert server.process.wait(60) == 143
    # Above it, Ray reports the replica that was killed.
    assert server.log.read_text().splitlines()[-1] == "SIGTERM: finishing the requests in flight, then stopping"
    wait_until(lambda: not marked_processes(server.folder.name), 20)


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules.update(starlette=None)\n")
        for flags, environment, text in (
            ((model, "--port", port), {}, f"--host 127.0.0.1 --port {port}: cannot listen there (Address already in"),
            ((model, "--host", "192.0.2.77"), {}, "--host 192.0.2.77 --port 8000: cannot listen there ("),
            ((model, "--host", "no.such.invalid"), {}, "--host no.such.invalid: expected a name or address"),
            ((model, "--address", "head"), {}, "--address head: expected HOST:PORT of a Ray head node"),
            ((model, "--port", 0), {}, "--port 0: expected a number from 1 to 65535."),
            ((model, "--replicas", 0), {}, "--replicas 0: expected a positive number."),
            ((model, "--max-batch", 0), {}, "--max-batch 0: expected a positive number."),
            ((tmp_path, "--port", free_port()), {}, f"{tmp_path}: expected a folder of a finished run"),
            (
                (model,),
                {"PYTHONPATH": str(tmp_path)},
                'Ray Serve is not installed (starlette is missing): pip install "ray[serve]==2.',
            ),
        ):
            command = [sys.executable, SERVE, *flags]
            variables = os.environ | environment
            result = subprocess.run(
                list(map(str, command)), cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=PATIENCE
            )
            assert (result.returncode, result.stdout) == (2, ""), result
            (line,) = result.stderr.splitlines()
            assert line.startswith(f"error: {text}"), line
