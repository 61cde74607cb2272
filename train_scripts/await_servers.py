"""Wait until each of several reward servers answers /readyz with 200, and say what they are waiting for.

    python train_scripts/await_servers.py SECONDS URL [URL ...]

Exit status 1, with one sentence, if one of them is not ready in time or is no reward server.
"""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from http.client import HTTPException

PAUSE_S, REPEAT_S = 1.0, 15.0
# A cluster's HTTP proxy is not meant for its own nodes.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main() -> None:
    """Entry point."""
    give_up = time.monotonic() + float(sys.argv[1])
    for url in sys.argv[2:]:
        await_server(url.rstrip("/"), give_up)
        print(f"Reward server {url} is ready")


def await_server(url: str, give_up: float) -> None:
    """Return when the server at ``url`` is ready, exit when ``time.monotonic()`` passes ``give_up``."""
    said, said_at = "", 0.0
    while reason := why_not_ready(url):
        if time.monotonic() > give_up:
            sys.exit(
                f"launch.sh: the reward server {url} is not ready: {reason}. Start it there, or correct REWARD_URLS."
            )
        if reason != said or time.monotonic() - said_at > REPEAT_S:
            print(f"Waiting for the reward server {url}: {reason}", flush=True)
            said, said_at = reason, time.monotonic()
        time.sleep(PAUSE_S)


def why_not_ready(url: str) -> str:
    """Empty if it is; exits if what answers is no reward server."""
    try:
        with OPENER.open(f"{url}/readyz", timeout=10):
            return ""
    except urllib.error.HTTPError as error:
        if error.code != 503:
            sys.exit(f"launch.sh: {url}/readyz answers {error.code}; is this a reward server? Correct REWARD_URLS.")
        return error.read().decode(errors="replace").strip() or "it answers 503"
    except (OSError, ValueError, HTTPException) as error:
        return (
            f"no answer ({error}); one that other machines may ask was started with --host 0.0.0.0 and "
            "AWM_REWARD_TOKEN, which is the same here"
        )


if __name__ == "__main__":
    main()
