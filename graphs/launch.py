"""`python -m graphs.launch CONFIG`: a Ray cluster in this process, the graph on it, the dashboard.

For a laptop or a single box. To start faster, the graph is built in this process, not in a task of
the cluster. `serve run CONFIG` and, on a cluster, `serve deploy CONFIG` run the same graph.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import dropwhile
from pathlib import Path
from typing import Any

from configs import legacy_environment
from configs.settings import SERVE_ENVIRONMENT, TELEMETRY_OFF

# Ray reads these when it is imported. Token authentication would write a token file into the home
# directory; on a laptop the dashboard listens on loopback only.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Threads of a handle outlive the cluster: they must not connect to another one that runs here.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
os.environ.update(TELEMETRY_OFF | os.environ | SERVE_ENVIRONMENT)
# Ray starts a worker per logical CPU at once; they become the replicas. Importing Serve while the
# cluster comes up is half of what a replica's process does before it loads its model.
os.environ.setdefault("RAY_preload_python_modules", "ray.serve")
# Ray runs its workers at niceness 15: live streams would starve beside anything else that runs.
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
import yaml
from ray import serve
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.serve._private.constants import (
    RAY_SERVE_ENABLE_HA_PROXY,
    RAY_SERVE_HAPROXY_MAXCONN,
    SERVE_PROXY_NAME,
)
from ray.serve.context import _get_global_client
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import DeploymentStatus, LoggingConfig

from api.auth.key_file import create_key_file
from configs.catalogue import resolve_path
from configs.settings import SpeechArgs
from deployments.runtime import logs
from deployments.runtime.model_access import ModelFiles
from graphs import device_table, gpu_memory, node_limits
from graphs.speech import InvalidArguments, build
from graphs.validate import problems

OBJECT_STORE_BYTES = 512 * 1024**2
SIGNALS = (signal.SIGTERM, signal.SIGINT)
DRAIN_SLACK_S = 5.0
"""What a deployment may take beyond its ``drain_timeout_s`` to report that it is drained."""
STOP_S = 30.0
"""Longest wait for Serve's proxies to stop."""
PROCESSES = 9
"""Serve's controller and proxy, and one replica of each of the seven deployments."""


def start(config: dict[str, Any], args: SpeechArgs, num_cpus: int) -> tuple[str, str]:
    """Start Ray and run a validated config; the addresses of the service and the dashboard.

    ``args`` are those of its one application.
    """
    context = ray.init(
        address="local",  # never join a cluster that happens to run here
        num_cpus=num_cpus,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=_free_port("127.0.0.1", 8265),
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    (application,) = config["applications"]
    legacy = legacy_environment.read(application["args"])
    http = {
        "host": "127.0.0.1",
        "port": 8000,
        **config.get("http_options", {}),
        **legacy.get("http_options", {}),
    }
    http["port"] = _free_port(http["host"], http["port"])
    logging_config = LoggingConfig(
        **config.get("logging_config", {}) | legacy.get("logging_config", {})
    )
    logs.write_to_stderr(logging_config)
    serve.start(proxy_location="HeadOnly", http_options=http, logging_config=logging_config)
    serve.run(
        build(args),
        name=application["name"],
        route_prefix=application["route_prefix"],
        logging_config=logging_config,
    )
    host = http["host"].replace("0.0.0.0", "127.0.0.1")
    return f"http://{host}:{http['port']}", f"http://{context.dashboard_url}"


def _fit_haproxy() -> None:
    """Lower the connections of HAProxy to those for which this process has file descriptors."""
    fit = node_limits.fitting(RAY_SERVE_HAPROXY_MAXCONN)
    if RAY_SERVE_ENABLE_HA_PROXY and fit < RAY_SERVE_HAPROXY_MAXCONN:
        sys.stderr.write(
            f"HAProxy takes {fit} connections, not RAY_SERVE_HAPROXY_MAXCONN="
            f"{RAY_SERVE_HAPROXY_MAXCONN}, for the limit of file descriptors (ulimit -Hn)\n"
        )
        os.environ["RAY_SERVE_HAPROXY_MAXCONN"] = str(fit)


def _gpu_warning(args: SpeechArgs) -> str:
    """The line about models that may take more than the GPU of this machine has, else ""."""
    gpu_mb = gpu_memory.memory_of_this_gpu_mb()
    if gpu_mb is None:
        return ""
    problem = gpu_memory.warning(gpu_memory.fullest_gpu(args, ModelFiles.of(args)), gpu_mb)
    return "" if problem is None else f"warning: {problem}\n"


def _key_file(keys_file: str | None) -> str:
    """The line with the path of the API keys, a new file if there is none; "" without keys."""
    if keys_file is None:
        return ""
    path = resolve_path(keys_file)
    made = create_key_file(path)
    return f"  API keys   {path}{' (made now, with one key)' if made else ''}\n"


def _only_on_a_cluster(path: Path) -> list[str]:
    """Parts of a config that `serve run` and `serve deploy` apply and this command does not."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    if len(config["applications"]) != 1:
        return ["this command runs one application; use `serve run`"]
    extra = {"deployments", "runtime_env"} & set(config["applications"][0])
    return [f"applications[].{name} is for `serve run` and `serve deploy`" for name in extra]


def _free_port(host: str, wanted: int) -> int:
    """``wanted`` if nothing listens there, else one that the system gives."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError(f"no free port on {host}")


def _failures() -> list[str]:
    """The deployments that did not start, each with the exception that its replica raised."""
    if not ray.is_initialized():
        return []
    return [
        f"{name}: {root_cause(deployment.message)}"
        for application in serve.status().applications.values()
        for name, deployment in application.deployments.items()
        if deployment.status == DeploymentStatus.DEPLOY_FAILED
    ]


def root_cause(message: str) -> str:
    """The exception and its message, in one line, of the traceback at the end of ``message``."""
    lines = message.splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    after_frame = dropwhile(
        lambda line: line.startswith(" "), lines[frames[-1] :] if frames else lines
    )
    return " ".join(" ".join(after_frame).split())


def _stop(application: str, args: SpeechArgs) -> None:
    """Drain the application, then stop the cluster; a signal ends the drain."""
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_drain(application, args))
    finally:
        _end_cluster()


