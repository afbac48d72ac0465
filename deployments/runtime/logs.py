"""Sends the log records of this project to Serve's log files.

Serve configures one logger of a process, ``ray.serve``: its level, the replica's log file, the
encoding. Modules of this project log to ``speechgraph.<module>``; here these records are passed to
the handlers of ``ray.serve``, together with the ids of the session and the job that they are about.
Serve itself adds the request, the deployment and the replica. What Serve logs of expected errors is
shortened to one line.
"""

import copy
import logging
import sys
from typing import TextIO

from ray._common.formatters import JSONFormatter
from ray.serve.schema import EncodingType, LoggingConfig

from api.errors import STATUS
from api.request_id import NO_REQUEST, request_id
from speech.errors import SpeechError
from speech.log_context import job_id, session_id

LOGGER = "speechgraph"
"""Parent of the loggers of all modules."""
_SERVE_LOGGER = "ray.serve"
_TEXT = "%(levelname)s %(asctime)s %(name)s -- %(message)s"


def connect() -> None:
    """Pass the records of this process to Serve's logger; a second call changes nothing."""
    logger = logging.getLogger(LOGGER)
    if not logger.handlers:
        _handle(logger, _ServeHandler(), logging.DEBUG)
        logging.getLogger(_SERVE_LOGGER).addFilter(_expected_in_one_line)


def write_to_stderr(config: LoggingConfig) -> None:
    """For a process that only starts Serve: its records go to stderr, of Serve's the warnings."""
    logging.getLogger(_SERVE_LOGGER).setLevel(logging.WARNING)
    handler = _StderrHandler(as_json=config.encoding == EncodingType.JSON)
    _handle(logging.getLogger(LOGGER), handler, config.log_level)


def _handle(logger: logging.Logger, handler: logging.Handler, level: int | str) -> None:
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False  # a root handler of some library would write every record again


class _ServeHandler(logging.Handler):
    """Looks at Serve's logger for each record: Serve configures it late, and may do so again."""

    def emit(self, record: logging.LogRecord) -> None:
        serve_logger = logging.getLogger(_SERVE_LOGGER)
        if serve_logger.isEnabledFor(record.levelno):
            serve_logger.handle(_with_ids(record, as_json=_writes_json(serve_logger)))


def _expected_in_one_line(record: logging.LogRecord) -> bool:
    """Make one line of Serve's record of a call that failed with an expected error.

    Serve logs every exception of a call as an error with its traceback. Those that the request
    causes, such as a file that cannot be decoded, become INFO; those of the state of the service,
    such as a full queue, WARNING. A model that failed keeps its traceback.
    """
    error = record.exc_info[1] if record.exc_info else None
    error = getattr(error, "cause", None) or error  # out of the wrapper of Ray
    if not isinstance(error, SpeechError) or STATUS[error.code] == 500:
        return True
    record.levelno = logging.INFO if STATUS[error.code] < 500 else logging.WARNING
    record.levelname = logging.getLevelName(record.levelno)
    record.msg = f"{record.getMessage()} {error.code}: {error}"
    record.args = ()
    record.exc_info = record.exc_text = None
    return logging.getLogger(_SERVE_LOGGER).isEnabledFor(record.levelno)


class _StderrHandler(logging.StreamHandler[TextIO]):
    def __init__(self, as_json: bool) -> None:
        super().__init__(sys.stderr)
        self._as_json = as_json
        self.setFormatter(JSONFormatter() if as_json else logging.Formatter(_TEXT))

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(_with_ids(record, self._as_json))


def _writes_json(logger: logging.Logger) -> bool:
    # The log file is behind a MemoryHandler.
    formatters = [getattr(handler, "target", handler).formatter for handler in logger.handlers]
    return any(isinstance(formatter, JSONFormatter) for formatter in formatters)


def _with_ids(record: logging.LogRecord, as_json: bool) -> logging.LogRecord:
    """A copy of the record with the ids: attributes, and part of the message unless it is JSON.

    Serve's text encoding writes no attribute but the request id.
    """
    # Ray has an attribute "job_id" of its own in every record.
    given = {"session": session_id.get(), "job": job_id.get()}
    ids = {name: value for name, value in given.items() if value is not None}
    record = copy.copy(record)
    record.__dict__.update(ids)
    if request_id.get() != NO_REQUEST:
        record.request_id = request_id.get()
    if ids and not as_json:
        place = " ".join(f"{name}={value}" for name, value in ids.items())
        record.msg, record.args = f"[{place}] {record.getMessage()}", ()
    return record
