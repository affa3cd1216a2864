"""Carries bytes between the link to the host and descriptors in the guest, within the credit of each channel.

One thread, one epoll. What cannot be written is kept, at most `WINDOW` bytes a channel; what may not be sent is not
read. Knows nothing of what the channels are for.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket

from lockstep.sandbox.guest import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_LINK_READ_BYTES = 64 * 2**10
_DORMANT_S = 0.02


class Channel:
    """One channel: where its bytes come from in the guest, and where the host's bytes go; -1 for no such way."""

    def __init__(self, number: int, source: int, sink: int) -> None:
        self.number = number
        self.source = source
        self.sink = sink
        self.credit = wire.Credit()
        self.pending = bytearray()
        self.ending = False

    @property
    def done(self) -> bool:
        return self.source < 0 and self.sink < 0


class Carrier:
    """The channels of one link. `on_control` gets each control message of the host."""

    def __init__(self, on_control: Callable[[wire.Message], None]) -> None:
        self._on_control = on_control
        self._poll = select.epoll()
        self._watched: dict[int, int] = {}
        self._calls: dict[int, Callable[[int], None]] = {}
        self._channels: dict[int, Channel] = {}
        self._next_connection = wire.FIRST_CONNECTION
        self._link = -1
        self._link_ends = False
        self._out = bytearray()
        self._decoder = wire.Decoder(wire.CONTROL_BYTES)

    # The link

    def set_link(self, descriptor: int, *, ends: bool) -> None:
        """Talk over this descriptor from now on. `ends`: its end is final, a new one will come; else it may return."""
        self._drop_link()
        self._link, self._link_ends = descriptor, ends
        self._watch(descriptor, select.EPOLLIN, self._on_link)

    def renew(self, nonce: bytes) -> None:
        """A new host is at the other end: what was on its way is void, and all credit is as at the start.

        The nonce is sent as it stands, so that the host finds where frames begin though one was cut off before.
        """
        self._out[:] = nonce
        for number in [number for number in self._channels if number >= wire.FIRST_CONNECTION]:
            self._close(self._channels[number])
        for channel in self._channels.values():
            channel.credit = wire.Credit()
            self._update(channel)

    def tell(self, message: wire.Message) -> None:
        self._send(wire.encode_control(message))

    def _send(self, frame: bytes) -> None:
        self._out += frame
        self._flush()

    def _flush(self) -> None:
        while self._out and self._link >= 0:
            try:
                sent = os.write(self._link, self._out[: wire.CHUNK])
            except BlockingIOError:
                break
            except OSError:
                self._link_lost()
                return
            del self._out[:sent]
        if self._link in self._watched:
            self._watch(self._link, select.EPOLLIN | (select.EPOLLOUT if self._out else 0), self._on_link)

    def _on_link(self, event: int) -> None:
        if event & select.EPOLLOUT:
            self._flush()
        if not event & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return
        data: bytes | None
        try:
            data = os.read(self._link, _LINK_READ_BYTES)
        except BlockingIOError:
            data = b"" if event & select.EPOLLHUP else None
        except OSError:
            data = b""
        if data == b"":
            self._link_lost()
        elif data:
            try:
                for kind, number, payload in self._decoder.feed(data):
                    self._receive(kind, number, payload)
            except wire.WireError:
                self._link_lost()

    def _link_lost(self) -> None:
        self._out.clear()
        self._decoder = wire.Decoder(wire.CONTROL_BYTES)
        if self._link_ends:
            self._drop_link()
        else:
            self._forget(self._link)  # its hang-up would be reported without end; `turn` looks whether it came back

    def _drop_link(self) -> None:
        if self._link >= 0:
            self._forget(self._link)
            os.close(self._link)
            self._link = -1

    # The loop

    def turn(self) -> None:
        """Wait until something can be carried, and carry it."""
        dormant = self._link >= 0 and self._link not in self._watched
        for descriptor, event in self._poll.poll(_DORMANT_S if dormant else -1):
            if call := self._calls.get(descriptor):
                call(event)
        if dormant and self._is_back():
            self._watch(self._link, select.EPOLLIN, self._on_link)

    def watch(self, descriptor: int, call: Callable[[int], None]) -> None:
        """Call this whenever the descriptor can be read."""
        self._watch(descriptor, select.EPOLLIN, call)

    def _is_back(self) -> bool:
        probe = select.poll()
        probe.register(self._link, select.POLLIN)
        return not any(event & select.POLLHUP for _, event in probe.poll(0))

    def _watch(self, descriptor: int, mask: int, call: Callable[[int], None]) -> None:
        self._calls[descriptor] = call
        if descriptor not in self._watched:
            self._poll.register(descriptor, mask)
        elif self._watched[descriptor] != mask:
            self._poll.modify(descriptor, mask)
        self._watched[descriptor] = mask

    def _forget(self, descriptor: int) -> None:
        self._calls.pop(descriptor, None)
        if self._watched.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    # Channels

    def add(self, number: int, *, source: int = -1, sink: int = -1) -> None:
        """Carry from `source` to the host and from the host to `sink`; both are non-blocking and ours from now on."""
        channel = Channel(number, source, sink)
        self._channels[number] = channel
        self._update(channel)

    def connect(self, connection: socket.socket) -> None:
        """Carry this connection to the host, which knows where it leads."""
        number, self._next_connection = self._next_connection, self._next_connection + 1
        self._send(wire.encode(wire.OPEN, number))
        descriptor = connection.detach()
        self.add(number, source=descriptor, sink=descriptor)

    def is_silent(self, numbers: tuple[int, ...]) -> bool:
        """Whether nothing is on its way from these channels' sources to the host, or from the host to their sinks."""
        channels = [self._channels[number] for number in numbers if number in self._channels]
        readable = select.poll()
        for channel in channels:
            if channel.source >= 0:
                readable.register(channel.source, select.POLLIN)
        return not readable.poll(0) and not self._out and not any(channel.pending for channel in channels)

    def is_open(self, number: int) -> bool:
        return number in self._channels

    def _receive(self, kind: int, number: int, payload: bytes) -> None:
        if kind == wire.CONTROL:
            self._on_control(wire.control_message(payload))
            return
        channel = self._channels.get(number)
        if channel is None:
            return  # closed here while that was on its way
        if kind == wire.DATA:
            channel.pending += payload
            self._write(channel)
        elif kind == wire.END:
            channel.ending = True
            self._write(channel)
        elif kind == wire.CREDIT:
            channel.credit.grant(payload)
            self._update(channel)
        elif kind == wire.RESET:
            self._close(channel)

    def _write(self, channel: Channel) -> None:
        written = 0
        try:
            while channel.pending and channel.sink >= 0:
                size = os.write(channel.sink, channel.pending[: wire.CHUNK])
                del channel.pending[:size]
                written += size
        except BlockingIOError:
            pass
        except OSError:  # nobody reads any more
            written += len(channel.pending)
            channel.pending.clear()
            channel.ending = True
        if channel.sink < 0:
            written += len(channel.pending)
            channel.pending.clear()
        if written:
            self._send(wire.encode_credit(channel.number, written))
        if channel.ending and not channel.pending:
            self._close_sink(channel)
        self._update(channel)

    def _read(self, channel: Channel) -> None:
        try:
            data = os.read(channel.source, min(wire.CHUNK, channel.credit.left))
        except BlockingIOError:
            return
        except OSError:
            self._send(wire.encode(wire.RESET, channel.number))
            self._close(channel)
            return
        if data:
            channel.credit.take(len(data))
            self._send(wire.encode(wire.DATA, channel.number, data))
        else:
            self._send(wire.encode(wire.END, channel.number))
            self._close_source(channel)
        self._update(channel)

    def _update(self, channel: Channel) -> None:
        """Watch for what this channel can use now, and nothing else: a hang-up is reported to whoever watches."""
        wanted: dict[int, int] = {}
        if channel.source >= 0 and channel.credit.left:
            wanted[channel.source] = select.EPOLLIN
        if channel.sink >= 0 and channel.pending:
            wanted[channel.sink] = wanted.get(channel.sink, 0) | select.EPOLLOUT
        for descriptor in {channel.source, channel.sink} - {-1}:
            if mask := wanted.get(descriptor):
                self._watch(descriptor, mask, lambda event: self._on_channel(channel, event))
            else:
                self._forget(descriptor)
        if channel.done:
            self._channels.pop(channel.number, None)

    def _on_channel(self, channel: Channel, event: int) -> None:
        if channel.pending and event & (select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP):
            self._write(channel)
        if channel.source >= 0 and channel.credit.left and event & ~select.EPOLLOUT:
            self._read(channel)

    def _close_sink(self, channel: Channel) -> None:
        if channel.sink >= 0 and channel.sink == channel.source:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(channel.sink)) as connection:
                connection.shutdown(socket.SHUT_WR)
        else:
            self._discard(channel.sink)
        channel.sink = -1

    def _close_source(self, channel: Channel) -> None:
        if channel.source != channel.sink:
            self._discard(channel.source)
        channel.source = -1

    def _close(self, channel: Channel) -> None:
        for descriptor in {channel.source, channel.sink}:
            self._discard(descriptor)
        channel.source = channel.sink = -1
        self._channels.pop(channel.number, None)

    def _discard(self, descriptor: int) -> None:
        if descriptor >= 0:
            self._forget(descriptor)
            os.close(descriptor)
