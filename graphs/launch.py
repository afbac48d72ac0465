"""`python -m graphs.launch CONFIG`: a Ray cluster in this process, the graph on it, the dashboard.

For a laptop or a single box. On a cluster, `serve deploy CONFIG` does the same.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.settings import METRICS_ENVIRONMENT

# Ray reads these when it is imported. Token authentication would write a token file into the home
# directory; on a laptop the dashboard listens on loopback only.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.update(METRICS_ENVIRONMENT)

import ray
import yaml
from ray import serve
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from ray.serve.schema import ApplicationStatus

from graphs.validate import problems

POLL_S = 0.2
OBJECT_STORE_BYTES = 512 * 1024**2


class StartFailed(Exception):
    """The graph did not come up; the message says which application and why."""


def start(config: dict[str, Any], num_cpus: int, timeout_s: float) -> tuple[str, str]:
    """Start Ray and deploy a validated config; the addresses of the service and the dashboard."""
    context = ray.init(
        num_cpus=num_cpus,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=_free_port("127.0.0.1", 8265),
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
    )
    dashboard = f"http://{context.dashboard_url}"
    http = config.setdefault("http_options", {})
    http["port"] = _free_port(http.get("host", "0.0.0.0"), http.get("port", 8000))
    ServeSubmissionClient(dashboard).deploy_applications(config)
    _wait_until_running(timeout_s)
    host = http.get("host", "0.0.0.0").replace("0.0.0.0", "127.0.0.1")
    return f"http://{host}:{http['port']}", dashboard


def _wait_until_running(timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        applications = serve.status().applications
        for name, application in applications.items():
            if application.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
                raise StartFailed(f"application {name}: {application.message}")
        if applications and all(
            a.status == ApplicationStatus.RUNNING for a in applications.values()
        ):
            return
        time.sleep(POLL_S)
    raise StartFailed(f"the graph is not up after {timeout_s:g} s: {serve.status().applications}")


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted, or for as long as the command of ``--then`` runs."""
    parser = argparse.ArgumentParser(prog="python -m graphs.launch", description=__doc__)
    parser.add_argument("config", type=Path, help="Serve config, for example configs/demo.yaml")
    parser.add_argument(
        "--num-cpus",
        type=int,
        default=max(2, os.cpu_count() or 1),
        help="logical CPUs of this node (default: its cores)",
    )
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds to come up")
    parser.add_argument(
        "--then", help="command to run once the graph is up, with SPEECHGRAPH_URL set; then stop"
    )
    options = parser.parse_args(arguments)
    found = problems(options.config)
    if found:
        sys.stderr.write("".join(f"{options.config}: {problem}\n" for problem in found))
        return 2
    # A service manager stops its children with SIGTERM: leave as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.monotonic()
    try:
        config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
        service, dashboard = start(config, options.num_cpus, options.timeout)
        sys.stdout.write(
            f"speechgraph is up after {time.monotonic() - started:.1f} s\n"
            f"  service    {service}  (API pages: {service}/docs)\n"
            f"  dashboard  {dashboard}\n"
        )
        sys.stdout.flush()
        if options.then:
            environment = {**os.environ, "SPEECHGRAPH_URL": service}
            return subprocess.call(shlex.split(options.then), env=environment)
        signal.pause()
    except StartFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stdout.write("stopping\n")
    finally:
        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
