"""`baseload serve`: a small supervisor that starts one owner and some workers, and restarts whichever dies.

The owner (`app/owner_main.py`) holds money, ledger, engines and the control listener; a worker (`serve/worker.py`) is the data
plane. This process holds the port and the state folder's lock, carries no request, and imports nothing heavy. Children
end when it does, however it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import ipaddress
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from baseload.app import early
from baseload.app.child import Child
from baseload.app.serve_config import FLEET_READ, ServeConfig
from baseload.errors import BaseloadError, FleetError, InputError
from baseload.fleet.live import host_and_port
from baseload.fleet.loaded import Loaded, pack, unpack
from baseload.policies import KINDS

LOOPBACK = ("127.0.0.1", "::1", "localhost")
READY_S = 60.0  # an owner that starts engines first takes its time
BACK_OFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
CALM_S = 30.0  # a child that lived this long starts again at the first back-off
STOP_S = 10.0  # after drain_s, before a child is killed


def config_of(options: argparse.Namespace) -> tuple[ServeConfig, bytes]:
    """Check the fleet file as it stands today; return what the children need, and the fleet as read; raises InputError."""
    day = datetime.now(UTC).date()
    loaded = _read_before(options, day)
    if loaded is None:
        from baseload.fleet import check, load

        loaded = load.load(options.fleet, options.overrides)
        check.require(loaded, policies={kind: list(names) for kind, names in KINDS.items()}, day=day)
    serve = loaded.fleet.serve
    try:
        listen, control = host_and_port(options.listen or serve.listen), host_and_port(options.control or serve.control)
    except ValueError as error:
        raise InputError(f"--listen or --control: {error}; write an address and a port, e.g. 127.0.0.1:8080") from None
    workers = serve.workers if options.workers is None else options.workers
    if not 1 <= workers <= 256:
        raise InputError(f"--workers {workers}: from 1 to 256")
    state = state_folder(options.state)

    def beside(name: str | None) -> str | None:
        return None if name is None else str(loaded.base_folder / name)

    _check_tls("tls", beside(serve.tls_cert), beside(serve.tls_key))
    own = (beside(serve.control_cert), beside(serve.control_key))
    _check_tls("control", *own)
    if own[0] is None and control[0] not in LOOPBACK:
        own = (beside(serve.tls_cert), beside(serve.tls_key))
    _refuse_every_address(control[0], serve.control_hosts)
    config = ServeConfig(
        fleet=str(options.fleet), overrides=list(options.overrides), state=str(state), listen_host=listen[0],
        listen_port=listen[1], control_host=control[0], control_port=control[1], workers=workers,
        engines=options.engines, tls_cert=beside(serve.tls_cert), tls_key=beside(serve.tls_key),
        drain_s=serve.limits.drain_s, control_cert=own[0], control_key=own[1], control_hosts=list(serve.control_hosts),
    )  # fmt: skip
    return config, pack(loaded, day)


def _read_before(options: argparse.Namespace, day: date) -> Loaded | None:
    """Return the fleet as it was read today by a gateway that crashed, if its file is still the same; else it is read anew."""
    run = (options.state or Path(early.STATE)) / "run"
    if not early.after_a_crash(run):
        return None
    try:
        text, blob = Path(options.fleet).read_bytes().decode("utf-8-sig"), (run / FLEET_READ).read_bytes()
    except (OSError, ValueError):
        return None
    found = unpack(blob, day=day, path=str(options.fleet), overrides=tuple(options.overrides), text=text)
    if found is None:
        return None
    serve = found.fleet.serve
    names = [serve.ledger_env, *(engine.key_env for engine in serve.engines.values())]
    return found if all(name in os.environ for name in names if name) else None


def _refuse_every_address(host: str, names: list[str]) -> None:
    """Refuse a control listener on all addresses of the machine, unless it is said under which names it is to be reached."""
    try:
        found = {str(where[4][0]) for where in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return  # it cannot be bound either, which the owner tells
    every = [
        one for one in map(ipaddress.ip_address, found) if (getattr(one, "ipv4_mapped", None) or one).is_unspecified
    ]
    if every and not names:
        raise InputError(
            f"serve.control {host}: would listen on every address of this machine, and a control token is worth a fleet; name "
            "one address (127.0.0.1, or that of an inner network), or say in serve.control_hosts under which names it is to "
            "be reached, e.g. [control.example:8081]"
        )


def _check_tls(which: str, cert: str | None, key: str | None) -> None:
    """Refuse a certificate and key that do not belong together, or are none, before anything is started."""
    if cert is None or key is None:
        return
    import ssl

    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ssl.SSLError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"serve.{which}_cert {cert} with serve.{which}_key {key}: cannot be used ({reason}); name a PEM certificate "
            "and its key without a password"
        ) from None


def state_folder(path: Path | None) -> Path:
    """Return the state folder, made where it is not there (mode 0700); `baseload-state` where none is named."""
    folder = path or Path(early.STATE)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "run").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be the state folder ({error.strerror}); name another with --state"
        ) from None
    for private in (folder, folder / "run"):
        mode = private.stat().st_mode & 0o777
        if mode & 0o022:
            raise InputError(
                f"{private}: others may write here (mode {mode:o}), so keys and ledger could be exchanged; "
                f"chmod 700 {private}, or name another with --state"
            )
    return folder.resolve()


def lock(state: Path) -> int:
    """Return the lock of a state folder; raises InputError where another gateway holds it."""
    path = state / "run" / "lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise InputError(f"{path}: cannot be locked ({error.strerror}); mend that, or name another --state") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise InputError(f"{state}: another `baseload serve` runs on it; stop that, or name another --state") from None
    return handle


def hold_port(host: str, port: int, what: str) -> tuple[socket.socket, int]:
    """Return a bound socket that listens to nothing, and its port: workers join it with SO_REUSEPORT."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    holder = socket.socket(family, socket.SOCK_STREAM)
    try:
        if port:  # somebody else's listener would share the port unseen, if it is of the same user
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
    except OSError as error:
        holder.close()
        mend = "choose another port" if error.errno == errno.EADDRINUSE else "choose an address of this machine"
        raise InputError(f"{what} {host}:{port}: {error.strerror}; {mend}") from None
    return holder, int(holder.getsockname()[1])


