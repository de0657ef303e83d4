"""Exchanges with a server that need not be trusted: a redirect to another origin is not followed, and
of a reply no more than a bound is read, neither from the network nor out of what is packed."""

import zlib
from types import ModuleType
from typing import Any

# Bytes. A reply of a hundred thousand tokens has about one million.
LONGEST_REPLY = 4 * 2**20
MOST_REDIRECTS = 5
REFUSED = "ivgr.refused"
# What no longer holds for a body that has been read and unpacked.
_OF_THE_TRANSFER = ("content-encoding", "content-length", "transfer-encoding")


def bounded_client(openai: ModuleType) -> Any:
    """An asynchronous HTTP client for `openai`, whose responses are read whole within the bounds.

    A redirect to another origin is the response itself, with an empty body. So is what is too long or
    packed in a form that was not asked for; `extensions[REFUSED]` says why.
    """

    class BoundedClient(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, *, stream: bool = False, **options) -> Any:
            options["follow_redirects"] = False
            for _ in range(MOST_REDIRECTS):
                response = await super().send(request, stream=True, **options)
                onward = response.next_request
                if onward is None or origin_of(onward.url) != origin_of(request.url):
                    break
                await response.aclose()
                request = onward
            try:
                return await _read(response)
            finally:
                await response.aclose()

    return BoundedClient(headers={"Accept-Encoding": "identity"})


def origin_of(url: Any) -> tuple:
    return url.scheme, url.host, url.port


async def _read(response: Any) -> Any:
    """The response with its body, without what says how that was transferred."""
    body, refused = (b"", None) if not response.is_success else await _read_body(response)
    headers = response.headers.multi_items()
    return type(response)(
        response.status_code,
        headers=[(name, value) for name, value in headers if name.lower() not in _OF_THE_TRANSFER],
        content=body,
        request=response.request,
        extensions=response.extensions | ({REFUSED: refused} if refused else {}),
    )


async def _read_body(response: Any) -> tuple[bytes, str | None]:
    """(the body, None), or (nothing, why it is refused)."""
    packing = response.headers.get("content-encoding", "identity").strip().lower()
    if packing not in ("", "identity", "gzip", "deflate"):
        return b"", f"a reply packed by {packing[:20]!r}, which was not asked for"
    unpack = None if packing in ("", "identity") else zlib.decompressobj(zlib.MAX_WBITS | 32).decompress
    body, received = bytearray(), 0
    async for chunk in response.aiter_raw():
        received += len(chunk)
        try:
            body += unpack(chunk, LONGEST_REPLY + 1 - len(body)) if unpack else chunk
        except zlib.error:
            return b"", f"a reply that is not {packing}, as it says"
        if max(received, len(body)) > LONGEST_REPLY:
            return b"", f"a reply of more than {LONGEST_REPLY} bytes"
    return bytes(body), None
