"""Health check of a process of this container: ``healthcheck.py URL [LINE]``.

Healthy is a process that answers 200 and, where a line is given, has it in its answer.
"""

import sys
import urllib.error
import urllib.request

TIMEOUT = 4.0
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # HTTP_PROXY is ignored


def main(url: str, line: str = "") -> str | None:
    """What is wrong, None if nothing is."""
    try:
        with DIRECT.open(url, timeout=TIMEOUT) as answer:
            lines = answer.read().decode().splitlines()
    except OSError as error:
        return f"{url}: {error}"
    return None if not line or line in lines else f"{url} does not say {line!r}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
