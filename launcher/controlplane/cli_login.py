"""
Signing in spacectl with a browser: ``/cli_login`` and the two pages it ends on.

spacectl listens on this very machine and tells its public key.  Whoever signs in here
with an API key makes the browser carry a session there, which only spacectl can open.
"""

from __future__ import annotations

import base64
import html
import re
import secrets

from urllib.parse import parse_qsl, urlencode

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from launcher.controlplane.auth import SignIn
from launcher.controlplane.errors import RequestRefused, Unauthorized
from launcher.controlplane.lanes import Lanes


MAX_KEY = 4096
MAX_FORM = 16 * 1024
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_BLOCK = 128
_IV = 16


class CliLogin:
    """The pages."""

    def __init__(self, sign_in: SignIn, lanes: Lanes) -> None:
        self._sign_in = sign_in
        self._lanes = lanes

    def routes(self) -> list[Route]:
        return [
            Route("/cli_login", self.form, methods=["GET"]),
            Route("/cli_login", self.submit, methods=["POST"]),
            Route("/auth_success", _success, methods=["GET"]),
            Route("/auth_failure", _failure, methods=["GET"]),
        ]

    async def form(self, request: Request) -> Response:
        """Ask who is there."""
        try:
            port, _ = _asked_for(request)
        except RequestRefused as exc:
            return _page(400, f"<p>{html.escape(str(exc))}", port=0)
        return _sign_in_page(200, port)

    async def submit(self, request: Request) -> Response:
        """Send the browser, with a session, to where spacectl listens."""
        try:
            port, key = _asked_for(request)
            given = await _form(request)
        except RequestRefused as exc:
            return _page(400, f"<p>{html.escape(str(exc))}", port=0)
        try:
            session = await self._lanes.sign_in.run(
                self._sign_in.exchange, given.get("id", ""), given.get("secret", "")
            )
        except Unauthorized:
            return _sign_in_page(401, port, "This is not an API key and its secret.")
        token, wrapped = sealed(session.token.encode(), key)
        query = urlencode({"token": token, "key": wrapped})
        return RedirectResponse(
            f"http://localhost:{port}/?{query}", 303, headers=_headers(port)
        )


def sealed(session: bytes, key: rsa.RSAPublicKey) -> tuple[str, str]:
    """*session*, and the key that opens it, which only the owner of *key* can read."""
    aes, iv = secrets.token_bytes(32), secrets.token_bytes(_IV)
    padder = padding.PKCS7(_BLOCK).padder()
    padded = padder.update(session) + padder.finalize()
    encryptor = Cipher(algorithms.AES(aes), modes.CBC(iv)).encryptor()
    token = iv + encryptor.update(padded) + encryptor.finalize()
    wrapped = key.encrypt(
        aes, OAEP(mgf=MGF1(hashes.SHA512()), algorithm=hashes.SHA512(), label=None)
    )
    return _encoded(token), _encoded(wrapped)


def _asked_for(request: Request) -> tuple[int, rsa.RSAPublicKey]:
    port, key = (
        request.query_params.get("port", ""),
        request.query_params.get("key", ""),
    )
    if not _PORT.fullmatch(port) or int(port) > 65535 or not 0 < len(key) <= MAX_KEY:
        raise RequestRefused("start this with `spacectl profile login`")
    try:
        pem = base64.urlsafe_b64decode(key + "=" * (-len(key) % 4))
        # Its title says another format than it is in.
        titled = pem.replace(b"RSA PUBLIC KEY", b"PUBLIC KEY")
        public = serialization.load_pem_public_key(titled)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise RequestRefused("this is not the key of a spacectl") from exc
    if not isinstance(public, rsa.RSAPublicKey) or public.key_size < 2048:
        raise RequestRefused("this is not the key of a spacectl")
    return int(port), public


async def _form(request: Request) -> dict[str, str]:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM:
            raise RequestRefused("this is too long")
    try:
        return dict(parse_qsl(body.decode(), max_num_fields=10))
    except ValueError as exc:
        raise RequestRefused("this is not a form") from exc


def _sign_in_page(status: int, port: int, complaint: str = "") -> HTMLResponse:
    said = f'<p role="alert">{html.escape(complaint)}' if complaint else ""
    return _page(
        status,
        f"{said}<p>Sign in spacectl on this machine, port {port}."
        '<form method="post">'
        '<p><label>API key <input name="id" required autocomplete="username"></label>'
        '<p><label>Secret <input name="secret" type="password" required'
        ' autocomplete="current-password"></label>'
        "<p><button>Sign in</button></form>",
        port=port,
    )


async def _success(_: Request) -> HTMLResponse:
    return _page(200, "<p>spacectl is signed in; this page can be closed.", port=0)


async def _failure(_: Request) -> HTMLResponse:
    return _page(200, "<p>spacectl could not sign in; it says why.", port=0)


def _page(status: int, body: str, *, port: int) -> HTMLResponse:
    return HTMLResponse(
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>Sign in spacectl</title>{body}</html>",
        status,
        headers=_headers(port),
    )


def _headers(port: int) -> dict[str, str]:
    # What a form leads to counts as its action, too.
    action = f"'self' http://localhost:{port}" if port else "'none'"
    return {
        "Cache-Control": "no-store",
        "Content-Security-Policy": (
            f"default-src 'none'; form-action {action}; frame-ancestors 'none';"
            " base-uri 'none'"
        ),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
