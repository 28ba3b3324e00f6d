"""The control listener's socket and its TLS, apart from the server: it is bound before the server's modules are imported."""

from __future__ import annotations

import socket
import ssl

BACKLOG = 128


def tls_of(cert: str, key: str) -> ssl.SSLContext:
    """Return the server's side of TLS 1.2 or newer, with a certificate and its key (PEM files)."""
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.load_cert_chain(cert, key)
    made.set_alpn_protocols(["http/1.1"])
    return made


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, port 0 for any free one; the caller reads its port from it."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    return sock
