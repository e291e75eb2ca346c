"""HTTP/2 against the implementations of others: python-h2 keeps the state of the client, hpack packs its
fields with Huffman codes and a table, hyperframe makes the frames that python-h2 would not.

http2.py HOST:PORT CONTROL, where both speak plain HTTP. Prints one line and ends with 0, or says what
is wrong.
"""

import socket
import sys
import urllib.request

import httpx
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    PingAckReceived,
    ResponseReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, CONTROL = sys.argv[1], sys.argv[2]


def connect():
    host, port = DATA.rsplit(":", 1)
    link = socket.create_connection((host, int(port)))
    link.settimeout(20)
    return link


def publish(text):
    with urllib.request.urlopen(f"http://{CONTROL}/topics/t", data=text.encode()) as answer:
        assert answer.status == 200


def fields(method, path, *more):
    return [(":method", method), (":path", path), (":scheme", "http"), (":authority", DATA), *more]


class Client:
    """python-h2, and what it makes of the server."""

    def __init__(self, settings=None):
        self.link = connect()
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.body, self.status, self.ended, self.seen = {}, {}, set(), []
        self.h2.initiate_connection()
        if settings:
            self.h2.update_settings(settings)
        self.flush()

    def flush(self):
        self.link.sendall(self.h2.data_to_send())

    def ask(self, method, path, *more, body=None):
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, fields(method, path, *more), end_stream=body is None)
        self.flush()
        if body is not None:
            self.send(stream, body)
        return stream

    def send(self, stream, body):
        while body:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room == 0:
                self.hear()
                continue
            self.h2.send_data(stream, body[:room])
            body = body[room:]
            self.flush()
        self.h2.end_stream(stream)
        self.flush()

    def hear(self, gives_back=True):
        bytes = self.link.recv(65536)
        assert bytes, "the server ends the connection"
        for event in self.h2.receive_data(bytes):
            self.seen.append(event)
            if isinstance(event, ResponseReceived):
                self.status[event.stream_id] = dict(event.headers)[":status"]
            elif isinstance(event, DataReceived):
                self.body[event.stream_id] = self.body.get(event.stream_id, b"") + event.data
                if gives_back:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                self.ended.add(event.stream_id)
            elif isinstance(event, ConnectionTerminated):
                raise AssertionError(f"the server says farewell: {event}")
        self.flush()

    def until(self, is_done, gives_back=True):
        while not is_done():
            self.hear(gives_back)

    def texts(self, stream):
        lines = self.body.get(stream, b"").decode().splitlines()
        return [line[6:] for line in lines if line.startswith("data: ")]


def streams_are_whole():
    client = Client()
    streams = [client.ask("GET", "/sse/t") for _ in range(30)]
    client.until(lambda: len(client.status) == 30)
    said = [f"{at} {'x' * at * 100}" for at in range(20)]
    for text in said:
        publish(text)
    client.until(lambda: all(len(client.texts(stream)) == 20 for stream in streams))
    assert all(client.texts(stream) == said for stream in streams)
    health = client.ask("GET", "/healthz")
    client.until(lambda: health in client.ended)
    assert client.body[health] == b"ok\n"
    client.h2.ping(b"12345678")
    client.flush()
    client.until(lambda: any(isinstance(event, PingAckReceived) for event in client.seen))


def windows_are_kept():
    """python-h2 itself finds fault with a byte beyond a window."""
    client = Client({SettingCodes.INITIAL_WINDOW_SIZE: 50})
    client.until(lambda: any(isinstance(event, SettingsAcknowledged) for event in client.seen))
    slow = client.ask("GET", "/sse/t")
    client.until(lambda: slow in client.status, gives_back=False)
    publish("y" * 3000)
    client.until(lambda: len(client.body.get(slow, b"")) == 50, gives_back=False)
    while "y" * 3000 not in client.texts(slow):
        before = len(client.body[slow])
        client.h2.increment_flow_control_window(100, slow)
        client.flush()
        client.until(lambda: len(client.body[slow]) > before, gives_back=False)
    client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    client.flush()
    publish("behind")
    client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 65535})
    client.flush()
    client.until(lambda: "behind" in client.texts(slow))
    client.h2.reset_stream(slow)
    client.flush()


