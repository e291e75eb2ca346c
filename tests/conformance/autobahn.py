"""Autobahn's WebSocket cases against an echo of fanwave: at once, and through a relay that cuts what
the client sends into small pieces.

Every case must be OK, in its messages and in its close: "non-strict" fails too. Three cases judge
nothing, by Autobahn's own definition, and are "informational".

usage: autobahn.py FANWAVE PLACE
"""

import collections
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time

# Groups 12 and 13 are about permessage-deflate, which an echo does not offer.
INCLUDED = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"]
# So that a run that leaves some out does not pass.
CASES = 301
INFORMATIONAL = {"7.1.6", "7.13.1", "7.13.2"}
# Group 9 sends messages of 16 MiB.
FLAGS = ["--shards", "1", "--diagnostic-echo", "--message-in-bytes-max", "16MiB"]

# So many bytes of a connection are cut into at most PIECES pieces per read, with a pause behind
# each: short reads byte by byte. The rest is cut into larger pieces, because it is 200 MB in all.
SLOW_BYTES = 8 << 10
PIECES = 512
PAUSE_S = 10e-6


def start(program):
    """The server and the address of its data plane."""
    any_port = ["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--log", "warn"]
    server = subprocess.Popen([program, "serve", *any_port, *FLAGS], stdout=subprocess.PIPE, text=True)
    for line in server.stdout:
        if line.startswith("data plane "):
            host, port = line.split()[2].rsplit(":", 1)
            # The rest of its banner fits into the pipe.
            return server, (host, int(port))
    sys.exit("the server does not start")


def relay(server, seed):
    """Listens, and passes all that comes to `server` in pieces. Returns its address."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def accept():
        for number in range(sys.maxsize):
            client, _ = listener.accept()
            upstream = socket.create_connection(server)
            for end in (client, upstream):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            dice = random.Random(seed + number)
            for work in [(cut, client, upstream, dice), (pass_on, upstream, client)]:
                threading.Thread(target=work[0], args=work[1:], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()


def pass_on(source, sink):
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        sink.close()


def cut(source, sink, dice):
    passed = 0
    try:
        while data := source.recv(1 << 16):
            at = 0
            while at < len(data):
                slow = passed < SLOW_BYTES
                most = max(1, 2 * len(data) // PIECES) if slow else 1 << 14
                size = min(dice.randint(1, most), len(data) - at)
                sink.sendall(data[at : at + size])
                at += size
                passed += size
                if slow:
                    time.sleep(PAUSE_S)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        sink.close()


def judge(name, address, place):
    """Runs all cases once. Returns how many passed and failed."""
    report = os.path.join(place, "report")
    shutil.rmtree(report, ignore_errors=True)
    selection = [word for group in INCLUDED for word in ("-i", group)]
    command = [os.path.join(place, "bin", "kosoku"), "-m", "fuzzingclient", "-p", "4", "-o", report]
    kosoku = subprocess.run(
        [*command, *selection, "%s:%d" % address], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        with open(os.path.join(report, "index.json"), encoding="utf-8") as index:
            cases = next(iter(json.load(index).values()))
    except OSError:
        print(kosoku.stdout)
        cases = {}
    failed = passed = 0
    verdicts = collections.Counter()
    for case, result in sorted(cases.items()):
        said = {result["behavior"], result["behaviorClose"]}
        expected = {"INFORMATIONAL"} if case in INFORMATIONAL else {"OK"}
        verdicts[result["behavior"]] += 1
        if said == expected:
            passed += 1
        else:
            failed += 1
            print(f"Autobahn {name}: case {case} is {result['behavior']}, its close {result['behaviorClose']}")
    if len(cases) != CASES:
        print(f"Autobahn {name}: {len(cases)} cases were run, not {CASES}")
        failed += 1
    told = ", ".join(f"{count} {verdict.lower()}" for verdict, count in sorted(verdicts.items()))
    print(f"Autobahn {name}: {len(cases)} cases: {told}", flush=True)
    return passed, failed


def main():
    program, place = sys.argv[1:]
    server, address = start(program)
    try:
        seed = random.randrange(1 << 32)
        totals = [judge("whole", address, place)]
        totals.append(judge(f"in pieces (seed {seed})", relay(address, seed), place))
        if server.poll() is not None:
            print("Autobahn: the server has ended")
            totals.append((0, 1))
    finally:
        server.terminate()
        server.wait()
    passed, failed = map(sum, zip(*totals))
    word = "FAILED" if failed else "ok"
    print(f"test result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out")
    sys.exit(1 if failed else 0)


main()
