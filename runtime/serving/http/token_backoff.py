"""Growing delays of the answers to wrong tokens, by the network of the client.

A right token is never delayed: otherwise one client could lock out all others behind its proxy.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from resdeploy.runtime.serving.request_errors import TooManyRequests

# The first wrong tokens are answered at once; the delay doubles with each further one.
FREE_ATTEMPTS = 5
FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
# Time without a wrong token after which a network starts again.
FORGET_SECONDS = 60.0
MAX_NETWORKS = 4096  # about 1 MB; the network without a wrong token for longest is forgotten
# Delayed answers of all networks, each of which holds a connection; further ones are refused.
MAX_DELAYED = 32


class TokenBackoff:
    """The number of recent wrong tokens of each network."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._delayed = 0

    async def wrong_token(self, network: str) -> None:
        """Count a wrong token of `network`, and wait before its answer.

        Raises:
            TooManyRequests: Too many answers are delayed already.
        """
        now = asyncio.get_running_loop().time()
        count, last = self._failures.pop(network, (0, now))
        count = count + 1 if now - last < FORGET_SECONDS else 1
        self._failures[network] = (count, now)
        if len(self._failures) > MAX_NETWORKS:
            self._failures.popitem(last=False)
        if count <= FREE_ATTEMPTS:
            return
        if self._delayed >= MAX_DELAYED:
            raise TooManyRequests("too many wrong tokens")
        self._delayed += 1
        try:
            doublings = min(count - FREE_ATTEMPTS - 1, 10)
            await asyncio.sleep(min(LONGEST_DELAY, FIRST_DELAY * 2**doublings))
        finally:
            self._delayed -= 1
