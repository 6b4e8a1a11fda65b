"""A TCP proxy on loopback that stands between a client and one broker and does harm when told to."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Self

CHUNK_BYTES = 65536
QUEUED_CHUNKS = 64
CALL_TIMEOUT_S = 10.0
THROTTLE_STEP_S = 0.05

_Queue = asyncio.Queue[tuple[float, bytes]]


@dataclass
class Flow:
    """One direction of all the proxy's connections; what a test sets holds from the next bytes on.

    Attributes:
        delay_ms: How much later bytes leave than they came; it does not limit how many are on the way.
        bytes_per_s: The rate of each connection, 0 for no limit.
        swallow: Takes the bytes and forwards none of them.
        forwarded_bytes: How many have been forwarded, over all connections.
        swallowed_bytes: How many have been swallowed, over all connections.
    """

    delay_ms: float = 0.0
    bytes_per_s: float = 0.0
    swallow: bool = False
    forwarded_bytes: int = 0
    swallowed_bytes: int = 0
    _cut_at: int | None = None

    def cut_after(self, n_bytes: int) -> None:
        """Lets `n_bytes` more through, then breaks every connection, once."""
        self._cut_at = self.forwarded_bytes + n_bytes

    def _allowed(self, n_bytes: int) -> int:
        """How many of the next bytes may pass before the cut."""
        return n_bytes if self._cut_at is None else min(n_bytes, self._cut_at - self.forwarded_bytes)

    def _take_cut(self) -> bool:
        """Whether the cut is due; it is so once."""
        if self._cut_at is None or self.forwarded_bytes < self._cut_at:
            return False
        self._cut_at = None
        return True


@dataclass(eq=False)
class _Link:
    """A client's connection and its counterpart to the broker."""

    client: asyncio.StreamWriter
    broker: asyncio.StreamWriter

    def abort(self) -> None:
        for writer in (self.client, self.broker):
            # Closing alone would leave the connection open while a forked child holds a copy of it.
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
            writer.transport.abort()


class Proxy:
    """Forwards connections to one target from a thread of its own.

    Attributes:
        up: What goes from clients to the broker.
        down: What comes from the broker to clients.
        connections: How many clients have connected so far.

    Args:
        target_host: Where the broker listens; it need not listen yet.
        target_port: Its port.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self.up = Flow()
        self.down = Flow()
        self.connections = 0
        self._target = (target_host, target_port)
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._going = asyncio.Event()
        self._going.set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        opening = asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(opening, self._loop).result(CALL_TIMEOUT_S)
        self.port: int = self._server.sockets[0].getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        """Where clients connect to."""
        return f"127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        """How many connections to the broker stand now."""
        return len(self._links)

    def cut_after(self, n_bytes: int, direction: Literal["up", "down"]) -> None:
        """Lets `n_bytes` more through in one direction, then breaks every connection, once."""
        flow = self.up if direction == "up" else self.down
        self._call(lambda: flow.cut_after(n_bytes))

    def pause(self) -> None:
        """Holds all bytes in both directions; connections stay open and new ones are held too."""
        self._call(self._going.clear)

    def resume(self) -> None:
        """Forwards again, what was held first."""
        self._call(self._going.set)

    def kill_connections(self) -> None:
        """Breaks every connection; clients may connect again at once."""
        self._call(self._abort_all)

    def stop_swallowing(self) -> None:
        """Forwards again, on new connections: on the old ones, which it breaks, something is missing."""

        def stop() -> None:
            self.up.swallow = self.down.swallow = False
            self._abort_all()

        self._call(stop)

    def close(self) -> None:
        """Stops listening, breaks every connection and ends the thread."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(CALL_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_TIMEOUT_S)
        self._loop.close()

    def _call(self, action: Callable[[], None]) -> None:
        """Runs `action` in the proxy's thread and returns when it is done."""
        done: Future[None] = Future()

        def run() -> None:
            action()
            done.set_result(None)

        self._loop.call_soon_threadsafe(run)
        done.result(CALL_TIMEOUT_S)

    def _abort_all(self) -> None:
        for link in self._links:
            link.abort()

    async def _shut(self) -> None:
        for listening in self._server.sockets:
            listening.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._abort_all()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a coroutine: asyncio would report its cancelling, at close, as an error.
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._going.wait()
            broker_reader, broker_writer = await asyncio.open_connection(*self._target)
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
            return
        link = _Link(writer, broker_writer)
        self._links.add(link)
        up, down = _queue(), _queue()
        senders = [
            self._loop.create_task(self._send(up, broker_writer, self.up)),
            self._loop.create_task(self._send(down, writer, self.down)),
        ]
        receivers = [
            self._loop.create_task(self._receive(reader, up, self.up)),
            self._loop.create_task(self._receive(broker_reader, down, self.down)),
        ]
        try:
            # The first direction to end ends the connection: no Kafka client half-closes.
            await asyncio.wait(senders, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._links.discard(link)
            link.abort()
            for task in (*senders, *receivers):
                task.cancel()
            await asyncio.gather(*senders, *receivers, return_exceptions=True)

    async def _receive(self, reader: asyncio.StreamReader, queue: _Queue, flow: Flow) -> None:
        """Queues what comes, with the time at which it may go on; an empty chunk is the end."""
        chunk = b"-"
        while chunk:
            try:
                chunk = await reader.read(CHUNK_BYTES)
            except OSError:
                chunk = b""
            await queue.put((self._loop.time() + flow.delay_ms / 1000, chunk))

    async def _send(self, queue: _Queue, writer: asyncio.StreamWriter, flow: Flow) -> None:
        """Writes what is queued when its time has come."""
        # No buffer in this process: what has been drained has left it.
        writer.transport.set_write_buffer_limits(0)
        while True:
            due, chunk = await queue.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            await self._going.wait()
            if not chunk:
                return
            if flow.swallow:
                flow.swallowed_bytes += len(chunk)
            else:
                await self._forward(chunk, writer, flow)

    async def _forward(self, chunk: bytes, writer: asyncio.StreamWriter, flow: Flow) -> None:
        while chunk:
            await self._going.wait()
            rate = flow.bytes_per_s
            size = flow._allowed(len(chunk) if rate <= 0 else max(1, int(rate * THROTTLE_STEP_S)))
            passing, chunk = chunk[:size], chunk[size:]
            flow.forwarded_bytes += len(passing)
            writer.write(passing)
            await writer.drain()
            if flow._take_cut():
                self._abort_all()
                return
            if rate > 0:
                await asyncio.sleep(len(passing) / rate)


def _queue() -> _Queue:
    return asyncio.Queue(QUEUED_CHUNKS)
