"""Fallbacks are logged once per process; each test resets this."""

import pytest

from vgg_ddp.compat.fallback import log_fallback


@pytest.fixture(autouse=True)
def nothing_logged_yet() -> None:
    log_fallback.cache_clear()
