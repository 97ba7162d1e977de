"""What stands in for systemd in tests: it listens for notifications, and hands over sockets."""

from __future__ import annotations

import fcntl
import queue
import socket
import sys
import threading
from collections.abc import Callable

PATIENCE_S = 60


class ServiceManager:
    """Listens where NOTIFY_SOCKET says, a path or a name in the abstract namespace."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def close(self) -> None:
        self._socket.close()

    def heard(self) -> list[list[str]]:
        """The lines of each message since the last look."""
        messages = []
        self._socket.setblocking(False)
        while True:
            try:
                messages.append(self._socket.recv(4096).decode().split("\n"))
            except BlockingIOError:
                return messages


class AttentiveManager(ServiceManager):
    """One that takes messages as they come, as real ones do: the kernel may keep no more than ten."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._messages: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while message := self._socket.recv(4096):
            self._messages.put(message.decode().split("\n"))

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self.address)
        self._reader.join()
        super().close()

    def heard(self) -> list[list[str]]:
        """The messages since the last look, as far as they have come."""
        messages = []
        while not self._messages.empty():
            messages.append(self._messages.get())
        return messages

    def until(self, found: Callable[[list[str]], bool]) -> list[list[str]]:
        """The messages up to the first of which ``found`` holds. Waits for it."""
        messages: list[list[str]] = []
        while not messages or not found(messages[-1]):
            try:
                messages.append(self._messages.get(timeout=PATIENCE_S))
            except queue.Empty:
                raise AssertionError(f"it was never said, only {messages}") from None
        return messages

    def until_status(self, words: str) -> list[list[str]]:
        """The messages up to a status line with these words."""
        return self.until(lambda message: any(line.startswith("STATUS=") and words in line for line in message))


_HAND_OVER = """
import os, sys
count = int(sys.argv[1])
for number, fd in enumerate(map(int, sys.argv[2 : 2 + count]), 3):
    os.dup2(fd, number)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2 + count], sys.argv[2 + count :])
"""


def handing_over(*sockets: socket.socket) -> list[str]:
    """What to write before a command so that it is handed these sockets, in this order. They must be passed to it."""
    for sock in sockets:
        assert sock.fileno() >= 3 + len(sockets), "its number is one that it is to be copied to"
    return [sys.executable, "-c", _HAND_OVER, str(len(sockets)), *(str(sock.fileno()) for sock in sockets)]


def listening(host: str = "127.0.0.1", *, path: str = "") -> socket.socket:
    """A socket to hand over, with a number that is out of the way: TCP, or Unix with a path."""
    with socket.socket(socket.AF_UNIX if path else socket.AF_INET) as sock:
        sock.bind(path or (host, 0))
        sock.listen()
        return socket.socket(fileno=fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 50))
