"""What must hold under fault, by name: the design's table of faults and its list of fences. Every test here says which
one it tries, and test_rows.py that none is left out.
"""

DOWN = "engine down, refused, DNS"
SILENT = "no headers / no first token / idle stream"
RESET = "reset mid-stream"
INVALID = "invalid JSON, SSE, chunking from the engine"
BUSY = "engine 429/503"
CROWD = "too many in flight"
SLOW_READER = "slow reader"
GONE = "client gone: before the first token, mid-stream, non-stream, responses, messages"
STOP = "SIGTERM with streams open"
RELOAD = "broken presets file on reload"
BODY = "huge body / deep JSON / duplicate keys"
NUMBERS = "NaN, Infinity, 1e999, strings or booleans for numbers, lone surrogates, bad UTF-8"
HEADERS = "CR/LF in a header value; request id outside [A-Za-z0-9._-]{1,128}"
PATHS = "path tricks, model as URL, api_base in the body"
CODING = "request Content-Encoding; upstream bomb"
SLOWLORIS = "slowloris"
KEYS = "wrong or missing key"
NAMES = "10,000 random model names"

FENCED_ROUTES = "routes outside the allow-list"
FENCED_FIELDS = "fenced fields"
FENCED_MEDIA = "media parts by URL"
BOUNDS = "bounds of counts"
UNTOUCHED = "everything else passes untouched"
OPENED = "unless the operator opens it"
FENCED_HEADERS = "headers that act on the engine"
HOST = "a spoofed Host; decisions on the path only"
DENY = "auth denies by default"
TOKEN = "a token is data, never SQL"
READ_ONLY = "configuration is not writable over HTTP"

FAULTS = (
    DOWN, SILENT, RESET, INVALID, BUSY, CROWD, SLOW_READER, GONE, STOP, RELOAD, BODY, NUMBERS, HEADERS, PATHS, CODING,
    SLOWLORIS, KEYS, NAMES,
)  # fmt: skip
FENCES = (
    FENCED_ROUTES, FENCED_FIELDS, FENCED_MEDIA, BOUNDS, UNTOUCHED, OPENED, FENCED_HEADERS, HOST, DENY, TOKEN, READ_ONLY,
)  # fmt: skip
