import signal
from pathlib import Path

import pytest

from sagemaker_entry.container.outcome import (
    DRIVER_KILLED,
    FAILURE_CHARACTERS,
    STOPPED,
    TRAINING_FAILED,
    Redactor,
    Verdict,
    first_failure,
    judge_driver,
    write_failure,
)

WORKER = "\x1b[36m(RayTrainWorker pid=811, ip=10.0.0.3)\x1b[0m "
OUTPUT = f"""epoch 1/2  loss 2.3
{WORKER}Traceback (most recent call last):
{WORKER}  File "/code/train.py", line 40, in train_loop
{WORKER}    outcome = worker.train_epoch()
{WORKER}  File "/code/worker.py", line 7, in train_epoch
{WORKER}    raise ValueError("label 12 has no class")
worker 1 (and 1 more) failed:
ValueError: label 12 has no class

error: training failed; the first failure is shown above.
Resume from the newest checkpoint with: python ray_app/main.py --resume job
""".splitlines()


def test_reason_is_the_exception_followed_by_its_frames() -> None:
    assert first_failure(OUTPUT).splitlines() == [
        "ValueError: label 12 has no class",
        '  File "/code/worker.py", line 7, in train_epoch',
        '  File "/code/train.py", line 40, in train_loop',
    ]


def test_exception_of_the_driver_is_reported() -> None:
    lines = ["Traceback (most recent call last):", '  File "/code/main.py", line 3, in main', "KeyError: 'x'"]
    assert first_failure(lines) == "KeyError: 'x'\n" + lines[1]


def test_error_line_is_the_reason_if_there_is_no_exception() -> None:
    assert (
        first_failure(["Data: x", "error: --lr -1: expected a positive number."])
        == "--lr -1: expected a positive number."
    )


def test_job_whose_run_another_job_still_uses_says_so() -> None:
    reason = "run job in --storage-path s3://bucket/runs is already running: wait for it to finish."
    assert first_failure(["Waiting:   up to 30 s, because run job may still be running", f"error: {reason}"]) == reason
    reason = "another command has taken over run job, because this one had stopped renewing its lease."
    lines = ["epoch 1/2  loss 2.3", f"error: {reason}"]
    assert judge_driver(1, lines, False) == Verdict(TRAINING_FAILED, reason)


def test_driver_exit_codes_become_verdicts() -> None:
    assert judge_driver(0, ["fine"], False) == Verdict(0)
    assert judge_driver(1, OUTPUT, False).code == TRAINING_FAILED
    assert judge_driver(143, [], True).code == STOPPED
    assert judge_driver(-signal.SIGTERM, [], True).code == STOPPED
    assert judge_driver(signal.SIGTERM, [], True).code == STOPPED
    killed = judge_driver(-signal.SIGKILL, ["last words"], False)
    assert killed.code == DRIVER_KILLED
    assert "SIGKILL" in killed.reason and "last words" in killed.reason


def test_failure_file_is_as_long_as_sagemaker_shows(tmp_path: Path) -> None:
    write_failure(tmp_path / "output" / "failure", Verdict(1, "cause " + "x" * 5000))
    text = (tmp_path / "output" / "failure").read_text()
    assert len(text) == FAILURE_CHARACTERS
    assert text.startswith("cause")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "DB_PASSWORD",
            "DB_PWD",
            "MYSQL_PASSWD",
            "SSH_PASSPHRASE",
            "SMTP_PASS",
            "PGPASS",
            "GIT_CREDENTIALS",
            "DB_CREDS",
        ),
        *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "MY_API_KEY", "SSH_KEY", "NPM_AUTH", "SENTRY_DSN"),
    ],
)
def test_values_of_secret_variables_are_redacted(name: str) -> None:
    redact = Redactor({name: "s3cret-value", "PATH": "/usr/bin"})
    assert redact("got s3cret-value from /usr/bin") == "got ****** from /usr/bin"


@pytest.mark.parametrize("name", ["PWD", "OLDPWD", "TOKENIZER_PATH", "PROXY_BYPASS", "AUTHOR", "KEYBOARD"])
def test_values_of_other_variables_are_not_redacted(name: str) -> None:
    assert Redactor({name: "/home/me"})("in /home/me") == "in /home/me"


def test_short_values_are_not_redacted() -> None:
    assert Redactor({"TOKEN": "a"})("a banana") == "a banana"


def test_secret_that_contains_another_is_redacted_as_a_whole() -> None:
    assert Redactor({"A_TOKEN": "s3cret", "B_TOKEN": "my-s3cret-2"})("my-s3cret-2, s3cret") == "******, ******"


def test_passwords_and_tokens_in_urls_are_redacted() -> None:
    redact = Redactor({"DB_PASSWORD": "p/w#1234"})
    assert redact("https://aws:eyJ0@index.example/simple") == "https://aws:******@index.example/simple"
    assert (
        redact("https://hunter22-hunter22@index/simple, ssh://git@host/")
        == "https://******@index/simple, ssh://git@host/"
    )
    assert redact("at https://host/?password=p%2Fw%231234") == "at https://host/?password=******"
    assert redact("see https://example.com:8080/a, and user@example.com") == (
        "see https://example.com:8080/a, and user@example.com"
    )
