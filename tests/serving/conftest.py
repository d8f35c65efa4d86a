"""Which event loop a test runs on."""

import asyncio

import uvloop


def pytest_asyncio_loop_factories(config, item):
    """The HTTP client is tried on both: uvloop is what production uses, asyncio's own loop is stricter about misuse."""
    loops = {"asyncio": asyncio.new_event_loop}
    return loops | {"uvloop": uvloop.new_event_loop} if item.path.name == "test_upstream.py" else loops
