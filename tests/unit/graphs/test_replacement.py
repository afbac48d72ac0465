"""`serve run` never replaces an application that runs; `serve deploy` does."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from graphs import replacement
from graphs.replacement import SUBMITTED_WITHIN_S, refuse_to_replace

NOW_S = 1_795_741_567.0
RUN = "/opt/venv/bin/python /opt/venv/bin/serve run configs/demo.yaml"
REPLICA = "SERVE_REPLICA::speech#Ingress#9szstwjh"


def driver(entrypoint: str, seconds_ago: float) -> SimpleNamespace:
    return SimpleNamespace(
        entrypoint=entrypoint,
        start_time=1000 * (NOW_S - seconds_ago),
        driver_info=SimpleNamespace(pid="4711"),
    )


@pytest.fixture
def building(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this process build an application that was deployed just now."""

    def build(actors: list[str], drivers: Any, status: str = ApplicationStatus.DEPLOYING) -> None:
        application = SimpleNamespace(status=status, last_deployed_time_s=NOW_S)
        serve_status = SimpleNamespace(applications={"speech": application})

        def list_jobs(address: str, **_: Any) -> list[SimpleNamespace]:
            assert address == "192.0.2.2:6379", "of this cluster"
            if isinstance(drivers, Exception):
                raise drivers
            return list(drivers)

        named = [{"namespace": "serve", "name": name} for name in actors]
        monkeypatch.setattr(replacement.ray.util, "list_named_actors", lambda **_: named)
        monkeypatch.setattr(replacement.serve, "status", lambda: serve_status)
        context = SimpleNamespace(gcs_address="192.0.2.2:6379")
        monkeypatch.setattr(replacement.ray, "get_runtime_context", lambda: context)
        monkeypatch.setattr(replacement, "list_jobs", list_jobs)

    return build


def test_serve_run_is_refused_where_the_application_runs(building: Callable[..., None]) -> None:
    building([REPLICA], [driver("python worker.py", 1), driver(RUN, 0.2)])
    with pytest.raises(RayServeException, match=r"runs 'speech' already.*`kill 4711`") as raised:
        refuse_to_replace()
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("actors", "drivers"),
    [
        ([REPLICA], []),
        ([REPLICA], [driver("python notebook.py", 0.2)]),
        ([REPLICA], [driver(RUN, SUBMITTED_WITHIN_S + 1)]),
        ([REPLICA], [driver(RUN, -1)]),
        (["SERVE_CONTROLLER_ACTOR", "SERVE_REPLICA::other#A#b"], [driver(RUN, 0.2)]),
        ([REPLICA], ConnectionError("no dashboard")),
    ],
    ids=["deploy", "another driver", "long since", "later", "nothing replaced", "no list"],
)
def test_everything_else_is_built(
    building: Callable[..., None], actors: list[str], drivers: Any
) -> None:
    building(actors, drivers)
    refuse_to_replace()


def test_an_application_beside_the_one_that_is_built_is_no_matter(
    building: Callable[..., None],
) -> None:
    building([REPLICA], [driver(RUN, 0.2)], ApplicationStatus.RUNNING)
    refuse_to_replace()