def publishes_are_taken():
    client = Client()
    for body in [b"short", b"z" * 200_000]:
        for more in [(), (("content-length", str(len(body))),)]:
            post = client.ask("POST", "/topics/t", *more, body=body)
            client.until(lambda: post in client.ended)
            assert client.status[post] == "200", client.body[post]
    post = client.ask("POST", "/topics/t", body=b"")
    client.until(lambda: post in client.ended)
    assert client.status[post] == "200"
    large = client.h2.get_next_available_stream_id()
    client.h2.send_headers(large, fields("POST", "/topics/t", ("content-length", "9999999")))
    client.flush()
    client.until(lambda: large in client.status)
    assert client.status[large] == "413"


def httpx_reads_beside_a_publish():
    with httpx.Client(http1=False, http2=True, timeout=20) as client:
        with client.stream("GET", f"http://{DATA}/sse/t") as answer:
            assert answer.http_version == "HTTP/2", answer.http_version
            lines = answer.iter_lines()
            next(lines)
            said = client.post(f"http://{DATA}/topics/t", content=b"by httpx")
            assert said.status_code == 200, said.text
            assert "data: by httpx" in lines


def frame(kind, stream, flags=(), **more):
    made = kind(stream, **more)
    for one in flags:
        made.flags.add(one)
    return made.serialize()


def headers(stream, block, *flags):
    return frame(HeadersFrame, stream, flags, data=block)


def raw(*frames):
    """Sends frames as they are. Returns the code with which the server ends the connection, and those
    of resets by stream."""
    link = connect()
    link.sendall(PREFACE + b"".join(frames))
    heard, resets, code = b"", {}, None
    try:
        while code is None:
            bytes = link.recv(65536)
            if not bytes:
                break
            heard += bytes
            while len(heard) >= 9 and len(heard) >= 9 + int.from_bytes(heard[:3], "big"):
                length, kind = int.from_bytes(heard[:3], "big"), heard[3]
                stream, payload = int.from_bytes(heard[5:9], "big"), heard[9 : 9 + length]
                heard = heard[9 + length :]
                if kind == 3:
                    resets[stream] = int.from_bytes(payload, "big")
                elif kind == 7:
                    code = int.from_bytes(payload[4:8], "big")
                elif kind == 6:
                    # All before our ping was read.
                    return None, resets
    except ConnectionResetError:
        pass
    return code, resets


