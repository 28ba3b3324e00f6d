"""TLS and addresses of both listeners: what can be reached from elsewhere is encrypted, named, and meant."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.chaos.stack import Gateway, MockEngine, fleet_text

EVERY = "0.0.0" + ".0"


def pair(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a certificate that signs itself, for this machine, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(who).issuer_name(who).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=9)).add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip
    cert, secret = folder / f"{name}.pem", folder / f"{name}.key"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption_algorithm=plain)
    )
    return cert, secret


def ask(
    port: int, cert: Path, method: str, path: str, bearer: str, body: object = None
) -> tuple[int, dict[str, str], bytes]:
    """Ask over TLS, trusting one certificate."""
    trust = ssl.create_default_context(cafile=str(cert))
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=trust)
    headers = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return found


def test_both_listeners_speak_tls_with_a_pair_each(tmp_path: Path) -> None:
    """Requests, the live page and its session pass over TLS; plain HTTP and TLS 1.1 get nothing; the cookie is Secure."""
    gate, control = pair(tmp_path, "gate"), pair(tmp_path, "control")
    engine = MockEngine(tmp_path / "engine.truth").start()
    pems = f"  tls_cert: {gate[0]}\n  tls_key: {gate[1]}\n  control_cert: {control[0]}\n  control_key: {control[1]}\n"
    fleet, state = tmp_path / "fleet.yaml", tmp_path / "state"
    state.mkdir(mode=0o700)
    fleet.write_text(
        fleet_text([engine.url], [engine.url.replace("127.0.0.1", "localhost")], workers=1, serve_more=pems)
    )
    gateway = Gateway(fleet, state).start()
    silent = socket.create_connection(("127.0.0.1", gateway.port), timeout=20)
    try:
        assert gateway.ready["gateway"].startswith("https://") and gateway.ready["control"].startswith("https://")
        key, admin = gateway.key("acme"), (state / "admin.token").read_text().strip()
        chat = {"model": "chat", "max_tokens": 3, "stream": True, "messages": [{"role": "user", "content": "hello"}]}
        status, _, body = ask(gateway.port, gate[0], "POST", "/v1/chat/completions", key, chat)
        assert status == 200 and b"[DONE]" in body
        assert ask(gateway.control_port, control[0], "GET", "/api/snapshot", admin)[0] == 200
        for port, cert in ((gateway.port, control[0]), (gateway.control_port, gate[0])):
            with pytest.raises(ssl.SSLCertVerificationError):
                ask(port, cert, "GET", "/", admin)
        for port in (gateway.port, gateway.control_port):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
                plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                assert not plain.recv(100).startswith(b"HTTP/1.1 200")
        assert "Secure" in log_in(gateway.control_port, control[0], admin)
        assert silent.recv(1) == b"", "a handshake that does not begin is waited for no longer than headers"
    finally:
        silent.close()
        gateway.stop()
        engine.kill()


def log_in(port: int, cert: Path, token: str) -> str:
    """Send the form; return the cookie."""
    connection = http.client.HTTPSConnection(
        "127.0.0.1", port, timeout=20, context=ssl.create_default_context(cafile=str(cert))
    )
    form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"https://127.0.0.1:{port}"}
    connection.request("POST", "/login", f"token={token}", form)
    cookie = connection.getresponse().getheader("set-cookie") or ""
    connection.close()
    return cookie


@pytest.mark.parametrize("address", [f"{EVERY}:0", "[::]:0", "0:0", f"[::ffff:{EVERY}]:0"])
def test_a_control_listener_on_every_address_is_meant_or_refused(tmp_path: Path, address: str) -> None:
    """However it is spelt: exit code 2, nothing is started, and the sentence says what to write instead."""
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(fleet_text(["http://127.0.0.1:1"], ["http://127.0.0.1:2"]))
    command = [sys.executable, "-m", "baseload", "serve", str(fleet), "--listen", "127.0.0.1:0", "--control", address]
    done = subprocess.run([*command, "--state", str(tmp_path / "state")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "serve.control_hosts" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_names_that_are_said_are_served_and_no_others(tmp_path: Path) -> None:
    """With control_hosts a listener on every address starts, and answers to those names alone."""
    engine = MockEngine(tmp_path / "engine.truth").start()
    fleet, state = tmp_path / "fleet.yaml", tmp_path / "state"
    state.mkdir(mode=0o700)
    more = "  control_hosts: [control.example:8081]\n"
    fleet.write_text(
        fleet_text([engine.url], [engine.url.replace("127.0.0.1", "localhost")], workers=1, serve_more=more)
    )
    words = ["--control", f"{EVERY}:0"]
    gateway = Gateway(fleet, state, words=words)
    try:
        gateway.start()
        admin = (state / "admin.token").read_text().strip()
        for host, wanted in (
            ("control.example:8081", 200),
            ("evil.example", 421),
            (f"127.0.0.1:{gateway.control_port}", 421),
        ):
            connection = http.client.HTTPConnection("127.0.0.1", gateway.control_port, timeout=10)
            connection.request("GET", "/api/snapshot", headers={"Authorization": f"Bearer {admin}", "Host": host})
            assert connection.getresponse().status == wanted, host
            connection.close()
    finally:
        gateway.stop()
        engine.kill()
