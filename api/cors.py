"""Which pages of other origins may call this service from a browser."""

import re
from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from api.openai.responses import WARNINGS_HEADER
from api.request_id import HEADER

ANY_PORT = ":*"


def cors(origins: Sequence[str]) -> list[Middleware]:
    """The middleware for pages of ``origins``; see ``cors_origins`` of the settings.

    It has to be outside of the check of keys: browsers ask for permission without a key, and show
    an error to a page only with these headers.
    """
    if not origins:
        return []
    patterns = (
        re.escape(origin.removesuffix(ANY_PORT)) + (r"(:\d+)?" if origin.endswith(ANY_PORT) else "")
        for origin in origins
    )
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=["*"] if "*" in origins else (),
            allow_origin_regex="|".join(patterns),
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=(HEADER, WARNINGS_HEADER, "Retry-After"),
        )
    ]