def cases():
    """RFC 9113 and 7541: what is said, and the code of the connection, or of stream 1."""
    settings, ping = SettingsFrame(0).serialize(), PingFrame(0, opaque_data=b"12345678").serialize()
    block = lambda *pairs: Encoder().encode(list(pairs))
    good = block(*fields("GET", "/sse/t"))
    get = headers(1, good, "END_HEADERS", "END_STREAM")
    without = lambda name: block(*[pair for pair in fields("GET", "/sse/t") if pair[0] != name])
    request = lambda block: headers(1, block, "END_HEADERS", "END_STREAM")
    table = Encoder()
    twice = [headers(at, table.encode(fields("GET", "/healthz", ("a", "b" * 99))), "END_HEADERS", "END_STREAM") for at in (1, 3)]
    ack = frame(SettingsFrame, 0, ["ACK"])
    of_connection = [
        ("3.4 no SETTINGS first", [ping], 1),
        ("4.2 a frame beyond the largest size", [settings, b"\0\x40\x01\0\0\0\0\0\x01" + bytes(16385)], 6),
        ("4.3 a block within which another frame stands", [settings, headers(1, good), ping], 1),
        ("5.1 DATA on an idle stream", [settings, frame(DataFrame, 1, data=b"x")], 1),
        ("5.1 DATA behind a reset of its own", [settings, get, frame(RstStreamFrame, 1, error_code=8), frame(DataFrame, 1, data=b"x")], 5),
        ("5.1.1 an even number", [settings, headers(2, good, "END_HEADERS")], 1),
        ("6.3 PRIORITY that is too short", [settings, b"\0\0\x04\x02\0\0\0\0\x01\0\0\0\0"], 6),
        ("6.4 RST_STREAM on an idle stream", [settings, frame(RstStreamFrame, 1)], 1),
        ("6.5.2 ENABLE_PUSH", [frame(SettingsFrame, 0, settings={2: 2})], 1),
        ("6.5.2 INITIAL_WINDOW_SIZE", [frame(SettingsFrame, 0, settings={4: 2**31})], 3),
        ("6.5.2 MAX_FRAME_SIZE", [frame(SettingsFrame, 0, settings={5: 100})], 1),
        ("6.6 PUSH_PROMISE", [settings, get, frame(PushPromiseFrame, 1, promised_stream_id=2)], 1),
        ("6.9.1 a window that is too large", [settings, frame(WindowUpdateFrame, 0, window_increment=2**31 - 1)], 3),
        ("6.10 CONTINUATION of nothing", [settings, frame(ContinuationFrame, 1, data=good)], 1),
        ("7541 6.1 an index that nobody told", [settings, request(b"\xbe")], 9),
        ("7541 5.2 a text that ends within a code", [settings, request(b"\x00\x81\xff\x81\xff")], 9),
        ("10.5.1 a byte for each 4,000 of fields", [settings, request(b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000 + b"\xbe" * 4000)], 11),
        ("9113 4.3.1 no size of the table behind our SETTINGS", [settings, twice[0], ack, twice[1]], 9),
    ]
    of_stream = [
        ("8.3.1 no method", request(without(":method")), 1),
        ("8.3.1 no path", request(without(":path")), 1),
        ("8.3.1 no scheme", request(without(":scheme")), 1),
        ("8.3 an unknown pseudo field", request(block((":x", "y"), *fields("GET", "/"))), 1),
        ("8.3 a pseudo field twice", request(block((":path", "/"), *fields("GET", "/"))), 1),
        ("8.3 a pseudo field behind others", request(block(("a", "b"), *fields("GET", "/"))), 1),
        ("8.2.1 a name in capitals", request(block(*fields("GET", "/", ("A", "b")))), 1),
        ("8.2.1 a line break in a value", request(block(*fields("GET", "/", ("a", "b\r\nc")))), 1),
        ("8.2.2 Connection", request(block(*fields("GET", "/", ("connection", "close")))), 1),
        ("8.1.1 a body of another length", headers(1, block(*fields("POST", "/topics/t", ("content-length", "3"))), "END_HEADERS") + frame(DataFrame, 1, ["END_STREAM"], data=b"four"), 1),
        ("5.1 DATA behind the end", get + frame(DataFrame, 1, data=b"x"), 5),
        ("5.4.2 DATA behind a reset of ours", headers(1, without(":method"), "END_HEADERS") + frame(DataFrame, 1, data=b"x"), 1),
        ("6.9 no more room", get + b"\0\0\x04\x08\0\0\0\0\x01\0\0\0\0", 1),
        ("6.9.1 a window of a stream that is too large", get + frame(WindowUpdateFrame, 1, window_increment=2**31 - 1), 3),
    ]
    count = 0
    for what, frames, code in of_connection:
        found = raw(*frames)
        assert found[0] == code, f"{what}: {found} instead of {code}"
        count += 1
    for what, frames, code in of_stream:
        found = raw(settings, frames, ping)
        assert found == (None, {1: code}), f"{what}: {found} instead of {code}"
        count += 1
    # A table before our SETTINGS, and fields in several frames.
    for what, frames in [
        ("7541 2.3.2 fields from the table", twice),
        ("6.10 a block in parts", [headers(1, good[:7], "END_STREAM"), frame(ContinuationFrame, 1, data=good[7:9]), frame(ContinuationFrame, 1, ["END_HEADERS"], data=good[9:])]),
        ("6.3 PRIORITY", [frame(PriorityFrame, 7, depends_on=3), get]),
        ("6.8 a farewell of a client", [get, frame(GoAwayFrame, 0)]),
        ("5.5 an unknown frame", [b"\0\0\x03\xee\xff\0\0\0\x00abc", get]),
        ("6.1 padding", [headers(1, block(*fields("POST", "/topics/t")), "END_HEADERS") + frame(DataFrame, 1, ["END_STREAM", "PADDED"], data=b"x", pad_length=200)]),
    ]:
        found = raw(settings, *frames, ping)
        assert found == (None, {}), f"{what}: {found}"
        count += 1
    return count


streams_are_whole()
windows_are_kept()
publishes_are_taken()
httpx_reads_beside_a_publish()
print(f"{cases()} cases of RFC 9113 and 7541")
