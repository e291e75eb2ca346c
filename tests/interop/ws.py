"""Python's WebSocket clients: prints what one of them hears, one JSON line each, and closes after
the text "bye".

usage: ws.py websockets|tornado URL
"""

import asyncio
import base64
import json
import sys


def say(**heard):
    print(json.dumps(heard), flush=True)


def tell(message):
    if isinstance(message, bytes):
        say(binary=base64.b64encode(message).decode())
    else:
        say(data=message)


async def websockets(url):
    import websockets.asyncio.client as client
    from websockets.exceptions import ConnectionClosed

    async with client.connect(url, subprotocols=["chat", "other"]) as socket:
        say(open=socket.subprotocol)
        await (await socket.ping("here?"))
        say(pong="here?")
        while True:
            try:
                message = await socket.recv()
            except ConnectionClosed as closed:
                return say(close=closed.rcvd.code)
            tell(message)
            if message == "bye":
                await socket.close(3001, "done")


async def tornado(url):
    from tornado.websocket import websocket_connect

    socket = await websocket_connect(url, subprotocols=["chat", "other"], compression_options={})
    say(open=socket.selected_subprotocol)
    pong = asyncio.get_running_loop().create_future()
    socket.on_pong = pong.set_result
    socket.ping(b"here?")
    say(pong=(await pong).decode())
    while (message := await socket.read_message()) is not None:
        tell(message)
        if message == "bye":
            socket.close(3001, "done")
    say(close=socket.close_code)


name, url = sys.argv[1:]
asyncio.run({"websockets": websockets, "tornado": tornado}[name](url))
