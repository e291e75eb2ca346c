"""Python's readers of event streams: prints what one of them hears, one JSON line each, until it is
killed. None of them comes back by itself, so each is asked again with its last event id.

usage: sse.py httpx-sse|sseclient-py|tornado|http.client URL
"""

import asyncio
import json
import sys
import time


def say(**heard):
    print(json.dumps(heard), flush=True)


def headers(last_id):
    accept = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    return {**accept, "Last-Event-ID": last_id} if last_id else accept


class Ids:
    last = ""


def tell(event, ids):
    ids.last = event.id or ids.last
    named = {"name": event.event} if event.event not in ("", "message") else {}
    # An id alone opens a stream; it is no event.
    if event.data:
        say(data=event.data, id=ids.last, **named)


def httpx_sse(url, ids):
    import httpx
    import httpx_sse

    with httpx.Client(timeout=None) as client:
        # It takes text for ASCII.
        fields = {name: value.encode() for name, value in headers(ids.last).items()}
        with httpx_sse.connect_sse(client, "GET", url, headers=fields) as source:
            source.response.raise_for_status()
            say(open=None)
            for event in source.iter_sse():
                tell(event, ids)


def sseclient_py(url, ids):
    import requests
    import sseclient

    with requests.get(url, stream=True, headers=headers(ids.last)) as response:
        response.raise_for_status()
        say(open=None)
        for event in sseclient.SSEClient(response).events():
            tell(event, ids)


def tornado(url, ids):
    import sseclient
    from tornado.httpclient import AsyncHTTPClient, HTTPRequest

    # Tornado has no reader of event streams; sseclient-py's gets the pieces as tornado hands them
    # on.
    text = bytearray()

    def head(line):
        if line.startswith("HTTP/1.1 200"):
            say(open=None)

    def piece(data):
        text.extend(data)
        end = text.rfind(b"\n\n") + 2
        if end > 1:
            for event in sseclient.SSEClient([bytes(text[:end])]).events():
                tell(event, ids)
            del text[:end]

    request = HTTPRequest(
        url, headers=headers(ids.last), header_callback=head, streaming_callback=piece, request_timeout=0
    )

    async def fetch():
        await AsyncHTTPClient(force_instance=True).fetch(request)

    asyncio.run(fetch())


def http_client(url, ids):
    import http.client
    import ssl
    from urllib.parse import urlsplit

    import sseclient

    address = urlsplit(url)
    if address.scheme == "https":
        trust = ssl.create_default_context()
        connection = http.client.HTTPSConnection(address.hostname, address.port, context=trust)
    else:
        connection = http.client.HTTPConnection(address.hostname, address.port)
    # It takes text for Latin-1.
    fields = {name: value.encode() for name, value in headers(ids.last).items()}
    connection.request("GET", address.path, headers=fields)
    response = connection.getresponse()
    if response.status != 200:
        raise OSError(response.status)
    say(open=None)
    pieces = iter(lambda: response.read1(65536), b"")
    for event in sseclient.SSEClient(pieces).events():
        tell(event, ids)


def main():
    name, url = sys.argv[1:]
    clients = {"httpx-sse": httpx_sse, "sseclient-py": sseclient_py, "tornado": tornado}
    client = {**clients, "http.client": http_client}[name]
    ids = Ids()
    while True:
        try:
            client(url, ids)
            say(error="the stream has ended")
        except Exception as error:
            say(error=f"{type(error).__name__}: {error}")
        time.sleep(0.2)


main()
