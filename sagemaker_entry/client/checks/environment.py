"""The environment variables that a user may give a job."""

import re
from collections.abc import Iterable

from sagemaker_entry.contract import SECRET_ARN, SECRET_NAME
from vgg_ddp.flags import UsageError

# Set by SageMaker, by the SDK's scripts, by the toolkit, or by this program.
RESERVED = re.compile(
    r"(SM|SAGEMAKER|TRAINING_JOB|VGG)_.*|CURRENT_HOST|AWS_(DEFAULT_)?REGION|AWS_CONTAINER_.*|DMLC_INTERFACE"
    r"|RAY_(ADDRESS|AUTH_MODE|AUTH_TOKEN|ENABLE_WINDOWS_OR_OSX_CLUSTER)"
)
# A password, or a token in place of the user, as private package indexes have it: https://TOKEN@host.
URL_SECRET = re.compile(r"//([^/@]*:[^/@]*|[^/@]{16,})@")
# Limits of CreateTrainingJob and CreateHyperParameterTuningJob (botocore 1.43.117), less our own variables.
MAX_CHARACTERS = 512
MAX_VARIABLES, MAX_VARIABLES_OF_SEARCH = 98, 46


def parse_environment(texts: Iterable[str], is_search: bool = False) -> dict[str, str]:
    """The variables given as NAME=VALUE.

    Raises:
        UsageError: for a name that this program or SageMaker sets, a secret, or what SageMaker would reject.
    """
    variables: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name):
            # Without the text, which may be a secret.
            raise UsageError(f"--env{f' {name}' if name and equals else ''}: expected NAME=VALUE.")
        if RESERVED.fullmatch(name):
            raise UsageError(f"--env {name}: SageMaker or this program sets this variable.")
        is_secret = SECRET_NAME.search(name) or URL_SECRET.search(value)
        if is_secret and not re.fullmatch(SECRET_ARN, value):
            raise UsageError(
                f"--env {name}: everyone who can describe the job could read this secret. Store it in Secrets "
                f"Manager, and give its ARN: --env {name}=arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME."
            )
        if len(name) > MAX_CHARACTERS or len(value) > MAX_CHARACTERS or "\0" in value:
            raise UsageError(f"--env {name[:40]}: expected at most {MAX_CHARACTERS} characters.")
        variables[name] = value
    most = MAX_VARIABLES_OF_SEARCH if is_search else MAX_VARIABLES
    if len(variables) > most:
        raise UsageError(f"--env: {len(variables)} variables; SageMaker allows {most} besides those of this program.")
    return variables
