"""Who may talk to a service: pages of its own address, and those who know the token."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "handful_token"
"""Its value is a digest of the token, since some characters of tokens are not allowed in cookies."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "content-security-policy": "; ".join(
        [
            "default-src 'self'",
            "script-src 'self' 'wasm-unsafe-eval'",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' blob: data:",
            "connect-src 'self' blob: data:",
            "worker-src 'self' blob:",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


@dataclass(frozen=True, kw_only=True)
class Access:
    """The rules of one service."""

    host: str
    """Address that it listens on."""
    token: str | None = None
    """Without it nothing is answered; None only on addresses of this machine."""
    origins: Sequence[str] = ()
    """Other addresses whose pages may call, such as that of a viewer."""
    max_bytes: int = 4 * 2**30
    """Largest body of a request."""

    def knows(self, name: str) -> bool:
        """Whether a Host header names this service. Other names would come from a page of another site."""
        own = urlsplit(f"//{name}").hostname
        return own in LOOPBACK or own == self.host or (self.host in ("0.0.0.0", "::") and own is not None)

    def allows(self, origin: str, host: str) -> bool:
        """Whether a page of that origin may call."""
        return urlsplit(origin).netloc == host or origin.rstrip("/") in [one.rstrip("/") for one in self.origins]

    def admits(self, headers: Headers, cookies: str) -> bool:
        """Whether the request has the token, or the cookie of those who had it."""
        if self.token is None:
            return True
        own = token_digest(self.token.encode())
        found = [part.partition("=")[2] for part in cookies.split("; ") if part.startswith(f"{cookie_name(own)}=")]
        scheme, _, value = headers.get("authorization", "").partition(" ")
        found += [token_digest(value.strip().encode("latin-1"))] if scheme.lower() == "bearer" else []
        return any(hmac.compare_digest(one.encode(), own.encode()) for one in found)


def token_digest(token: bytes) -> str:
    """What the cookie has in place of the token; digests are compared in constant time."""
    return hashlib.sha256(b"handful page: " + token).hexdigest()


def cookie_name(digest: str) -> str:
    """A name for each token, since browsers send the cookies of a host to all of its ports."""
    return f"{COOKIE}_{digest[:8]}"


class Guard:
    """Refuses what the rules refuse before it reaches any route, and bounds bodies as they come."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        if scope["method"] == "OPTIONS":  # what a browser sends before a call from the page of a viewer
            await Response(status_code=204)(scope, receive, self._with_headers(scope, send))
            return
        await self.app(scope, self._bounded(receive), self._with_headers(scope, send))

    def _refusal(self, scope: Scope) -> JSONResponse | RedirectResponse | None:
        headers, access = Headers(scope=scope), self.access
        host, origin = headers.get("host", ""), headers.get("origin")
        if not access.knows(host):
            return _error(421, "this service does not answer to that host name")
        if origin is not None and origin != "null" and not access.allows(origin, host):
            return _error(403, "pages of another site may not call; allow the viewer with --allow-origin")
        if origin == "null" and scope["method"] not in ("GET", "HEAD"):
            return _error(403, "pages without an origin may not call")
        if access.token and scope["path"] == "/" and (query := _token_in(scope)) is not None:
            digest = token_digest(access.token.encode())
            if not hmac.compare_digest(token_digest(query.encode()), digest):
                return _error(401, "wrong token")
            answer = RedirectResponse("/", 303)
            answer.set_cookie(cookie_name(digest), digest, httponly=True, samesite="strict")
            return answer
        if scope["method"] != "OPTIONS" and not access.admits(headers, headers.get("cookie", "")):
            return _error(401, "a token is needed; open the address that handful serve has printed")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > access.max_bytes:
            return _error(413, f"the request is larger than {access.max_bytes} bytes")
        return None

    def _bounded(self, receive: Receive) -> Receive:
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.access.max_bytes:
                raise HTTPException(413, f"the request is larger than {self.access.max_bytes} bytes")
            return message

        return bounded

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        origin = Headers(scope=scope).get("origin")
        host = Headers(scope=scope).get("host", "")
        extra = dict(HEADERS)
        if origin and origin != "null" and self.access.allows(origin, host):
            extra |= {
                "access-control-allow-origin": origin,
                "access-control-allow-headers": "authorization, content-type, x-lease-token, x-meta, x-annotator",
                "access-control-allow-methods": "GET, HEAD, POST, PUT, DELETE",
                "access-control-expose-headers": "x-meta, content-disposition",
                "vary": "origin",
            }

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((n.encode(), v.encode()) for n, v in extra.items() if n.encode() not in present),
                ]
            await send(message)

        return sending


def _token_in(scope: Scope) -> str | None:
    found = parse_qs(scope["query_string"].decode("latin-1")).get("token")
    return found[0] if found else None


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers=HEADERS)
