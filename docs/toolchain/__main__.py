"""The documentation site: `python -m toolchain build` or `serve`, from `docs`."""

import argparse
import functools
import http.server
import os
import socket
import sys
import time

from .site import SITE, BuildError, build


def main() -> None:
    parser = argparse.ArgumentParser(prog="toolchain", description=__doc__)
    parser.add_argument("task", choices=("build", "serve"))
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="pages executed at a time"
    )
    parser.add_argument("--port", type=int, default=8000, help="port of `serve`")
    options = parser.parse_args()
    start = time.monotonic()
    try:
        build(options.jobs)
    except BuildError as error:
        sys.exit(f"error: {error}")
    n_pages = sum(1 for _ in SITE.rglob("*.html"))
    print(f"{n_pages} pages in {time.monotonic() - start:.0f} s: {SITE}/index.html")
    if options.task == "serve":
        handler = functools.partial(
            http.server.SimpleHTTPRequestHandler, directory=str(SITE)
        )
        # Without a host, the address is one that only this machine reaches.
        *_, address = socket.getaddrinfo(None, options.port, socket.AF_INET)[0]
        with http.server.ThreadingHTTPServer(address, handler) as server:
            print("http://{}:{}, until Ctrl-C".format(*address))
            server.serve_forever()


if __name__ == "__main__":
    main()
