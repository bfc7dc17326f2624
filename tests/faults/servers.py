"""A cluster in the event loop of a test, with a proxy in front of each of its servers."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from protocol.addresses import split_address
from psserver.server import Server, ServerSettings
from tests.faults.proxy import Proxy

NOWHERE = "127.0.0.1:1"


@dataclass(frozen=True, slots=True)
class ProxiedCluster:
    """Servers, the coordinator first, and for each the proxy through which workers reach it."""

    servers: list[Server]
    proxies: list[Proxy]
    direct: str

    @property
    def address(self) -> str:
        """The coordinator's address, behind its proxy."""
        return self.proxies[0].address


@asynccontextmanager
async def proxied_cluster(shards: int, *, seed: int = 0, **settings: Any) -> AsyncIterator[ProxiedCluster]:
    """Start ``shards`` servers with these ``ServerSettings``, and proxies between them and their workers.

    The servers talk to one another directly.
    """
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy(NOWHERE, seed=seed + i)) for i in range(shards)]
        coordinator = Server(ServerSettings(port=0, shards=shards, **settings))
        servers = [coordinator]
        stack.push_async_callback(_stop, servers)
        direct = proxies[0].upstream = await coordinator.start()
        for proxy in proxies[1:]:
            server = Server(
                ServerSettings(
                    port=0, join=split_address(direct), advertise=split_address(proxy.address), **settings
                )
            )
            servers.append(server)
            proxy.upstream = await server.start()
        yield ProxiedCluster(servers, proxies, direct)


async def _stop(servers: list[Server]) -> None:
    for server in reversed(servers):
        await server.stop()
