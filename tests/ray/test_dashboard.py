"""What Ray's dashboard shows about a run, in a browser."""

import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

from screenshots import browser, log_in, wait_for
from support.command import main_command, started, wait_until

pytestmark = pytest.mark.slow


def page_text(chromium: WebDriver) -> str:
    return chromium.find_element(By.TAG_NAME, "body").text


def test_dashboard_shows_the_run_and_its_workers(tiny_data: Path, tmp_path: Path) -> None:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver (Debian packages chromium and chromium-driver)")
    flags = ("--num-workers", 1, "--data", tiny_data, "--epochs", 100, "--batch-size", 24, "--recipe", "classic")
    log = tmp_path / "log"
    with started(tmp_path, main_command(*flags), log) as process, browser(tmp_path / "profile") as chromium:
        wait_until(lambda: "Started:" in log.read_text() or process.poll() is not None)
        dashboard = re.search(r"Dashboard: (\S+)", log.read_text())
        assert dashboard, log.read_text()
        log_in(chromium, dashboard[1], Path(os.environ["HOME"], ".ray", "auth_token").read_text())
        chromium.get(f"{dashboard[1]}/#/jobs/01000000")
        wait_for(chromium, "main.py")
        assert "--num-workers 1" in page_text(chromium)
        assert "RUNNING" in page_text(chromium)
        chromium.get(f"{dashboard[1]}/#/cluster")
        wait_for(chromium, "RayTrainWorker")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
