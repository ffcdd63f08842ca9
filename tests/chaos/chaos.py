"""Kill, starve and race the commands that write results, and check what they leave.

Usage: python -m tests.chaos.chaos [--times N] [--seed N] [SCENARIO ...]

The packages are imported once; each command runs in a forked child. A child is killed with SIGKILL
at a random moment, or gets too little memory, file size, disk space (a small tmpfs, as root) or
file handles, a clock that jumps, or a second process with the same output. After each: the result
is the old or the new one as a whole, and no message is a traceback. Then the next run succeeds, and
nothing temporary is left.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import resdeploy.export.pipeline
import resdeploy.report.report
import resdeploy.train.trainer  # noqa: F401  imported before the forks
from resdeploy.bundle.bundle import SIGNATURE, open_bundle
from resdeploy.bundle.signature import make_signer, open_signed
from resdeploy.cli import main
from resdeploy.filesystem import sha256
from resdeploy.json_documents import strict_json
from resdeploy.runtime.backends.tensorrt.engine_cache import EngineCache
from resdeploy.train.model.architecture import Architecture
from resdeploy.train.model.resnet import ResNet
from resdeploy.train.run.folder import load_state
from resdeploy.train.run.record import load_record

SIZE = 16
LONGEST = 600.0  # seconds after which a command counts as hanging
Prepare = Callable[[random.Random], None]


def write_data(folder: Path) -> None:
    """Write two classes of random pictures, and a small network for them."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for label in ("cat", "dog"):
            place = folder / "data" / split / label
            place.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    torch.manual_seed(0)
    network = ResNet(Architecture(classes=2, blocks=(1, 1, 1, 1), width=8))
    torch.save(network.state_dict(), folder / "small.pth")


def start(arguments: list[str], log: Path, prepare: Callable[[], None] | None = None) -> int:
    """Run a command in a forked child, and return its process id."""
    if child := os.fork():
        return child
    code = 70
    try:
        with log.open("wb", buffering=0) as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        if prepare is not None:
            prepare()
        main(arguments, prog_name="resdeploy")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException as error:
        os.write(2, f"Traceback: {error!r}\n".encode())
    finally:
        os._exit(code)


