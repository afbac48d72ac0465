"""Records of this project reach the handlers of Serve's logger, with the ids they are about."""

import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray._common.formatters import JSONFormatter
from ray.exceptions import RayTaskError
from ray.serve._private.logging_utils import ServeFormatter
from ray.serve.schema import LoggingConfig

from api.errors import STATUS
from api.request_id import request_id
from deployments.runtime import logs
from deployments.runtime.worker import Worker
from speech.errors import EngineFailed, Overloaded, SpeechError, UnsupportedAudio
from speech.log_context import about_job, job_id, session_id

ROOMS = ["speech", "engines", "infra", "api", "configs", "deployments", "graphs"]
logger = logging.getLogger("speechgraph.a.module")


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Other tests get the loggers back as they were."""
    touched = [logging.getLogger(name) for name in ("speechgraph", "ray.serve")]
    before = [(each.handlers[:], each.level, each.propagate, each.filters[:]) for each in touched]
    yield
    for each, (handlers, level, propagate, filters) in zip(touched, before, strict=True):
        each.handlers, each.propagate, each.filters = handlers, propagate, filters
        each.setLevel(level)


@pytest.fixture
def written() -> Callable[..., Callable[[], str]]:
    """Configures Serve's logger as Serve does in a replica; gives what it wrote since."""

    def configure(formatter: logging.Formatter, level: str = "INFO") -> Callable[[], str]:
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        serve_logger = logging.getLogger("ray.serve")
        serve_logger.handlers = [handler]
        serve_logger.setLevel(level)
        logging.getLogger("speechgraph").handlers = []
        logs.connect()
        return stream.getvalue

    return configure


TEXT = ServeFormatter("app_Whisper", "replica1")


def family(kind: type[SpeechError]) -> Iterator[type[SpeechError]]:
    """The class and all that derive from it, but those that Ray derives where a call failed."""
    yield kind
    for derived in kind.__subclasses__():
        if not issubclass(derived, RayTaskError):
            yield from family(derived)


EXPECTED = [
    kind
    for kind in family(SpeechError)
    # Ray derives a class of its own from each that crosses a process.
    if kind.__module__ == SpeechError.__module__ and STATUS[kind.code] != 500
]


def wrapped(error: SpeechError) -> Exception:
    """The error as Ray raises it where a call of another replica failed."""
    found = RayTaskError("transcribe", "Traceback …", error).as_instanceof_cause()
    assert isinstance(found, Exception)
    return found


def failed_call(error: Exception) -> None:
    """What Serve logs of a call that raised."""
    try:
        raise error
    except Exception:
        logging.getLogger("ray.serve").exception("Request failed.")


def test_a_text_line_names_the_request_the_session_and_the_job(written) -> None:
    text = written(TEXT)
    request_token, session_token = request_id.set("req-1"), session_id.set("live-2")
    try:
        with about_job("job-3"):
            logger.info("model %s is loaded", "m")
    finally:
        request_id.reset(request_token)
        session_id.reset(session_token)
    assert re.fullmatch(
        r"INFO \S+ \S+ app_Whisper replica1 req-1 "
        r"-- \[session=live-2 job=job-3\] model m is loaded\n",
        text(),
    )


def test_a_json_record_has_the_ids_as_fields_and_the_message_as_it_is(written) -> None:
    text = written(JSONFormatter())
    with about_job("job-3"):
        logger.warning("model %s is slow", "m")
    record = json.loads(text())
    assert (record["message"], record["job"]) == ("model m is slow", "job-3")
    assert record["levelname"] == "WARNING"
    assert "session" not in record
    assert "request_id" not in record


@pytest.mark.parametrize("formatter", [TEXT, JSONFormatter()], ids=["TEXT", "JSON"])
def test_an_error_with_its_traceback_is_one_record(written, formatter) -> None:
    text = written(formatter)
    try:
        raise ValueError("broken weights")
    except ValueError:
        logger.exception("the model does not load")
    assert text().count("the model does not load") == 1
    assert "ValueError: broken weights" in text()
    if isinstance(formatter, JSONFormatter):
        assert "Traceback" in json.loads(text())["exc_text"]


