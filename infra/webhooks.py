"""Webhooks: a signed POST when a job has ended, after the Standard Webhooks specification.

Receivers verify with any library of it (https://www.standardwebhooks.com).
"""

import asyncio
import base64
import hashlib
import hmac
import time

import httpx
from pydantic_core import to_json

from infra.url_check import PublicOnly, check_url
from speech.jobs.states import Job

SECRET_PREFIX = "whsec_"
"""Before a secret that is written as base64; any other secret is taken as its characters."""


def signature(secret: str, id: str, timestamp: int, body: bytes) -> str:
    """What ``webhook-signature`` says."""
    if secret.startswith(SECRET_PREFIX):
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    else:
        key = secret.encode()
    signed = f"{id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


class Webhooks:
    """Implements :class:`speech.jobs.job_worker.Webhooks`. Redirects are not followed.

    The id of the message is that of the job, so a receiver knows a delivery that it has seen.
    """

    def __init__(self, secret: str, timeout_s: float, allow_private: bool) -> None:
        self.timeout_s = timeout_s
        self._secret = secret
        self._allow_private = allow_private

    def check(self, url: str) -> None:
        """Raise InvalidRequest for a URL that would never be called."""
        check_url(url, allow_private=self._allow_private)

    async def deliver(self, job: Job) -> None:
        """POST what became of the job; the result is left to be fetched.

        Raises httpx.HTTPError, TimeoutError and what else a URL may lead to unless there was an
        answer of success within ``timeout_s``.
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
        headers = {
            "content-type": "application/json",
            "webhook-id": job.id,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(self._secret, job.id, now, body),
        }
        transport = httpx.AsyncHTTPTransport() if self._allow_private else PublicOnly()
        async with (
            asyncio.timeout(self.timeout_s),
            httpx.AsyncClient(transport=transport, trust_env=False) as client,
            # The body of the answer is of no interest, and may be endless.
            client.stream("POST", job.webhook_url, content=body, headers=headers) as answer,
        ):
            if not answer.is_success:
                raise httpx.HTTPError(f"answered with status {answer.status_code}")
