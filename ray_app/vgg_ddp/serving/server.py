"""ray_app/serve.py: start a Ray cluster or join one, serve a model on it, and stop when asked."""

import contextlib
import importlib.util
import io
import logging
import signal
import sys
import time

from vgg_ddp.driver import ray_environment
from vgg_ddp.flags import UsageError
from vgg_ddp.machine.environment import check_ray_settings
from vgg_ddp.run.notes import reason
from vgg_ddp.run.storage import absolute
from vgg_ddp.serving.config import ServeConfig
from vgg_ddp.serving.ports import require_free_port, require_free_port_on_head

# Packages that ray[serve] adds to what training needs.
PACKAGES = ("fastapi", "pydantic", "starlette", "uvicorn")
FAILED = 1
SECONDS_BETWEEN_CHECKS = 5.0
# SageMaker's limit for a response.
REQUEST_TIMEOUT_SECONDS = 60.0


def serve_until_stopped(config: ServeConfig) -> int:
    """Serve a model until a signal or Ctrl-C, and return the exit code.

    Raises:
        UsageError: if the input is invalid.
    """
    require_serve()
    check_ray_settings(starts_cluster=True)
    address = ray_environment.prepare(config.address)
    own_cluster = address == ray_environment.LOCAL
    if own_cluster:
        require_free_port(config.host, config.port)
    # Slow to import. The replicas load the model again, on their own machines.
    from vgg_ddp.weights.model_file import load_classifier

    classifier = load_classifier(config.model)
    size, classes = classifier.image_size, len(classifier.class_names)
    print(f"Model:     {absolute(config.model)}: {classes} classes, {size} x {size} pixels", flush=True)
    del classifier

    import ray

    from vgg_ddp.driver import cluster
    from vgg_ddp.driver.signals import InterruptedRunError, interrupt_on_signals

    try:
        with interrupt_on_signals():
            cluster.connect(address, config.verbose)
        return _serve(config, own_cluster)
    except InterruptedRunError as error:
        return 128 + error.signal_number
    finally:
        ray.shutdown()


def require_serve() -> None:
    """Check that Ray Serve's packages are installed, without importing them.

    Raises:
        UsageError: if they are not.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        from importlib.metadata import version

        install = f'pip install "ray[serve]=={version("ray")}"'
        raise UsageError(f"Ray Serve is not installed ({missing[0]} is missing): {install}.")


def _serve(config: ServeConfig, own_cluster: bool) -> int:
    from ray import serve
    from ray.exceptions import RayError

    from vgg_ddp.serving.app import NAME, application
    from vgg_ddp.serving.placement import actor_options

    level = "INFO" if config.verbose else "WARNING"
    logging.getLogger("ray.serve").setLevel(level)
    options = actor_options(config, own_cluster)
    if not own_cluster:
        _require_idle_serve()
        require_free_port_on_head(config.host, config.port)
    app = application(
        absolute(config.model), config.max_batch, config.device, num_replicas=config.replicas, ray_actor_options=options
    )
    print(f"Replicas:  {config.replicas} on {'GPU' if options['num_gpus'] else 'CPU'}, starting", flush=True)
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": config.host, "port": config.port, "request_timeout_s": REQUEST_TIMEOUT_SECONDS},
            logging_config={"log_level": level},
        )
        serve.run(app, name=NAME, logging_config={"log_level": level})
        print(_how_to_call(config), flush=True)
        return _wait(NAME)
    except (RayError, RuntimeError, TimeoutError) as error:
        print(
            f"error: the model cannot be served: {reason(getattr(error, 'cause', error))}", file=sys.stderr, flush=True
        )
        return FAILED
    finally:
        _end(NAME, own_cluster)


def _require_idle_serve() -> None:
    """Check that this cluster serves nothing yet, since all applications share one host and port.

    Raises:
        UsageError: if it serves an application.
    """
    from ray import serve

    status = serve.status()
    if status.applications:
        names = ", ".join(status.applications)
        raise UsageError(f"this cluster already serves {names}: stop that with serve shutdown, or use serve deploy.")
    if status.proxies:
        # Left over, with another host and port.
        _shut_down_serve()


def _end(name: str, own_cluster: bool) -> None:
    """Finish the requests in flight and delete the application; on a cluster that stays, stop Ray Serve."""
    from ray import serve
    from ray.exceptions import RayError

    # If the cluster is gone, so is the application.
    with contextlib.suppress(RayError):
        try:
            if name in serve.status().applications:
                serve.delete(name)
        except TimeoutError as error:
            print(f"NOTE: the application has not ended: {reason(error)}", file=sys.stderr, flush=True)
        if not own_cluster and not serve.status().applications:
            _shut_down_serve()


def _shut_down_serve() -> None:
    from ray import serve

    # Ray prints that a task has failed, which is how it waits for the end of Serve's controller.
    with contextlib.redirect_stdout(io.StringIO()):
        serve.shutdown()


def _how_to_call(config: ServeConfig) -> str:
    host = f"[{config.host}]" if ":" in config.host else config.host
    url = f"http://{host}:{config.port}"
    return (
        f"Listening: {url} (Ctrl-C stops it)\n"
        f"Try it:    curl {url}/invocations -H 'Content-Type: image/png' --data-binary @image.png"
    )


def _wait(name: str) -> int:
    """Wait for a signal, or for somebody else to delete the application; return the exit code."""
    from ray import serve

    from vgg_ddp.driver.signals import SignalWatch, stop_signals

    with SignalWatch(signal.SIGINT, *stop_signals()) as watch:
        checked = time.monotonic()
        while not watch.received:
            time.sleep(0.1)
            if time.monotonic() - checked > SECONDS_BETWEEN_CHECKS:
                if name not in serve.status().applications:
                    print("error: the application was deleted.", file=sys.stderr, flush=True)
                    return FAILED
                checked = time.monotonic()
    print(f"{signal.Signals(watch.received[0]).name}: finishing the requests in flight, then stopping", flush=True)
    return 128 + watch.received[0]
