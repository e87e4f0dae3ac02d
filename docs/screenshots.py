"""Take the screenshots in this folder from a real run: python docs/screenshots.py

Needs Chromium and its driver (Debian: chromium, chromium-driver) and the packages in requirements-dev.txt.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import element_to_be_clickable, presence_of_element_located
from selenium.webdriver.support.wait import WebDriverWait

DOCS = Path(__file__).resolve().parent
MAIN = DOCS.parent / "ray_app" / "main.py"
RUN = "vgg11-sample"
WIDTH, HEIGHT, CLUSTER_HEIGHT = 1400, 1000, 1660
SECONDS_TO_START = 120
SECONDS_TO_LOAD = 60
SECONDS_TO_SETTLE = 8


@contextmanager
def browser(profile: Path) -> Iterator[WebDriver]:
    """A headless Chromium."""
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={profile}")
    options.add_argument(f"--window-size={WIDTH},{HEIGHT}")
    chromium = Chrome(options, ChromeService(shutil.which("chromedriver")))
    try:
        yield chromium
    finally:
        chromium.quit()


def wait_for(chromium: WebDriver, text: str) -> WebElement:
    """Wait until the page shows a text; return the first element that contains it."""
    place = (By.XPATH, f"//*[contains(text(), '{text}')]")
    waiting = WebDriverWait(chromium, SECONDS_TO_LOAD)
    return waiting.until(presence_of_element_located(place), f"{text} is not on the page")


def log_in(chromium: WebDriver, dashboard: str, token: str) -> None:
    """Open Ray's dashboard and enter the token that it asks for."""
    chromium.get(dashboard)
    field = (By.CSS_SELECTOR, "[role=dialog] input")
    WebDriverWait(chromium, SECONDS_TO_LOAD).until(element_to_be_clickable(field)).send_keys(token.strip())
    chromium.find_element(By.XPATH, "//*[@role='dialog']//button[text()='Submit']").click()
    WebDriverWait(chromium, SECONDS_TO_LOAD).until_not(presence_of_element_located(field))


def shoot(chromium: WebDriver, name: str, url: str, text: str) -> None:
    """Save a screenshot of a page, scrolled to a text, once the page shows it."""
    chromium.get(url)
    wait_for(chromium, text)
    # Ray's dashboard fills its tables a moment later.
    time.sleep(SECONDS_TO_SETTLE)
    chromium.execute_script("arguments[0].scrollIntoView({block: 'center'})", wait_for(chromium, text))
    chromium.save_screenshot(str(DOCS / f"{name}.png"))
    print(f"docs/{name}.png", flush=True)


def shoot_dashboard(chromium: WebDriver, dashboard: str, token: str) -> None:
    """Save the dashboard pages that are useful while a run trains."""
    log_in(chromium, dashboard, token)
    shoot(chromium, "dashboard-job", f"{dashboard}/#/jobs/01000000", "main.py")
    # The workers are at the bottom of the page; this height also shows the node above them.
    chromium.set_window_size(WIDTH, CLUSTER_HEIGHT)
    shoot(chromium, "dashboard-cluster", f"{dashboard}/#/cluster", "RayTrainWorker")
    chromium.set_window_size(WIDTH, HEIGHT)


def free_port() -> int:
    """A port that is currently free on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_server(url: str) -> None:
    """Wait until a server responds.

    Raises:
        OSError: if it does not within `SECONDS_TO_START`.
    """
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@contextmanager
def mlflow_server(folder: Path, *options: str) -> Iterator[str]:
    """An MLflow server for the store in a folder; yields its URL."""
    port = free_port()
    command = [Path(sys.executable).with_name("mlflow"), "server", "--backend-store-uri", "sqlite:///mlflow.db"]
    command += ["--port", str(port), "--workers", "1", *options]
    server = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for_server(url)
        yield url
    finally:
        # Kill the whole group: the server's workers would survive it.
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def shoot_mlflow(chromium: WebDriver, folder: Path) -> None:
    """Save the run's curves as MLflow shows them."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments)
    with mlflow_server(folder) as url:
        page = f"{url}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/model-metrics"
        chromium.get(page)
        # A panel that opens automatically covers a quarter of the page.
        close = element_to_be_clickable((By.CSS_SELECTOR, "button[aria-label=Close]"))
        WebDriverWait(chromium, SECONDS_TO_LOAD).until(close).click()
        shoot(chromium, "mlflow-metrics", page, "images_per_second")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The command looks as in the docs, and the private home keeps the user's own token out of the screenshots.
        (folder / "ray_app").symlink_to(DOCS.parent / "ray_app")
        environment = os.environ | {"HOME": name, "RAY_USAGE_STATS_ENABLED": "0"}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        command = f"python ray_app/main.py --num-workers 2 --data sample --epochs 8 --mlflow local --run-name {RUN}"
        with (
            browser(folder / "profile") as chromium,
            subprocess.Popen(command.split(), cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as run,
        ):
            output = ""
            for line in run.stdout or ():
                output += line
                if line.startswith("epoch"):
                    break
            dashboard = re.search(r"Dashboard: (\S+)", output)
            if not dashboard:
                raise SystemExit(f"main.py printed no dashboard URL: {output}")
            shoot_dashboard(chromium, dashboard[1], (folder / ".ray" / "auth_token").read_text())
            run.communicate()
            shoot_mlflow(chromium, folder)
        shutil.copy(folder / "runs" / RUN / "curves.png", DOCS)


if __name__ == "__main__":
    main()
