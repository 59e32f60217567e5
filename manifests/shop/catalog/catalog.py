"""The shop's catalogue: the products of a ConfigMap with the prices that the container beside this one writes."""

import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PRODUCTS = Path(os.environ.get("PRODUCTS", "/etc/catalog/products.json"))
PRICES = Path(os.environ.get("PRICES", "/prices/prices.json"))


class Catalog(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/ready":
            return self.answer(200 if PRICES.exists() else 503, {})
        prices = json.loads(PRICES.read_text())
        products = json.loads(PRODUCTS.read_text())
        return self.answer(200, [{"name": name, "price": prices.get(name)} for name in products])

    def answer(self, status, body):
        payload = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False  # closing waits for the requests that are running


server = Server(("", 8000), Catalog)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
with server:
    server.serve_forever(poll_interval=0.1)
