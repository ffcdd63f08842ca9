"""Thousands of malformed requests to a server, with a check of its responses and resources.

    python -m benchmarks.serving.malformed BUNDLE --count 10000

The requests are mutated tensors, truncated and hostile pictures, damaged forms, random bytes and
truncated requests, from a fixed seed. Meanwhile, slow clients send single bytes. With `--grpc`,
mutated messages and random bytes go to the gRPC port instead.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
from PIL import Image

from benchmarks.serving.payloads import tensor_head
from benchmarks.serving.servers import free_port, run_process
from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.runtime.serving.grpc.messages import SERVICE, load_methods

TIMEOUT_SECONDS = 20.0
SLOW_CLIENTS = 20
NO_RESPONSE = "no response"
SETTLE_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """The resources of a process."""

    memory_mb: float
    threads: int
    files: int


# Thread pools reach their full size, and allocators keep some freed memory.
ALLOWED_GROWTH = Footprint(memory_mb=96, threads=4, files=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustnessReport:
    """The responses to the malformed requests, and the resources before and after."""

    statuses: dict[str, int]
    """Number of responses by status; `closed` if the server closed the connection without one."""
    before: Footprint
    after: Footprint
    same_response: bool
    """True if a valid request gets the same response as before."""

    @property
    def faults(self) -> list[str]:
        """Descriptions of unacceptable responses and of leaks."""
        errors = [s for s in self.statuses if s.isdigit() and int(s) >= 500 and s != "503"]
        faults = [f"{self.statuses[status]} responses with status {status}" for status in errors]
        if NO_RESPONSE in self.statuses:
            faults.append(f"{self.statuses[NO_RESPONSE]} requests without a response")
        for resource, unit in (
            ("memory_mb", "MB more memory"), ("files", "more open files"),
            ("threads", "more threads"),
        ):  # fmt: skip
            growth = getattr(self.after, resource) - getattr(self.before, resource)
            if growth > getattr(ALLOWED_GROWTH, resource):
                faults.append(f"{growth:.0f} {unit}")
        if not self.same_response:
            faults.append("a valid request gets another response than before")
        return faults


class MalformedRequests:
    """A generator of malformed requests, by kind."""

    def __init__(self, bundle: Bundle, model: str, seed: int = 0) -> None:
        self._random = random.Random(seed)
        images = bundle.golden().images[:1]
        head = tensor_head(images)
        self._infer = f"/v2/models/{model}/infer"
        self._length = len(head)
        self._tensor = head + images.tobytes()
        self._pictures = [
            _encode(images[0], kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF")
        ]
        self._bomb = _encode(np.zeros((9000, 9000), np.uint8), "PNG")
        self.kinds: tuple[Callable[[], bytes], ...] = (
            self.mutated_tensor, self.wrong_length, self.odd_document, self.damaged_picture,
            self.hostile_picture, self.damaged_form, self.random_bytes, self.odd_path,
            self.truncated,
        )  # fmt: skip
        self.incomplete = (self.random_bytes, self.truncated)

    def valid(self) -> bytes:
        return self._post(self._infer, self._tensor, self._announce(self._length))

    def mutated_tensor(self) -> bytes:
        body = self._mutate(self._tensor, self._length)
        return self._post(self._infer, body, self._announce(self._length))

    def wrong_length(self) -> bytes:
        length = self._random.choice([0, 1, -1, 10**30, len(self._tensor), self._length - 1])
        return self._post(self._infer, self._tensor, self._announce(length))

    def odd_document(self) -> bytes:
        odd: list[Any] = [
            None, True, -1, 2**70, 1e308, "", "images", [], {}, [[]], [None] * 9, {"a": {}},
            [[1, 2], [3]], "\x00", "\ud800",
        ]  # fmt: skip
        fields = ["name", "datatype", "shape", "data", "parameters"]
        entry = {field: self._random.choice(odd) for field in self._random.sample(fields, 3)}
        document: dict[str, Any] = {"inputs": self._random.choice([[entry], entry, odd])}
        for field in ("outputs", "parameters", "id"):
            if self._random.random() < 0.5:
                document[field] = self._random.choice(odd)
        nested = b"[" * self._random.choice([10, 100_000])
        body = self._random.choice([json.dumps(document).encode(), nested, b"\xff\xfe{", b""])
        return self._post(self._infer, body)

    def damaged_picture(self) -> bytes:
        data = self._mutate(self._random.choice(self._pictures))
        return self._post("/v1/classify", data[: self._random.randrange(len(data) + 1)])

    def hostile_picture(self) -> bytes:
        data = self._random.choice([*self._pictures, self._bomb])
        return self._post("/v1/classify", data[:-8] if self._random.random() < 0.5 else data)

    def damaged_form(self) -> bytes:
        part = b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n%b\r\n'
        whole = part % self._random.choice(self._pictures) + b"--x--\r\n"
        body = self._mutate(whole, 90)[: self._random.randrange(len(whole) + 1)]
        return self._post("/v1/classify", body, "Content-Type: multipart/form-data; boundary=x")

    def random_bytes(self) -> bytes:
        return self._random.randbytes(self._random.randrange(1, 300)) + b"\r\n\r\n"

    def odd_path(self) -> bytes:
        path = self._random.choice(
            ["/../../etc/passwd", "/%00", "/v2/models/%2e%2e/infer", "/v2/models//infer", "/\\",
             "*", "/v2/models/x/versions/-1", "/v1/classify?top=%F0%9F", "/" + "a" * 9000]
        )  # fmt: skip
        method = self._random.choice(["GET", "POST", "DELETE", "BREW", "OPTIONS", "HEAD", "TRACE"])
        return (
            f"{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
        )

    def truncated(self) -> bytes:
        whole = self.valid()
        return whole[: self._random.randrange(1, len(whole))]

    def _announce(self, length: int) -> str:
        return f"Inference-Header-Content-Length: {length}"

    def _mutate(self, data: bytes, within: int | None = None) -> bytes:
        changed = bytearray(data)
        for _ in range(self._random.randrange(1, 6)):
            changed[self._random.randrange(within or len(changed))] = self._random.randrange(256)
        return bytes(changed)

    def _post(self, path: str, body: bytes, *headers: str) -> bytes:
        lines = [
            f"POST {path} HTTP/1.1", f"Content-Length: {len(body)}", "Connection: close", *headers,
        ]  # fmt: skip
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def send_malformed(
    port: int, pid: int, requests: MalformedRequests, count: int
) -> RobustnessReport:
    """Send `count` malformed requests, and a valid one before and after them."""
    for kind in 3 * requests.kinds:
        send(port, kind(), half_close=kind in requests.incomplete)
    before_response = send(port, requests.valid())
    before = footprint(pid)
    statuses: Counter[str] = Counter()
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(SLOW_CLIENTS)]
    for number in range(count):
        kind = requests.kinds[number % len(requests.kinds)]
        answer = send(port, kind(), half_close=kind in requests.incomplete)
        statuses[status_of(answer)] += 1
        try:
            slow[number % SLOW_CLIENTS].send(b"G")
        except OSError:
            slow[number % SLOW_CLIENTS].close()
            slow[number % SLOW_CLIENTS] = socket.create_connection(("127.0.0.1", port))
    for connection in slow:
        connection.close()
    time.sleep(SETTLE_SECONDS)
    # The bodies are compared, because a header holds the date.
    first, second = (
        response.partition(b"\r\n\r\n")[2]
        for response in (before_response, send(port, requests.valid()))
    )
    return RobustnessReport(
        statuses=dict(statuses),
        before=before,
        after=footprint(pid),
        same_response=status_of(before_response) == "200" and first == second,
    )


def send_malformed_calls(
    port: int, pid: int, bundle: Bundle, model: str, count: int, seed: int = 0
) -> RobustnessReport:
    """Send `count` malformed calls over gRPC; an INTERNAL or UNKNOWN error counts as status 500."""
    chance = random.Random(seed)
    infer = load_methods()["ModelInfer"]
    images = bundle.golden().images[:1]
    tensor = {"name": "images", "datatype": "UINT8", "shape": images.shape}
    valid = infer.request(model_name=model, inputs=[tensor], raw_input_contents=[images.tobytes()])
    whole = valid.SerializeToString()
    head = len(whole) - images.nbytes

    def message() -> bytes:
        changed = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            changed[chance.randrange(head if chance.random() < 0.7 else len(whole))] ^= 1 << (
                chance.randrange(8)
            )
        ends = (len(whole), chance.randrange(len(whole)), len(whole))
        return bytes(changed[: chance.choice(ends)]) + b"\x3a\x00" * chance.choice([0, 0, 1, 5_000])

    def call(data: bytes, method: str = "ModelInfer", **options: Any) -> str:
        remote = channel.unary_unary(
            f"/{SERVICE}/{method}", request_serializer=bytes, response_deserializer=bytes
        )
        try:
            remote(data, timeout=TIMEOUT_SECONDS, **options)
        except grpc.RpcError as error:
            code = getattr(error, "code")()  # noqa: B009  the stubs lack it
            failed = code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
            late = code is grpc.StatusCode.DEADLINE_EXCEEDED
            return "500" if failed else NO_RESPONSE if late else str(code.name)
        return "OK"

    def any_call() -> str:
        kind = chance.randrange(10)
        if kind == 0:
            send(port, chance.choice([b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
                 + chance.randbytes(chance.randrange(1, 400)), half_close=True)  # fmt: skip
            return "closed"
        if kind == 1:
            return call(chance.randbytes(chance.randrange(2000)))
        if kind == 2:
            method = chance.choice([*load_methods(), "Nothing", "../" * 9, "ModelInfer/x"])
            return call(message(), method)
        if kind == 3:
            return call(message(), compression=grpc.Compression.Gzip)
        if kind == 4:
            return call(message(), metadata=[("a-bin", chance.randbytes(9_000))] * 3)
        return call(message())

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for _ in range(100):
            any_call()
        works, before = call(whole), footprint(pid)
        statuses = Counter(any_call() for _ in range(count))
        time.sleep(SETTLE_SECONDS)
        works_still = call(whole)
    return RobustnessReport(
        statuses=dict(statuses), before=before, after=footprint(pid),
        same_response=works == works_still == "OK",
    )  # fmt: skip


def send(port: int, request: bytes, *, half_close: bool = False) -> bytes:
    """Send bytes and return everything that the server sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as connection:
        answer = b""
        try:
            connection.sendall(request)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(1 << 16):
                answer += chunk
        except TimeoutError:
            return NO_RESPONSE.encode()
        except OSError:  # the server closed the connection before it had read everything
            pass
        return answer


