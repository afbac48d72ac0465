"""Webhooks: a signed POST when a job has ended, after the Standard Webhooks specification.

Receivers verify with any library of it (https://www.standardwebhooks.com).
"""

import asyncio
import base64
import hashlib
import hmac
import time

from pydantic_core import to_json

from configs.signing_key import signing_key
from infra.guarded_http import GuardedHttp, parse_url
from speech.errors import InvalidRequest
from speech.jobs.states import Job


def signature(secret: str, id: str, timestamp: int, body: bytes) -> str:
    """The value of the header ``webhook-signature``."""
    signed = f"{id}.{timestamp}.".encode() + body
    return (
        "v1," + base64.b64encode(hmac.digest(signing_key(secret), signed, hashlib.sha256)).decode()
    )


class Webhooks:
    """Implements :class:`speech.jobs.job_worker.Webhooks`. Redirects are not followed.

    The id of the message is that of the job, so a receiver recognises a repeated delivery.
    """

    def __init__(self, secret: str, timeout_s: float, http: GuardedHttp) -> None:
        self.timeout_s = timeout_s
        self._secret = secret
        self._http = http

    def check(self, url: str) -> None:
        """Raise InvalidRequest for a URL that would never be called."""
        try:
            self._http.check(url)
        except InvalidRequest as error:
            raise InvalidRequest(f"webhook_url: {error.message}") from None

    async def deliver(self, job: Job) -> None:
        """POST the state of the job, without its result.

        Raises InvalidRequest, ConnectionError or TimeoutError unless the receiver responds with a
        status of 2xx within ``timeout_s``.
        """
        assert job.webhook_url is not None, "only a job with a URL is due"
        now = int(time.time())
        body = to_json(
            {
                "type": f"job.{job.state}",
                "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
                "data": {
                    "status": job.state,
                    "job_id": job.id,
                    "error": job.error if job.state == "failed" else None,
                },
            }
        )
        headers = (
            ("content-type", "application/json"),
            ("webhook-id", job.id),
            ("webhook-timestamp", str(now)),
            ("webhook-signature", signature(self._secret, job.id, now, body)),
        )
        url = parse_url(job.webhook_url)
        # The body of the response is not read: it may be endless.
        async with (
            asyncio.timeout(self.timeout_s),
            self._http.request("POST", url, headers, body) as response,
        ):
            if not 200 <= response.status < 300:
                raise ConnectionError(f"status {response.status}")
