"""The settings of ray_app/serve.py."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from vgg_ddp.flags import UsageError, refuse_password

MAX_PORT = 65535
# Maximum number of images, of several requests, that are classified at once.
MAX_BATCH = 32


@dataclass(frozen=True)
class ServeConfig:
    """Serve the model of a finished run over HTTP, with Ray Serve."""

    POSITIONAL: ClassVar = ("model",)

    model: str
    """Run folder or .safetensors file; a path or URI (s3://...)."""
    address: str | None = None
    """Join the Ray cluster at HOST:PORT, or auto. Default: $RAY_ADDRESS, or start a cluster on this machine."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 listens on all interfaces."""
    port: int = 8000
    """Port to listen on."""
    replicas: int = 1
    """Number of replicas, each with its own copy of the model."""
    max_batch: int = MAX_BATCH
    """Maximum images per batch, across requests; 1 turns batching off."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """cpu, gpu (one per replica), or auto: GPUs if there is one for each replica."""
    verbose: bool = False
    """Show the logs of Ray and a line for each request."""

    def __post_init__(self) -> None:
        """Check the arguments.

        Raises:
            UsageError: if an argument is invalid.
        """
        refuse_password("MODEL", self.model)
        if not 0 < self.port <= MAX_PORT:
            raise UsageError(f"--port {self.port}: expected a number from 1 to {MAX_PORT}.")
        if self.replicas < 1:
            raise UsageError(f"--replicas {self.replicas}: expected a positive number.")
        if self.max_batch < 1:
            raise UsageError(f"--max-batch {self.max_batch}: expected a positive number.")
