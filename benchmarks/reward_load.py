"""Load on the reward server: requests per second, latency, and CPU per request, with a scorer that only waits.

    python benchmarks/reward_load.py                      both sizes, three image formats, 15 s each
    python benchmarks/reward_load.py --soak-minutes 30    constant load, memory every 10 s

The server is the real command in processes of its own; 16 clients send one request after the other over kept-alive
connections. Clients and server share the machine's cores. Linux only (reads /proc through psutil).
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
from provenance import ROOT, provenance

from reward_server.codec import MSGPACK
from reward_server.images import encode_image
from reward_server.scorers.base import Scores
from reward_server.wire import ScoreRequest, WireItem, decode_response, encode_request

CLIENTS = 16
SHAPES = {"16x64px": (16, 64), "8x512px": (8, 512)}  # images a request, pixels a side
NOISE = 2.3  # of 255
FORMATS = ("raw", "jpeg", "png")
SCORER = Path(__file__).with_name("sleeping_scorer.py")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="per case (default: %(default)s)")
    parser.add_argument("--scorer-ms", type=float, default=4.0, help="per batch (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes of the scorer (default: %(default)s)")
    parser.add_argument("--soak-minutes", type=float, default=0.0, help="memory under constant load, instead")
    parser.add_argument("--out", type=Path, help="JSON to write (default: in benchmarks/results/)")
    options = parser.parse_args()
    name = "reward_soak" if options.soak_minutes else "reward_load"
    out = options.out or ROOT / "benchmarks/results" / f"{name}.json"
    results: dict[str, Any] = provenance("fastapi", "uvicorn", "msgpack", "pillow", "numpy")
    results |= {"clients": CLIENTS, "scorer_ms": options.scorer_ms, "workers": options.workers}
    with server(options.scorer_ms, options.workers) as (url, process):
        if options.soak_minutes:
            results["soak"] = soak(url, process, 60 * options.soak_minutes)
        else:
            results["cases"] = {
                f"{shape} {kind}": measure(url, process, body(*SHAPES[shape], kind), options.seconds)
                for shape in SHAPES
                for kind in FORMATS
            }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n")
    print(out)


@contextmanager
def server(scorer_ms: float, workers: int) -> Iterator[tuple[str, psutil.Process]]:
    """A server of its own: its URL and its process."""
    with tempfile.TemporaryDirectory() as folder:
        config, url_file = Path(folder) / "server.yaml", Path(folder) / "url"
        options = {"seconds": scorer_ms / 1000}
        scorer = {"scorer": f"{SCORER}:Sleeper", "options": options, "workers_per_device": workers}
        config.write_text(json.dumps({"scorers": {"sleeper": scorer}}))
        command = [sys.executable, "-m", "reward_server.cli", "--config", str(config), "--port", "0"]
        process = subprocess.Popen([*command, "--url-file", str(url_file)], cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            while not url_file.exists():
                if process.poll() is not None:
                    sys.exit("the server did not start")
                time.sleep(0.1)
            yield url_file.read_text().strip(), psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(30)


def body(images: int, size: int, kind: str) -> bytes:
    """One request: gradients with a little noise; at 512 pixels one is 70 kB of JPEG."""
    ramp = np.linspace(0, 200, size)[:, None, None] + np.linspace(0, 40, size)[None, :, None]
    noise = np.random.default_rng(0).normal(0, NOISE, (images, size, size, 3))
    pixels = (ramp + noise).clip(0, 255).astype(np.uint8)
    items = tuple(WireItem(i, encode_image(image, kind), "a photo", {}) for i, image in enumerate(pixels))
    return encode_request(ScoreRequest(("sleeper",), items))


def measure(url: str, process: psutil.Process, request: bytes, seconds: float) -> dict[str, Any]:
    """Load for some seconds, after two that do not count."""
    load(url, request, 2.0)
    before, started = cpu_seconds(process), time.monotonic()
    latencies = load(url, request, seconds)
    elapsed, used = time.monotonic() - started, cpu_seconds(process) - before
    milliseconds = sorted(1000 * latency for latency in latencies)
    result = {
        "request_kb": round(len(request) / 1000),
        "requests": len(latencies),
        "requests_per_s": round(len(latencies) / elapsed, 1),
        "p50_ms": round(statistics.median(milliseconds), 1),
        "p95_ms": round(milliseconds[int(0.95 * len(milliseconds))], 1),
        "server_cpu_ms_per_request": round(1000 * used / len(latencies), 2),
    }
    print(result, flush=True)
    return result


def load(url: str, request: bytes, seconds: float) -> list[float]:
    """Latency of every request of all clients; any answer that is not a full set of scores ends the benchmark."""
    latencies: list[float] = []
    failures: list[str] = []
    until = time.monotonic() + seconds

    def client() -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
        while time.monotonic() < until and not failures:
            started = time.monotonic()
            connection.request("POST", "/v1/score", request, {"Content-Type": MSGPACK})
            reply = connection.getresponse()
            content = reply.read()
            latencies.append(time.monotonic() - started)
            if reply.status != 200 or not all_scored(content):
                failures.append(f"HTTP {reply.status}: {content[:300]!r}")
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit(failures[0])
    return latencies


def all_scored(content: bytes) -> bool:
    """Whether every item has a score."""
    return all(isinstance(result.rewards["sleeper"], Scores) for result in decode_response(content).results)


def soak(url: str, process: psutil.Process, seconds: float) -> dict[str, Any]:
    """Resident memory of server and worker together while the load goes on."""
    small, large = (body(*SHAPES[shape], kind) for shape, kind in (("16x64px", "png"), ("8x512px", "raw")))
    started, samples, count = time.monotonic(), [], 0
    while (now := time.monotonic() - started) < seconds:
        count += len(load(url, small, 5.0)) + len(load(url, large, 5.0))
        samples.append((round(now), memory_mb(process)))
        print(f"{now:.0f} s: {samples[-1][1]} MB after {count} requests", flush=True)
    settled = [memory for _, memory in samples[len(samples) // 4 :]]
    half = len(settled) // 2
    return {
        "minutes": round((time.monotonic() - started) / 60, 1),
        "requests": count,
        "mb_early": round(statistics.mean(settled[:half]), 1),
        "mb_late": round(statistics.mean(settled[half:]), 1),
        "mb_by_second": dict(samples),
    }


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time of the server and its workers so far."""
    return sum(sum(p.cpu_times()[:2]) for p in [process, *process.children(recursive=True)])


def memory_mb(process: psutil.Process) -> float:
    """Resident memory of the server and its workers."""
    return round(sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]) / 2**20, 1)


if __name__ == "__main__":
    main()
