"""The process's own log: what each line holds, as text or as JSON, on stderr.

A record whose argument is a mapping (`log.error("exchange %(exchange)s failed", {"exchange": id})`) has that mapping's
entries as fields of their own in JSON. Of an exception the types and the frames are told, never its message: that may
quote what a client wrote. Knows nothing of what is logged, nor of the sample log.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.settings import Settings

_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_QUIET: Final = ("alembic", "asyncio")  # what they say below a warning is about themselves
_encoder = msgspec.json.Encoder(enc_hook=str)


def set_up(settings: Settings, otherwise: str = "info") -> None:
    """Every line of this process, the server's and the libraries' too, in the format and at the level set.

    `otherwise` is the level where none is set.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if settings.log_format == "json" else Text(_TEXT))
    logging.basicConfig(level=(settings.log_level or otherwise).upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


class Text(logging.Formatter):
    """One line for people; an exception's frames below it."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is the base's
        return frames(ei[1])


class Json(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, the record's fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if isinstance(record.args, Mapping):
            line = {**record.args, **line}
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = frames(record.exc_info[1])
        return _encoder.encode(line).decode()


def frames(error: BaseException | None) -> str:
    """A traceback without the messages of its exceptions."""
    told: list[str] = []
    while error is not None:
        stack = "".join(traceback.format_tb(error.__traceback__)).rstrip()
        kind = type(error)
        told.append(f"Traceback (most recent call last):\n{stack}\n{kind.__module__}.{kind.__qualname__}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\ncaused\n\n".join(reversed(told))