class Supervisor:
    """Starts, watches and ends the children."""

    def __init__(self, config: ServeConfig, say: Callable[[str], None], owner: Child | None = None) -> None:
        """`owner` was started before it was known of what, and waits."""
        self.config, self.say = config, say
        self.path = path = self._write_config()
        python = [sys.executable, "-m"]
        self.owner = Child("owner", []) if owner is None else owner
        self.owner.command = [*python, "baseload.app.owner_main", str(path)]
        self.workers = [
            Child(f"worker {i}", [*python, "baseload.serve.worker", str(path), str(i)]) for i in range(config.workers)
        ]
        # Stands in while a worker is replaced; the board has a row for it.
        self.spare = Child("spare worker", [*python, "baseload.serve.worker", str(path), str(config.workers)])
        self.rolling: list[Child] | None = None  # workers still to be replaced; None: no upgrade is under way
        self.stopping = False
        self.signals: list[int] = []

    @property
    def children(self) -> list[Child]:
        """Return all of them, owner first."""
        return [self.owner, *self.workers]

    def begin(self) -> dict[str, object]:
        """Start everything; return what the owner and the workers said of themselves."""
        with contextlib.suppress(OSError):
            (self.config.run_folder / "board").unlink(missing_ok=True)  # of workers that are gone
        for child in self.workers:
            child.start(time.monotonic(), wait=True)  # what they import, they import meanwhile
        self._first(self.owner)
        for worker in self.workers:
            worker.go()
        for worker in self.workers:
            self._await(worker)
        assert self.owner.ready is not None
        self.owner.ready["interpreted"] = (self.workers[0].ready or {}).get("interpreted", "")
        if not self.config.control_port:  # an owner that is started anew answers where the first one did
            port = urlsplit(str(self.owner.ready.get("control"))).port or 0
            self.config = msgspec.structs.replace(self.config, control_port=port)
            self._write_config()
        return dict(self.owner.ready)

    def _write_config(self) -> Path:
        path = self.config.run_folder / "serve.json"
        fresh = path.with_suffix(".fresh")
        try:
            fresh.write_bytes(msgspec.json.encode(self.config))
            fresh.replace(path)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error.strerror}); mend that, or name another --state"
            ) from None
        return path

    def _first(self, child: Child) -> None:
        if child.process is None:
            child.start(time.monotonic())
        else:
            child.go(str(self.path))
        self._await(child)

    def _await(self, child: Child) -> None:
        until_s = time.monotonic() + READY_S
        while child.ready is None:
            self._obey(child)
            assert child.process is not None
            child.hear()
            code = child.process.poll()
            if code is not None and child.ready is None:
                raise ChildEnded(f"{child.name} ended with code {code} before it was ready; see above", code)
            if time.monotonic() > until_s:
                raise ChildEnded(f"{child.name} was not ready within {READY_S:.0f} s", 1)
            time.sleep(0.01)

    def _obey(self, child: Child) -> None:
        if any(number in (signal.SIGTERM, signal.SIGINT) for number in self.signals):
            raise KeyboardInterrupt

    def watch(self) -> None:
        """Restart what dies, until told to stop."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write)
        with selectors.DefaultSelector() as selector:
            selector.register(wake_read, selectors.EVENT_READ)
            while not self.stopping:
                if selector.select(timeout=0.25):
                    os.read(wake_read, 512)
                while self.signals:
                    number = self.signals.pop(0)
                    if number == signal.SIGHUP:
                        self._pass_on(signal.SIGHUP)
                    elif number == signal.SIGUSR2 and self.rolling is None:
                        self.say("replacing the workers, one after the other; streams end where they began")
                        self.rolling = list(self.workers)
                        self.spare.start(time.monotonic())
                    elif number in (signal.SIGTERM, signal.SIGINT):
                        self.stopping = True
                if not self.stopping:
                    self._roll()
                    self._mend(time.monotonic())
        signal.set_wakeup_fd(-1)
        os.close(wake_read)
        os.close(wake_write)

    def _pass_on(self, number: int) -> None:
        if self.owner.process is not None and self.owner.process.poll() is None:
            self.owner.process.send_signal(number)

    def _roll(self) -> None:
        """Take one step of an upgrade: the spare takes over, each worker drains and starts anew, the spare drains."""
        if self.rolling is None:
            return
        spare = self.spare
        if spare.process is None or spare.process.poll() is not None:
            spare.let_go()
            spare.process, self.rolling = None, None
            self.say("the workers are replaced")
            return
        spare.hear()
        if spare.ready is None:
            return
        if not self.rolling:
            if all(worker.ready is not None for worker in self.workers) and not spare.told:
                spare.tell(signal.SIGTERM)
            return
        worker = self.rolling[0]
        if worker.process is None:  # `_mend` is starting it anyway
            self.rolling.pop(0)
        elif not worker.told:
            worker.tell(signal.SIGTERM)
        elif worker.process.poll() is not None:
            worker.let_go()
            worker.start(time.monotonic())
            self.rolling.pop(0)

    def _mend(self, now_s: float) -> None:
        for child in self.children:
            if child.told and self.rolling is not None and child in self.rolling:
                continue  # it drains: `_roll` starts it anew
            if child.process is None:
                if now_s >= child.again_s:
                    child.start(now_s)
                continue
            child.hear()
            code = child.process.poll()
            if code is None:
                continue
            child.let_go()
            child.process = None
            child.failures = 0 if now_s - child.started_s > CALM_S else child.failures + 1
            wait_s = BACK_OFF_S[min(child.failures, len(BACK_OFF_S)) - 1] if child.failures else 0.0
            child.again_s = now_s + wait_s
            child.restarts += 1
            self.say(f"{child.name} ended with code {code}; it starts again in {wait_s:g} s")

    def end(self) -> None:
        """Drain the workers, then end the owner; kill what does not end."""
        deadline_s = time.monotonic() + self.config.drain_s + STOP_S
        for group in ([*self.workers, self.spare], [self.owner]):
            for child in group:
                child.tell(signal.SIGTERM)
            for child in group:
                if child.process is None:
                    continue
                try:
                    child.process.wait(max(0.1, deadline_s - time.monotonic()))
                except subprocess.TimeoutExpired:
                    child.process.kill()
                    child.process.wait()
                child.let_go()
            deadline_s = max(deadline_s, time.monotonic() + STOP_S)


class ChildEnded(BaseloadError):
    """A child ended before it was ready; what was wrong stands above, in its own words."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code if code in (1, 2) else 1