def status_of(response: bytes) -> str:
    """Return the status of a response; `closed` or `no response` without one."""
    if response.startswith(b"HTTP/1.1 "):
        return response[9:12].decode()
    return NO_RESPONSE if response == NO_RESPONSE.encode() else "closed"


def footprint(pid: int) -> Footprint:
    """Return the current resources of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return Footprint(
        memory_mb=int(fields["VmRSS"].split()[0]) / 1024,
        threads=int(fields["Threads"]),
        files=len(os.listdir(f"/proc/{pid}/fd")),
    )


def _encode(pixels: np.ndarray, kind: str) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@click.command(context_settings={"show_default": True})
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--count", default=10_000, help="Number of requests.")
@click.option("--seed", default=0, help="Seed of the random generator.")
@click.option("--grpc", "over_grpc", is_flag=True, help="Send them over gRPC.")
def main(path: Path, count: int, seed: int, over_grpc: bool) -> None:
    """Send malformed requests to a new server for BUNDLE; exit with 1 if they cause a fault."""
    bundle, model = open_bundle(path), path.resolve().name.removesuffix(".bundle")
    port, grpc_port = free_port(), free_port()
    command = [sys.executable, "-m", "resdeploy", "serve", path, "--port", port]
    command += ["--grpc-port", grpc_port] if over_grpc else []
    with run_process("the server", command, port, "/v2/health/ready") as server:
        pid = server.process.pid
        if over_grpc:
            report = send_malformed_calls(grpc_port, pid, bundle, model, count, seed)
        else:
            requests = MalformedRequests(bundle, model, seed)
            report = send_malformed(port, pid, requests, count)
    click.echo(json.dumps({**asdict(report), "faults": report.faults}, indent=2))
    sys.exit(bool(report.faults or server.process.returncode))


if __name__ == "__main__":
    main()
