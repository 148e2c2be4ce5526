"""Joining the processes of a run, by `jax.distributed`, which aborts where this ends in a line."""

import ipaddress
import os
import re
import signal
import socket
import threading
import time
from typing import Any

from cmjax.cli import terminal
from cmjax.cli.group import give_up

QUIET = 5.0  # seconds of waiting before something is said
POLL = 0.1  # seconds between two looks at whether all have joined
LATER = 60  # seconds that JAX, which aborts the process in the end, waits longer than we do
HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,252})")


def parse_address(address: str) -> tuple[str, int]:
    """Returns the host and the port of "HOST:PORT" or "[IPv6]:PORT".

    JAX hands an address on as it is, and one of another form ends the process without an error.

    Raises:
        ValueError: for a text of another form, or a port beyond 1..65535.
    """
    host, colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare:
        raise ValueError(
            f"must be HOST:PORT, such as 10.0.0.1:1234 or [::1]:1234, got {address!r:.200}"
        )
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(f"must have a port from 1 to 65535, got {address!r:.200}")

    # Brackets are for IPv6 and needed there, since its colons could be that of the port.
    if bare != host:
        try:
            ipaddress.IPv6Address(bare)
        except ValueError:
            raise ValueError(
                f"has no IPv6 address within its brackets, got {address!r:.200}"
            ) from None
    elif ":" in host:
        raise ValueError(f"needs brackets around an IPv6 address, got {address!r:.200}")

    # Digits and dots alone are an IPv4 address, which must have four numbers below 256.
    elif not HOST.fullmatch(host) or (
        re.fullmatch(r"[0-9.]+", host) and not _is_ipv4(host)
    ):
        raise ValueError(f"has no host's name or address, got {address!r:.200}")
    return bare, int(port)


def _is_ipv4(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def join(
    address: str | None,
    num_processes: int | None,
    process_id: int | None,
    devices: list[int] | None,
    timeout: int,
) -> None:
    """Joins the processes of a run, or ends this process with one line.

    Args:
        address: `HOST:PORT`, the same for all; None for JAX to detect it and the numbers below.
        num_processes: number of processes of the run.
        process_id: number of this process, from 0.
        devices: the devices of this process; None for JAX's choice.
        timeout: seconds that all processes may take to join.

    Raises:
        ValueError: if process 0 cannot listen at the address, or JAX detects no other processes.
    """
    # Without an address JAX looks for one here first, and does not look at its form.
    known = address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if known:
        try:
            host, port = parse_address(known)
        except ValueError as error:
            raise ValueError(f"the coordinator's address {error}") from None
        if process_id == 0 and "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ:
            _check_can_listen(host, port)

    # JAX's service has no passwords: it is to listen at the given address, not on all interfaces.
    bind = address if process_id == 0 else None
    if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        bind = None
    outcome = _initialize_in_thread(
        (address, num_processes, process_id),
        local_device_ids=devices,
        initialization_timeout=timeout + LATER,
        coordinator_bind_address=bind,
    )
    _wait(outcome, known or "auto", num_processes, timeout)

    # JAX takes SIGTERM for itself, to tell other processes of it, and does nothing else with it.
    # The same handler set again is Python's.
    before = signal.getsignal(signal.SIGTERM)
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)

    for error in outcome.errors:
        # The runtime's errors can fill a page; their first line says what happened.
        what = (str(error) or type(error).__name__).splitlines()[0]
        hint = ""
        if not address:
            hint = "; outside of TPU pods and Slurm jobs give HOST:PORT, or none for a run alone"
        raise ValueError(f"--coordinator {address or 'auto'}: {what}{hint}")


class _Joining(threading.Thread):
    """A thread that calls `jax.distributed.initialize`.

    Attributes:
        where: address, number of processes and number of this one.
        options: the other arguments.
        errors: what it raised, if anything.
    """

    def __init__(self, where: tuple[Any, ...], options: dict[str, Any]):
        super().__init__(daemon=True)
        self.where = where
        self.options = options
        self.errors: list[Exception] = []

    def run(self) -> None:
        """Joins, in compiled code, while the main thread answers signals."""
        import jax

        try:
            jax.distributed.initialize(*self.where, **self.options)
        except Exception as error:
            self.errors.append(error)


def _initialize_in_thread(where: tuple[Any, ...], **options: Any) -> _Joining:
    """Starts to join; the main thread stays free for Ctrl-C and SIGTERM."""
    # Imported in this thread, since a signal during the import is answered here.
    import jax  # noqa: F401

    joining = _Joining(where, options)
    joining.start()
    return joining


def _wait(joining: _Joining, address: str, num_processes: int | None, timeout: int) -> None:
    """Waits until all processes have joined; ends this one if they do not in time."""
    others = "the other processes"
    if num_processes is not None:
        others = f"all {num_processes} processes"
    started = time.monotonic()
    has_spoken = False
    while joining.is_alive():
        joining.join(POLL)
        waited = time.monotonic() - started
        if waited > QUIET and not has_spoken:
            has_spoken = True
            terminal.echo(f"waiting for {others} to join at {address} ...", err=True)
        if waited > timeout:
            # JAX's thread cannot be stopped, and would abort the process at its exit.
            give_up(
                f"--coordinator {address}: {others} did not join within {timeout} seconds"
                f"{_what_answers(address)}; start them all, with the same address, or wait longer "
                "by --coordinator-timeout"
            )


def _what_answers(address: str) -> str:
    """Says, for the error, whether anything listens at the address."""
    try:
        socket.create_connection(parse_address(address), timeout=1).close()
    except (OSError, ValueError) as error:
        if address == "auto":
            return ""
        return f", and nothing answers there ({getattr(error, 'strerror', None) or error})"
    return ""


def _check_can_listen(host: str, port: int) -> None:
    """Raises ValueError unless this machine can listen at an address; JAX would crash."""
    what = f"--coordinator {host}:{port}: process 0 listens there, but"
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ValueError(f"{what} the name {host!r} is not known here") from None

    # A name can stand for several addresses, of which one is enough.
    reason = ""
    for family, kind, protocol, _, place in places:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
            return
        except OSError as error:
            reason = error.strerror or str(error)
    raise ValueError(
        f"{what} it cannot: {reason}; give a free port of an address that this machine has"
    )
