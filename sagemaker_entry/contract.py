"""What submit.py and the containers of its jobs agree on: names, and how hyperparameters are encoded.

`client/` and `container/` both import this module; neither imports the other.
"""

import json
import re

COORDINATOR_GROUP = "coordinator"
DATA_CHANNEL = "training"
# The environment variable with the time that hosts wait for each other, in seconds.
JOIN_SECONDS = "VGG_JOIN_SECONDS"
# Next to launch.py, written by submit.py: every host of the job has it, and the job's description does not contain it.
SECRET_FILE = "job-secret"
# Names of environment variables whose values are secret. Not PWD and OLDPWD, which are folders, nor
# TOKENIZERS_PARALLELISM.
SECRET_NAME = re.compile(
    r"SECRET|PASSW|PASSPHRASE|\w(?<!OLD)PWD$|(^|_|PG)PASS(_|$)|TOKEN(?!IZ)|CRED(S|ENTIAL)|(API|ACCESS|PRIVATE)_?KEY|"
    r"KEY$|AUTH$|COOKIE|WEBHOOK|CONNECTION_?STRING|(^|_)DSN$|SIGNATURE",
    re.IGNORECASE,
)
# The ARN of a secret in Secrets Manager, and its region. The job replaces a variable with this value by the secret.
SECRET_ARN = r"arn:aws[\w-]*:secretsmanager:([\w-]+):\d{12}:secret:\S+"


def encode(value: str) -> str:
    """Encode a hyperparameter's value so that it reaches the container unchanged.

    In the container, the SDK's scripts (checked with 3.27) decode JSON once and write `export SM_HP_NAME='value'` for
    bash: an apostrophe would end the quotes, and bash would run the rest. SageMaker itself rejects line breaks. JSON,
    encoded twice, contains neither.

    Unnecessary once environment.py of the SDK quotes these values, for example with shlex.quote;
    test_contract.py fails once it does.
    """
    if value.isprintable() and "'" not in value:
        return value
    once = json.dumps(value).replace("'", "\\u0027")
    return json.dumps(once)


def decode(value: object) -> str:
    """Undo `encode`, and the JSON quotes that the SDK's tuner puts around choices."""
    while isinstance(value, str) and len(value) > 1 and value.startswith('"') and value.endswith('"'):
        value = json.loads(value)
    return str(value)
