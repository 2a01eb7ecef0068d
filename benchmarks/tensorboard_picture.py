"""A screenshot of TensorBoard's own page on runs, by a headless browser.

    python -m benchmarks.tensorboard_picture RUNS --output tensorboard.png [--browser /usr/bin/chromium]

RUNS: a folder that holds runs trained with --tensorboard. Needs the packages tensorboard and playwright, and a browser.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

WAIT = 60.0  # seconds for the server to start
SIZE = {"width": 1300, "height": 940}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--tags", default="^(latent_norm|loss_q0|val_ema_loss$)", help="regular expression of names")
    parser.add_argument("--output", type=Path, default=Path("tensorboard.png"))
    parser.add_argument("--browser", default="/usr/bin/chromium")
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # load_fast false: the server in Python alone
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(args.runs), "--load_fast", "false"]
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        take(f"http://127.0.0.1:{port}/", args.tags, args.output, args.browser)
    finally:
        server.terminate()
        server.wait()
    print(args.output)
    return 0


def take(address: str, tags: str, output: Path, browser: str) -> None:
    """Wait for the server, and save its page of the time series whose names match a regular expression."""
    from playwright.sync_api import sync_playwright

    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        with suppress(OSError):
            urllib.request.urlopen(address, timeout=5).close()
            break
        time.sleep(0.5)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport=SIZE)  # type: ignore[arg-type]
        page.goto(f"{address}?darkMode=false&tagFilter={quote(tags)}#timeseries")
        page.wait_for_selector("scalar-card", timeout=WAIT * 1000)
        page.get_by_role("button", name="Settings", exact=False).last.click()  # the pane hides half of the charts
        page.wait_for_timeout(4000)  # the charts are drawn one after another
        output.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(output))
        chromium.close()


if __name__ == "__main__":
    raise SystemExit(main())