def _end_cluster() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        _stop_proxies()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    ray.shutdown()


async def _drain(application: str, args: SpeechArgs) -> None:
    """Let streams and requests end, and the jobs be finished or released, in bounded time."""
    bounds_s = {"Ingress": args.ingress.lifecycle.drain_timeout_s}
    if args.jobs is not None:
        bounds_s["JobRunner"] = args.jobs.lifecycle.drain_timeout_s
    await asyncio.gather(
        *(
            drain_deployment(serve.get_deployment_handle(name, application), bound_s)
            for name, bound_s in bounds_s.items()
        )
    )


async def drain_deployment(handle: DeploymentHandle[Any], bound_s: float) -> None:
    """Drain all replicas of a deployment; what fails, or takes too long, goes to stderr."""
    failed: list[Exception] = []
    try:
        async with asyncio.timeout(bound_s + DRAIN_SLACK_S):
            for _ in range(2):  # the second time those that autoscaling added meanwhile
                drained = await handle.broadcast("drain").results_async(return_exceptions=True)
                failed += [result for result in drained if isinstance(result, Exception)]
    except DeploymentUnavailableError:
        return  # it has no replica
    except (RayError, TimeoutError) as error:
        failed.append(error)
    finally:
        await handle.shutdown_async()  # else it reports to the controller beyond the cluster's end
    for failure in failed:
        reason = root_cause(str(failure)) or "it took too long"
        sys.stderr.write(f"{handle.deployment_name} was not drained: {reason}\n")


def _stop_proxies() -> None:
    """Stop Serve until its proxies, which start processes of their own, have exited.

    What runs in the replicas by now is of no use to anybody, and ends with Ray. ``serve.shutdown``
    would wait in a call that ends with the death of the controller, which Ray reports as a failed
    task.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return
    deadline = time.monotonic() + STOP_S
    with contextlib.suppress(RayActorError, GetTimeoutError):
        ray.get(client._controller.graceful_shutdown.remote(wait=False), timeout=STOP_S)
    while _proxies_live():
        if time.monotonic() > deadline:
            sys.stderr.write(f"the proxies did not stop within {STOP_S:g} s\n")
            return
        time.sleep(0.1)


def _proxies_live() -> bool:
    actors = ray.util.list_named_actors(all_namespaces=True)
    return any(actor["name"].startswith(SERVE_PROXY_NAME) for actor in actors)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted, or for as long as the command of ``--then`` runs."""
    parser = argparse.ArgumentParser(prog="python -m graphs.launch", description=__doc__)
    parser.add_argument("config", type=Path, help="Serve config, for example configs/demo.yaml")
    parser.add_argument(
        "--num-cpus",
        type=int,
        default=max(PROCESSES, os.cpu_count() or 1),
        help=f"logical CPUs of this node (default: its cores, at least {PROCESSES})",
    )
    parser.add_argument(
        "--then", help="command to run once the graph is up, with SPEECHGRAPH_URL set; then stop"
    )
    options = parser.parse_args(arguments)
    found = problems(options.config) or _only_on_a_cluster(options.config)
    if found:
        sys.stderr.write("".join(f"{options.config}: {problem}\n" for problem in found))
        return 2
    # Validation has logged what it logs each time that the settings are read.
    legacy_environment.log.setLevel(logging.ERROR)
    _fit_haproxy()
    started = time.monotonic()
    stop = _end_cluster
    try:
        config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
        args = SpeechArgs(**config["applications"][0]["args"])
        sys.stderr.write(_gpu_warning(args))
        keys = _key_file(args.ingress.keys_file)
        service, dashboard = start(config, args, options.num_cpus)
        name = config["applications"][0]["name"]
        stop = partial(_stop, name, args)
        # A service manager stops its children with SIGTERM: exit as on Ctrl-C, not as Ray does. A
        # shell script starts its background processes with SIGINT ignored.
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler)
        rows = asyncio.run(device_table.loaded_models(name, args))
        sys.stdout.write(
            f"speechgraph is up after {time.monotonic() - started:.1f} s\n"
            f"  service    {service}  (API pages: {service}/docs)\n"
            f"  dashboard  {dashboard}\n{keys}"
            f"{device_table.table(rows)}"
        )
        sys.stdout.flush()
        if options.then:
            environment = {**os.environ, "SPEECHGRAPH_URL": service}
            return subprocess.call(shlex.split(options.then), env=environment)
        signal.pause()
    # The latter is what Serve raises when a replica cannot start.
    except (InvalidArguments, RuntimeError) as error:
        reasons = _failures() or [str(error)]
        sys.stderr.write("".join(f"the graph did not come up: {reason}\n" for reason in reasons))
        return 1
    except KeyboardInterrupt:
        sys.stdout.write("stopping; once more to stop at once\n")
        sys.stdout.flush()
    finally:
        if ray.is_initialized():
            stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
