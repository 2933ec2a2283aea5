"""urllib watched: whoever uses it while the block runs, neither waits without end nor crawls on for hours.

    with watched_urllib(timeout=10, slowest=200_000, seconds=20):
        download_url(url, folder)  # of a library that sets no limits

A time limit alone does not do: a server that sends a byte every second never reaches it.
"""

import contextlib
import functools
import http.client
import time
import urllib.request
from collections.abc import Iterator


class TooSlow(Exception):  # not an OSError, at which torchvision would ask again
    """What came, came at `rate`, in bytes a second, which is below the limit."""

    def __init__(self, rate: float) -> None:
        super().__init__(f'{rate / 1000:.0f} kB/s')
        self.rate = rate


@contextlib.contextmanager
def watched_urllib(timeout: float, slowest: float, seconds: float) -> Iterator[None]:
    """While the block runs, `urllib.request.urlopen` keeps limits.

    Args:
        timeout: seconds that may pass without a byte, or an OSError is raised.
        slowest, seconds: bytes a second that must come, on average over so many seconds, or `TooSlow` is raised.
    """
    urllib.request.install_opener(urllib.request.build_opener(_Watch(timeout, slowest, seconds)))
    try:
        yield
    finally:
        urllib.request.install_opener(None)


class _Watch(urllib.request.BaseHandler):
    """Sees every request before it is sent, and every response before it is read."""

    def __init__(self, timeout: float, slowest: float, seconds: float) -> None:
        self.timeout = timeout
        self.slowest = slowest
        self.seconds = seconds
        self.received = 0
        self.since = time.monotonic()

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        request.timeout = self.timeout
        return request

    def http_response(self, _: urllib.request.Request, response: http.client.HTTPResponse) -> http.client.HTTPResponse:
        response.read = functools.partial(self.read, response)
        return response

    https_request, https_response = http_request, http_response

    def read(self, response: http.client.HTTPResponse, amount: int = -1) -> bytes:
        """What has come of the response, at most `amount` bytes: not all of them, for which a trickle takes hours."""
        received = response.read1(amount)
        self.received += len(received)
        passed = time.monotonic() - self.since
        if passed >= self.seconds:
            if self.received / passed < self.slowest:
                raise TooSlow(self.received / passed)
            self.received, self.since = 0, time.monotonic()
        return received