def test_the_level_of_serve_counts_also_when_it_changes(written) -> None:
    text = written(TEXT, level="WARNING")
    logger.info("not this")
    logger.warning("but this")
    logging.getLogger("ray.serve").setLevel("DEBUG")
    logger.debug("and this")
    assert [line.split(" -- ")[1] for line in text().splitlines()] == ["but this", "and this"]


@pytest.mark.parametrize("wrap", [lambda error: error, wrapped], ids=["as raised", "by Ray"])
@pytest.mark.parametrize("formatter", [TEXT, JSONFormatter()], ids=["TEXT", "JSON"])
@pytest.mark.parametrize("kind", EXPECTED)
def test_an_expected_error_of_a_call_is_one_line_without_traceback(
    written, formatter, kind: type[SpeechError], wrap: Callable[[SpeechError], Exception]
) -> None:
    text = written(formatter)
    failed_call(wrap(kind("the file is\nno audio")))
    (line,) = text().splitlines()
    assert f"Request failed. {kind.code}: the file is no audio" in line
    assert (" INFO " in f" {line}" or '"INFO"' in line) == (STATUS[kind.code] < 500)
    assert "Traceback" not in line
    assert "ERROR" not in line


@pytest.mark.parametrize("error", [EngineFailed("out of memory"), ValueError("a bug")])
def test_what_is_not_expected_keeps_its_traceback(written, error: Exception) -> None:
    text = written(TEXT)
    failed_call(error)
    assert text().startswith("ERROR ")
    assert "Traceback" in text()


def test_the_level_of_serve_counts_for_expected_errors(written) -> None:
    text = written(TEXT, level="WARNING")
    failed_call(UnsupportedAudio("no audio"))
    failed_call(Overloaded("the queue is full"))
    (line,) = text().splitlines()
    assert line.startswith("WARNING ")


def test_connecting_twice_writes_a_record_once(written) -> None:
    text = written(TEXT)
    logs.connect()
    logger.error("once")
    assert text().count("once") == 1


def test_a_root_handler_does_not_write_the_records_again(written, caplog) -> None:
    written(TEXT)
    logger.error("once")
    assert caplog.text == ""


@pytest.mark.parametrize("encoding", ["TEXT", "JSON"])
def test_a_process_outside_serve_writes_to_stderr(encoding, capsys) -> None:
    logs.write_to_stderr(LoggingConfig(encoding=encoding, log_level="INFO"))
    logger.debug("not this")
    with about_job("job-3"):
        logger.info("model %s is loaded", "m")
    line = capsys.readouterr().err
    if encoding == "JSON":
        assert (json.loads(line)["message"], json.loads(line)["job"]) == (
            "model m is loaded",
            "job-3",
        )
    else:
        assert line.startswith("INFO ")
        assert line.endswith("speechgraph.a.module -- [job=job-3] model m is loaded\n")


@pytest.mark.parametrize("job", [None, "job-3"])
async def test_the_thread_of_a_call_has_the_ids_of_the_call(job: str | None) -> None:
    token = session_id.set("live-2")
    try:
        seen = await Worker(1).run(lambda call: (session_id.get(), job_id.get()), job)
    finally:
        session_id.reset(token)
    assert seen == ("live-2", job)


def test_every_logger_of_the_rooms_is_below_the_common_one(repository: Path) -> None:
    sources = [path for room in ROOMS for path in (repository / room).rglob("*.py")]
    calls = [
        (path.relative_to(repository), call)
        for path in sources
        for call in re.findall(r"getLogger\((.*?)\)", path.read_text(encoding="utf-8"))
        if path.name != "logs.py"
    ]
    assert calls
    assert {call for _, call in calls} == {'f"speechgraph.{__name__}"'}, calls
