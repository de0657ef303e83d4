"""TCP connections between ranks. In: a rank of a run. Out: its connection with rank 0, or rank 0's with
all."""

import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from ivgr.core.errors import UserError, say

OPENING = 120.0
# Of a connection that may be a stranger's.
HELLO = 5.0


def open_links(rank: int, ranks: int, broadcast: Callable, timeout: int) -> dict[int, socket.socket]:
    """Rank 0's link with each other rank, or this rank's with rank 0, by rank; all ranks must call it. A
    link whose other machine is out of reach for `timeout` seconds ends. UserError if there is no link."""
    links = _call(rank, broadcast) if rank else _take_calls(ranks, broadcast)
    for link in links.values():
        _ask_whether_there(link, timeout)
    return links


def _call(rank: int, broadcast: Callable) -> dict[int, socket.socket]:
    """The link with rank 0."""
    host = os.environ["MASTER_ADDR"]
    port, token = broadcast(None)
    try:
        link = socket.create_connection((host, port), OPENING)
        link.sendall(f"{token} {rank}\n".encode())
    except OSError as error:
        raise UserError(
            f"rank {rank} cannot reach rank 0 at {host}:{port}: {say(error)}; let the machines of a run "
            "connect to each other"
        ) from error
    return {0: link}


def _take_calls(ranks: int, broadcast: Callable) -> dict[int, socket.socket]:
    """The links with the other ranks."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(("", 0), family=family, backlog=ranks, dualstack_ipv6=both) as server:
        token = secrets.token_hex()
        broadcast((server.getsockname()[1], token))
        return _accept(server, token, ranks)


def _accept(server: socket.socket, token: str, ranks: int) -> dict[int, socket.socket]:
    """The links of the others, each of which begins with the token; whoever else calls is sent away."""
    links, end_of_time = {}, time.monotonic() + OPENING
    while len(links) < ranks - 1:
        server.settimeout(max(end_of_time - time.monotonic(), 0.001))
        try:
            link, _ = server.accept()
        except TimeoutError:
            missing = ", ".join(str(rank) for rank in range(1, ranks) if rank not in links)
            raise UserError(f"no word from rank {missing} within {OPENING:g} s; see its log") from None
        link.settimeout(HELLO)
        with suppress(OSError, ValueError), link.makefile("rb", buffering=0) as hello:
            said, rank = hello.readline(200).decode().split()
            if secrets.compare_digest(said, token):
                links[int(rank)] = link
    return links


def _ask_whether_there(link: socket.socket, seconds: int) -> None:
    """A link that is silent, or whose news are not taken, ends after `seconds`. Where the system has not
    these options, it ends with the process alone."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": seconds // 2, "TCP_KEEPINTVL": seconds // 10, "TCP_KEEPCNT": 5}
    for name, value in (options | {"TCP_USER_TIMEOUT": 1000 * seconds}).items():
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
