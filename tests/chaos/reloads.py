"""Kill a server, or the process that checks its bundle, at random moments of a reload under load.

Usage: python -m tests.chaos.reloads [--times N] [--seed N]

After a kill of the server, none of its processes is left, no file is left or changed, and the next
server starts. After a kill of the process that checks the bundle, every request is answered, and
the next reload works. In half of the rounds, that process also measures the engines, in processes
of its own.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from resdeploy.filesystem import sha256
from tests.chaos.chaos import SIZE, Scenario, working_folder, write_data
from tests.serving_process import PATIENCE, ServerProcess, is_running, tensor_request

MARK = "RESDEPLOY_CHAOS"  # environment variable that all processes of one server have
SECONDS = 8.0  # a reload that also measures the engines takes 7 s on a quiet machine


class Clients:
    """Two clients that send requests until the server ends, or they are stopped."""

    def __init__(self, port: int) -> None:
        self.statuses: Counter[int | str] = Counter()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(port,)) for _ in range(2)]
        for thread in self._threads:
            thread.start()

    def _send(self, port: int) -> None:
        body, headers = tensor_request(np.zeros((1, SIZE, SIZE, 3), np.uint8))
        while not self._stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            try:
                connection.request("POST", "/v2/models/kept/infer", body, headers)
                self.statuses[connection.getresponse().status] += 1
            except (OSError, http.client.HTTPException) as error:
                self.statuses[type(error).__name__] += 1
                time.sleep(0.1)
            finally:
                connection.close()
            time.sleep(0.01)

    def stop(self) -> Counter[int | str]:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self.statuses


def marked(mark: str) -> list[int]:
    """Return the running processes of the server with this mark."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found += [int(entry.name)] if is_running(entry.name) else []
    return found


def checking(mark: str) -> list[int]:
    """Return the process of this server that checks a bundle, if there is one."""
    found = []
    for process in marked(mark):
        with suppress(OSError):
            if b"loading_process" in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
    return found


def contents() -> dict[str, str]:
    """Return the sha256 of the files that a server may see; none may be added or changed."""
    files = [path for path in Path().rglob("*") if path.is_file() and path.suffix != ".log"]
    speeds = Path("cache/resdeploy/speeds")
    return {
        str(path): sha256(path.read_bytes())
        for path in files
        if not (path.parent == speeds and path.suffix == ".json" and path.name[0] != ".")
    }


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def start_server(mark: str) -> ServerProcess:
    """Start a server whose temporary files have a folder of their own."""
    environment = {MARK: mark, "TMPDIR": str(Path("tmp").absolute())}
    options = ("--backend", "auto", "--threads", "1")
    return ServerProcess("kept.bundle", *options, environment=environment).until_ready()


def handles(server: ServerProcess) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def reload(server: ServerProcess, *, measure: bool) -> int:
    """Ask for a reload; return the number of lines that report one so far."""
    if measure:
        shutil.rmtree("cache/resdeploy/speeds", ignore_errors=True)
    manifest = Path("kept.bundle/manifest.json")
    manifest.write_text(manifest.read_text().rstrip() + "\n" * (1 + time.monotonic_ns() % 997))
    before = count(server, "serving")
    server.send(signal.SIGHUP)
    return before


def count(server: ServerProcess, message: str) -> int:
    return sum(str(line.get("message")).startswith(message) for line in server.log)


def disturb(server: ServerProcess, mark: str, chance: random.Random) -> str:
    """Kill the server or its checking process in a reload; return what happened."""
    most = handles(server) + 1  # an idle connection may not be closed yet
    clients = Clients(server.port)
    kill_server, measure = chance.random() < 0.5, chance.random() < 0.5
    served = reload(server, measure=measure)
    before = contents()
    if chance.random() < 0.5:  # the server itself loads the bundle when the check has ended
        until(lambda: bool(checking(mark)) or count(server, "serving") > served)
        until(lambda: not checking(mark))
        time.sleep(chance.uniform(0, 0.5))
    else:
        time.sleep(chance.uniform(0, SECONDS if measure else SECONDS / 4))
    victims = checking(mark)
    if kill_server:
        server.process.kill()
        until(lambda: not marked(mark))
        clients.stop()
        assert contents() == before, contents().keys() ^ before.keys()
        return f"server killed {'while' if victims else 'before or after'} the check"
    failed = count(server, "reload failed")
    for process in victims:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    until(lambda: count(server, "serving") > served or count(server, "reload failed") > failed)
    outcome = "failed" if count(server, "reload failed") > failed else "worked"
    served = reload(server, measure=False)
    until(lambda: count(server, "serving") > served)
    statuses = clients.stop()
    assert set(statuses) <= {200, 503}, statuses
    assert statuses[200], statuses
    until(lambda: handles(server) <= most)
    return f"check {'killed' if victims else 'not running'}, reload {outcome}"


def run_rounds() -> None:
    """Disturb servers as often as the command line says, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    outcomes: Counter[str] = Counter()
    with working_folder():
        os.environ["XDG_CACHE_HOME"] = str(Path("cache").absolute())
        write_data(Path())
        export = Scenario("export", "export", "small.pth", "--image-size", str(SIZE),
                          output="kept.bundle")  # fmt: skip
        assert export.run() == 0, export.log.read_text()
        Path("tmp").mkdir()
        number = 0
        while number < options.times:
            mark = str(number)
            with start_server(mark) as server:
                while number < options.times and server.process.poll() is None:
                    outcomes[outcome := disturb(server, mark, chance)] += 1
                    number += 1
                    print(f"{number}: {outcome}", flush=True)
    for text, times in outcomes.most_common():
        print(f"{times:3} times: {text}")


if __name__ == "__main__":
    run_rounds()