def wait(child: int, seconds: float = LONGEST) -> int | None:
    """Return the exit code of a child; None if it still runs after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def finish(child: int) -> int:
    """Return the exit code of a child that must end by itself."""
    code = wait(child)
    if code is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise AssertionError("it hangs")
    return code


class Scenario:
    """A command with one output, and the checks of that output."""

    def __init__(self, name: str, *command: str, output: str, finished: tuple[int, ...] = (0,)):
        self.name, self.command, self.output, self.finished = name, command, output, finished
        self.log = Path(f"{name}.log")

    def arguments(self) -> list[str]:
        named = [] if self.output in self.command else ["-o", self.output]
        return [*self.command, *named, "--force"]

    def check(self) -> None:
        """Raise an error if the output is neither missing nor whole."""
        path = Path(self.output)
        if path.suffix == ".bundle":
            bundle = open_bundle(path)
            listed = {a.file: a.sha256 for a in bundle.manifest.artifacts}
            listed |= {name: record.sha256 for name, record in bundle.manifest.files.items()}
            for name, digest in listed.items():
                assert sha256((path / name).read_bytes()) == digest, name
            found = {p.name for p in path.iterdir() if ".tmp-" not in p.name}
            assert found - {SIGNATURE} == {*listed, "manifest.json"}
            if SIGNATURE in found:
                open_signed(path, make_signer("public.pem", None))
        elif path.name == "run":
            if (path / "state.safetensors").exists():
                load_state(path, load_record(path))
            if (path / "model.json").exists():
                check_equal(path / "model.safetensors", Path("reference/model.safetensors"))
        elif path.name == "repo":
            json.loads((path / "resdeploy.json").read_text())
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>")
        else:
            json.loads(path.read_text())

    def moved(self, folder: str) -> Scenario:
        """Return the same command with its output in another folder."""
        output = f"{folder}/{self.output}"
        command = [output if part == self.output else part for part in self.command]
        return type(self)(self.name, *command, output=output, finished=self.finished)

    def run(self, prepare: Callable[[], None] | None = None) -> int:
        return finish(start(self.arguments(), self.log, prepare))

    def succeed(self) -> None:
        """Run the command undisturbed, and check that nothing temporary is left."""
        code = self.run()
        assert code in self.finished, f"exit code {code}: {self.log.read_text()[-500:]}"
        self.check()
        self.check_log()
        left = [p.name for p in Path().iterdir() if ".tmp-" in p.name or ".old-" in p.name]
        left += [str(p) for p in Path("run").glob("*.tmp-*")]
        assert not left, left

    def check_log(self) -> None:
        text = self.log.read_text(errors="replace")
        assert "Traceback" not in text, text[-2000:]


class Training(Scenario):
    """A training that is resumed after it was killed."""

    def arguments(self) -> list[str]:
        folder = Path(self.output)
        if (folder / "state.safetensors").exists() and not (folder / "model.json").exists():
            return ["train", "--resume", self.output]
        return super().arguments()


class Cached(Scenario):
    """A command that fills the cache, from which its earlier result is removed first."""

    def arguments(self) -> list[str]:
        shutil.rmtree("cache/resdeploy/speeds", ignore_errors=True)
        return list(self.command)

    def check(self) -> None:
        engines = EngineCache()
        for record in engines.records():
            assert engines.load(record) is not None, record.key
        for path in Path("cache").glob("resdeploy/speeds/*.json"):
            strict_json(path.read_bytes())


class Signing(Scenario):
    """A signature, which is written into the bundle."""

    def arguments(self) -> list[str]:
        if not Path(self.output).exists():
            shutil.copytree("kept.bundle", self.output)
        return list(self.command)


def check_equal(one: Path, other: Path) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), f"{name} differs after resuming"


TRAIN = (
    "train", "data", "--init", "small.pth", "--epochs", "3", "--batch-size", "8", "--workers", "0",
    "--image-size", str(SIZE),
)  # fmt: skip
EXPORT = ("export", "small.pth", "--image-size", str(SIZE))
SCENARIOS = [
    Training("train", *TRAIN, output="run"),
    Scenario("export", *EXPORT, "--fp16", output="x.bundle"),
    Scenario("triton", "export", "kept.bundle", "--triton", "repo", output="repo"),
    Scenario("report", "report", "kept.bundle", output="page.html"),
    Scenario("bench", "bench", "kept.bundle", "--seconds", "1", output="bench.json"),
    Signing("sign", "sign", "signed.bundle", "key.pem", output="signed.bundle"),
    Cached("doctor", "doctor", "kept.bundle", output="cache", finished=(0, 1, 3)),
]  # fmt: skip
if importlib.util.find_spec("tensorrt_rtx"):
    SCENARIOS.append(
        Cached("build", "build", "kept.bundle", "--flavour", "tensorrt-rtx", "--batch", "1",
               "--precision", "fp32", "--force", output="cache")
    )  # fmt: skip


def kill(scenario: Scenario, chance: random.Random, duration: float) -> str:
    """Kill the command at a random moment."""
    child = start(scenario.arguments(), scenario.log)
    code = wait(child, chance.uniform(0, 1.05 * duration))
    if code is not None:
        return "ended before the kill"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "killed"


def limit(kind: int, low: int, high: int) -> Callable[[Scenario, random.Random, float], str]:
    """Return a disturbance: a random limit of a resource, on a logarithmic scale."""

    def disturb(scenario: Scenario, chance: random.Random, _: float) -> str:
        value = round(low * (high / low) ** chance.random())
        if kind == resource.RLIMIT_AS:  # more than what the imported packages take already
            value += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        code = scenario.run(lambda: resource.setrlimit(kind, (value, value)))
        # Without memory, the interpreter itself can fail (SystemError), so only results count then.
        if kind != resource.RLIMIT_AS and code not in scenario.finished and code > 0:
            scenario.check_log()
            text = scenario.log.read_text(errors="replace")
            assert "error: " in text, f"limit {value}: {text[-500:]}"
        return f"exit code {code}"

    return disturb


def fill(scenario: Scenario, chance: random.Random, _: float) -> str:
    """Write the output to a full disk of a random size."""
    if isinstance(scenario, (Cached, Signing)):
        return "not applicable"
    size = round(4_000 * 2_000 ** chance.random())
    Path("full").mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "full"]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        return "cannot mount here"
    try:
        moved = scenario.moved("full")
        code = moved.run()
        text = moved.log.read_text(errors="replace")
        moved.check_log()
        assert code in scenario.finished or "error: " in text, f"{size} bytes: {text[-500:]}"
        if Path(moved.output).exists():
            moved.check()
        left = [p.name for p in Path("full").iterdir() if p.name != scenario.output]
        assert not left, left
        return f"exit code {code}"
    finally:
        subprocess.run(["umount", "full"], check=True)


def jump(scenario: Scenario, chance: random.Random, _: float) -> str:
    """Let the clock jump by up to a year at each reading."""
    real = time.time

    def prepare() -> None:
        time.time = lambda: real() + chance.uniform(-3e7, 3e7)

    code = scenario.run(prepare)
    assert code in scenario.finished, scenario.log.read_text()[-500:]
    return "done"


def race(scenario: Scenario, chance: random.Random, duration: float) -> str:
    """Start a second process with the same output at a random moment."""
    second = Path(f"{scenario.name}-2.log")
    arguments = scenario.arguments()
    children = [start(arguments, scenario.log)]
    time.sleep(chance.uniform(0, duration) * chance.choice([0, 1]))
    children.append(start(arguments, second))
    codes = [finish(child) for child in children]
    scenario.check_log()
    good = [code in scenario.finished for code in codes]
    assert any(good), second.read_text()[-500:]
    if not all(good):
        text = (scenario.log if good[1] else second).read_text()
        assert "another" in text or "finished" in text or "exists" in text, text[-500:]
    return f"{sum(good)} of 2 succeeded"


MEBIBYTE = 1 << 20
DISTURBANCES: dict[str, Callable[[Scenario, random.Random, float], str]] = {
    "kill": kill,
    "full": fill,
    "disk": limit(resource.RLIMIT_FSIZE, 20_000, 8 * MEBIBYTE),
    "handles": limit(resource.RLIMIT_NOFILE, 3, 30),
    "memory": limit(resource.RLIMIT_AS, MEBIBYTE // 4, 256 * MEBIBYTE),
    "clock": jump,
    "race": race,
}


def disturb_often(scenario: Scenario, kind: str, times: int, seed: int) -> None:
    """Disturb a command `times` times, and print what happened."""
    chance = random.Random(f"{seed} {scenario.name} {kind}")
    begin = time.monotonic()
    scenario.succeed()
    duration = time.monotonic() - begin
    outcomes: Counter[str] = Counter()
    for number in range(times):
        if kind != "kill" or (Path("run") / "model.json").exists():
            shutil.rmtree("run", ignore_errors=True)
        outcomes[DISTURBANCES[kind](scenario, chance, duration)] += 1
        if Path(scenario.output).exists():  # a new result may be missing, but not an old one
            scenario.check()
        else:
            assert scenario.output == "run", "the old result is gone"
        if number % 10 == 9:
            scenario.succeed()
    scenario.succeed()
    listed = ", ".join(f"{text} {count}" for text, count in outcomes.most_common())
    print(
        f"{scenario.name:10} {kind:8} {times:3} times ({duration:.1f} s each): {listed}", flush=True
    )


@contextmanager
def working_folder() -> Iterator[None]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        yield
        os.chdir(before)


def run_all() -> None:
    """Run the scenarios that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=list(DISTURBANCES))
    parser.add_argument("scenarios", nargs="*")
    options = parser.parse_args()
    with working_folder():
        os.environ["XDG_CACHE_HOME"] = str(Path("cache").absolute())
        write_data(Path())
        reference = Training("train", *TRAIN, output="reference")
        assert reference.run() == 0, reference.log.read_text()
        export = Scenario("export", "export", "small.pth", "--image-size", str(SIZE),
                          output="kept.bundle")  # fmt: skip
        assert export.run() == 0, export.log.read_text()
        for command in ("ecparam -genkey -noout -name prime256v1 -out key.pem",
                        "ec -in key.pem -pubout -out public.pem"):  # fmt: skip
            subprocess.run(["openssl", *command.split()], check=True, capture_output=True)
        for scenario in SCENARIOS:
            for kind in options.kinds:
                if not options.scenarios or scenario.name in options.scenarios:
                    disturb_often(scenario, kind, options.times, options.seed)


if __name__ == "__main__":
    run_all()
