"""The server of an application, in a thread of the test, on a free port of this machine."""

import threading
from contextlib import contextmanager

import uvicorn

from plaudit.serving.http_protocol import BoundedHttpProtocol


@contextmanager
def running(application, **options):
    """Serve an application; yields its URL."""
    config = uvicorn.Config(
        application, host="127.0.0.1", port=0, http=BoundedHttpProtocol, ws="none", lifespan="off", log_config=None,
        access_log=False, server_header=False, **options,
    )  # fmt: skip
    server = uvicorn.Server(config)
    ready = threading.Event()
    startup = server.startup

    async def start(sockets=None):
        await startup(sockets)
        ready.set()

    server.startup = start
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert ready.wait(20)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        server.force_exit = server.should_exit = True
        thread.join(20)
