"""Rules about the live side: addresses that can be listened on, engines that can be reached, files that are there.

Written into `notes`; `check.py` is the way in.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from baseload.fleet.live import LiveEngine, host_and_port
from baseload.fleet.notes import Notes
from baseload.fleet.tree import Path
from baseload.fleet.typed import nearest

_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HOST_HEADER = re.compile(r"(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")


def look(notes: Notes) -> None:
    """Write down what is wrong with the `serve` section."""
    serve = notes.fleet.serve
    for key in ("listen", "control"):
        address: str = getattr(serve, key)
        try:
            host_and_port(address)
        except ValueError as error:
            notes.problem(("serve", key), f"`{address}`: {error}", "write an address and a port, e.g. 127.0.0.1:8080")
    if serve.listen == serve.control and not serve.listen.endswith(":0"):
        notes.problem(("serve", "control"), "is the gateway's own address", "give it another port")
    for cert, its_key in (("tls_cert", "tls_key"), ("control_cert", "control_key")):
        if (getattr(serve, cert) is None) != (getattr(serve, its_key) is None):
            missing = its_key if getattr(serve, its_key) is None else cert
            notes.problem(("serve", missing), "is missing", "TLS needs both, the certificate and its key")
    for i, name in enumerate(serve.control_hosts):
        if not _HOST_HEADER.fullmatch(name):
            what, mend = (
                f"`{name[:100]}` is no name with a port",
                "write it as browsers send it, e.g. control.example:8081",
            )
            notes.problem(("serve", "control_hosts", str(i)), what, mend)
    for key in ("tls_cert", "tls_key", "control_cert", "control_key"):
        _file(notes, ("serve", key), getattr(serve, key))
    _environment(notes, ("serve", "ledger_env"), serve.ledger_env)
    for name, engine in serve.engines.items():
        _engine(notes, ("serve", "engines", name), name, engine)


def _engine(notes: Notes, at: Path, name: str, engine: LiveEngine) -> None:
    deployment = notes.fleet.deployments.get(name)
    if deployment is None:
        notes.problem(at, f"there is no deployment `{name}`", nearest(name, notes.fleet.deployments))
        return
    _environment(notes, (*at, "key_env"), engine.key_env)
    if engine.model_digest is not None and not _SHA256.fullmatch(engine.model_digest):
        notes.problem((*at, "model_digest"), "is not a SHA-256", "write 64 hexadecimal digits")
    if engine.kind != "external":
        for key, value in (("urls", engine.urls), ("key_env", engine.key_env)):
            if value:
                notes.problem((*at, key), f"{engine.kind} engines have none", "write `kind: external`, or remove it")
    if engine.kind != "embedded" and engine.gguf is not None:
        notes.problem((*at, "gguf"), f"{engine.kind} engines take no file", "write `kind: embedded`, or remove it")
    _file(notes, (*at, "gguf"), engine.gguf)
    if engine.kind == "external":
        _urls(notes, at, engine, {site: max(r.min, r.max or 0) for site, r in deployment.sites.items()})


def _urls(notes: Notes, at: Path, engine: LiveEngine, replicas: dict[str, int]) -> None:
    if not engine.urls:
        notes.problem((*at, "urls"), "is empty", "name the engines, e.g. `urls: {oslo: [http://10.0.0.5:8000]}`")
    seen: set[str] = set()
    for site, urls in engine.urls.items():
        if site not in replicas:
            notes.problem((*at, "urls", site), "the deployment does not run there", nearest(site, replicas))
            continue
        if len(urls) > replicas[site]:
            what = f"{len(urls)} engines, and the deployment has {replicas[site]} replicas there at most"
            notes.problem((*at, "urls", site), what, "raise the replicas' max, or name fewer")
        for i, url in enumerate(urls):
            where = (*at, "urls", site, str(i))
            wrong = url_problem(url)
            if wrong:
                notes.problem(where, f"`{url[:200]}`: {wrong}", "write a base URL such as http://10.0.0.5:8000")
            elif url in seen:
                notes.problem(where, f"`{url}` stands here twice", "one URL a replica")
            seen.add(url)


def url_problem(url: str) -> str:
    """Return what makes a base URL unusable, '' where nothing does.

    >>> url_problem("http://10.0.0.5:8000"), url_problem("http://user:pw@10.0.0.5")
    ('', 'holds a user or password; name an environment variable in key_env instead')
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return str(error)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "is no http or https address"
    if parts.username is not None or parts.password is not None:
        return "holds a user or password; name an environment variable in key_env instead"
    if parts.query or parts.fragment or any(c.isspace() or ord(c) < 33 or ord(c) > 126 for c in url):
        return "has a query, a fragment or letters that no address has"
    return "port 0 is none" if port == 0 else ""


def _file(notes: Notes, at: Path, name: str | None) -> None:
    if name is None:
        return
    try:
        found = (notes.base_folder / name).is_file()
    except (OSError, ValueError):
        found = False
    if not found:
        notes.problem(at, f"there is no file `{name[:200]}`", "name it relative to the fleet file")


def _environment(notes: Notes, at: Path, name: str | None) -> None:
    if name is not None and not _ENVIRONMENT_NAME.fullmatch(name):
        notes.problem(at, f"`{name[:40]}` is no environment variable's name", "write the name, never the secret")
