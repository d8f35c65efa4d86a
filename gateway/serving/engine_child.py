"""The child process of the embedded engine: llama.cpp's own HTTP server, on loopback, until its parent is gone.

Started as a script with `MODEL ID PORT`. Knows llama.cpp and nothing of the gateway, not even by import. Its output is
llama.cpp's errors and, once it answers, one line `ready: http://127.0.0.1:PORT`.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Final

SLOTS: Final = 8  # conversations at a time
CONTEXT: Final = 2048  # tokens of each
THREADS: Final = 2
SMALL: Final = 1 << 29  # bytes of a model whose single next token is sooner made by one thread than shared by two
PR_SET_PDEATHSIG: Final = 1


def die_with_parent() -> None:
    """Linux kills this process with the thread that started it; the end of stdin says the same everywhere.

    Reading stdin alone would be late: loading a model holds Python's lock.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def watch() -> None:
        os.read(0, 1)  # not sys.stdin: its lock, held here, would abort an orderly exit
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def parameters(xllamacpp: Any, model: str, name: str, port: int) -> Any:
    """llama.cpp's start-up parameters: CommonParams."""
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {name}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT
    params.kv_unified = False  # one shared cache would fail every conversation when it is full
    params.cpuparams.n_threads = 1 if Path(model).stat().st_size < SMALL else THREADS
    params.cpuparams_batch.n_threads = THREADS  # prompts, and several conversations at a time
    params.cache_ram_mib = 0  # else old prompts may fill 8 GB
    params.cors_origins = ""  # no web page may read from it
    params.ui = False
    params.verbosity = 1  # errors
    # /v1/messages takes few sampler fields: what it cannot be told must be neutral, in vLLM's order, from the start.
    sampling = params.sampling
    sampling.samplers = "penalties;temperature;min_p;top_k;top_p"
    sampling.temp, sampling.top_k, sampling.top_p, sampling.min_p = 1.0, 0, 1.0, 0.0
    sampling.penalty_last_n = CONTEXT  # -1 would mean none
    return params


def main() -> None:
    model, name, port = sys.argv[1:]
    die_with_parent()
    os.nice(5)  # passing a chunk on takes microseconds: the gateway should not wait for the engine's time slice
    # Threads that spin while they wait for each other collapse (100 tokens/s to 3) when anything else wants a core.
    os.putenv("OMP_WAIT_POLICY", "passive")
    xllamacpp = importlib.import_module("xllamacpp")
    try:
        server = xllamacpp.Server(parameters(xllamacpp, model, name, int(port)))
    except RuntimeError as error:
        sys.exit(str(error))
    print(f"ready: {server.listening_address}", flush=True)
    threading.Event().wait()  # the server has threads of its own


if __name__ == "__main__":
    main()
