"""`serve run` in a cluster that runs the application already.

It joins any cluster that it finds and replaces what runs there, and to interrupt it stops Serve. It
hands Serve the same request as `serve deploy`; only the driver that it starts differs.
"""

import logging
import re

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus
from ray.util.state import list_jobs

logger = logging.getLogger(f"speechgraph.{__name__}")

SUBMITTED_WITHIN_S = 10.0
"""Longest time from the start of `serve run` to its request."""
_MOST_JOBS = 10_000
_REPLICA = re.compile(r"SERVE_REPLICA::(?P<application>.+)#(?P<deployment>[^#]+)#[^#]+")


def running_replicas() -> set[tuple[str, str]]:
    """The names of the application and the deployment of every replica in the cluster."""
    return {
        (replica["application"], replica["deployment"])
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if (replica := _REPLICA.fullmatch(actor["name"]))
    }


def refuse_to_replace() -> None:
    """Raise RayServeException if `serve run` would replace an application of Serve that runs.

    To be called where Serve builds an application.
    """
    running = {application for application, _ in running_replicas()}
    replaced = {
        name: application.last_deployed_time_s
        for name, application in serve.status().applications.items()
        if name in running and application.status == ApplicationStatus.DEPLOYING
    }
    if not replaced:
        return
    try:
        # Without an address it asks any cluster of this machine.
        address = ray.get_runtime_context().gcs_address
        drivers = list_jobs(address, limit=_MOST_JOBS, detail=True)
    except Exception as error:  # without a dashboard there is no list, and no `serve deploy`
        logger.warning("the drivers of the cluster cannot be listed: %s", error)
        return
    for name, deployed_at_s in replaced.items():
        for driver in drivers:
            before_s = deployed_at_s - (driver.start_time or 0) / 1000
            if "serve run" in driver.entrypoint and 0 <= before_s <= SUBMITTED_WITHIN_S:
                pid = driver.driver_info.pid if driver.driver_info else "PID"
                raise RayServeException(
                    f"`serve run` has joined a cluster that runs {name!r} already, which stays as "
                    "it is: update it with `serve deploy`, or start a cluster of your own with "
                    "`serve run --address local`. Ctrl-C would stop Serve and all that it runs; "
                    f"end `serve run` with `kill {pid}`."
                )
