"""Send a picture to a server over HTTP, with Python's standard library only.

    resdeploy serve r34.bundle
    python examples/http_client.py cat.jpg

If the server is busy (503), the script waits as long as the answer says, and tries again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


def classify(url: str, picture: bytes, token: str = "", tries: int = 5) -> Any:
    """Return the server's answer, or raise HTTPError if it refuses the picture."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{url}/v1/classify?top=3", picture, headers)
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            tries -= 1
            if error.code != 503 or not tries:
                raise
            time.sleep(float(error.headers.get("Retry-After", 1)))


def main() -> None:
    """Print the most likely classes of a picture."""
    parser = argparse.ArgumentParser(description="Classify a picture with a server.")
    parser.add_argument("picture", type=Path, help="image file")
    parser.add_argument("--url", default="http://localhost:8000", help="address of the server")
    options = parser.parse_args()
    token = os.environ.get("RESDEPLOY_TOKEN", "")
    try:
        answer = classify(options.url, options.picture.read_bytes(), token)
    except urllib.error.HTTPError as error:  # the server says why in its answer
        sys.exit(f"{options.picture}: {json.load(error)['error']}")
    except urllib.error.URLError as error:
        sys.exit(f"{options.url}: {error.reason}; start a server with resdeploy serve")
    for entry in answer["results"][0]["predictions"]:
        print(f"{entry['label']}: {100 * entry['probability']:.1f} %")


if __name__ == "__main__":
    main()