def serve(options: argparse.Namespace, say: Callable[[str], None], owner: Child, warning: str = "") -> int:
    """Run until SIGTERM or Ctrl-C; return the exit code. `owner` waits already, of `early.start_owner`."""
    try:
        config, read = config_of(options)
        held = lock(Path(config.state))
        holder, port = hold_port(config.listen_host, config.listen_port, "serve.listen")
        config = msgspec.structs.replace(config, listen_port=port)
        if warning:
            print(f"baseload: {warning}", file=sys.stderr, flush=True)
        (config.run_folder / FLEET_READ).write_bytes(read)  # the owner need not read it again
        supervisor = Supervisor(config, say, owner)
    except BaseException:
        early.call_off(owner)
        raise
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, lambda n, frame: supervisor.signals.append(n))
    try:
        ready = supervisor.begin()
        _tell(config, ready, options.ready_json, say)
        supervisor.watch()
    except KeyboardInterrupt:
        pass
    finally:
        supervisor.end()
        holder.close()
        os.close(held)
    return 0


def _tell(config: ServeConfig, ready: dict[str, object], as_json: bool, say: Callable[[str], None]) -> None:
    host = f"[{config.listen_host}]" if ":" in config.listen_host else config.listen_host
    scheme = "https" if config.tls_cert else "http"
    gateway = f"{scheme}://{host}:{config.listen_port}"
    if as_json:
        told = {"gateway": gateway, "pid": os.getpid(), "state": config.state, **ready}
        print(json.dumps(told), flush=True)
        return
    say(f"gateway  {gateway}/v1     (keys: baseload keys create --tenant NAME --state {config.state})")
    say(f"control  {ready.get('control')}     (token in {ready.get('admin_token_file')})")
    if config.control_host not in LOOPBACK and config.control_cert is None:
        say(
            "warning: the control listener speaks plain HTTP and can be reached from other machines; give it "
            "serve.control_cert and control_key, or put TLS in front"
        )
    if ready.get("interpreted"):
        say(f"note: the data plane runs interpreted: {ready['interpreted']}")
    if ready.get("rehearsal"):
        say(
            "rehearsal: engines are emulated; what they answer is made up, and nothing measured here validates anything"
        )
    say("ready; Ctrl-C drains and stops")


__all__ = ["FleetError", "ServeConfig", "serve", "state_folder"]
