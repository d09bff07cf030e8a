"""A receiver of alerts for trying things out: logs and keeps what Alertmanager posts.

`python deploy/webhook.py [port]`, by default 9095. `GET /` answers everything received so far as
a JSON list: time of receipt (seconds since 1970), name, status and labels of each alert. It
needs nothing but Python.
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT = 9095
MAX_BYTES = 1_000_000

received: list[dict[str, Any]] = []


class Receiver(BaseHTTPRequestHandler):
    """Keeps posted alerts and hands them out again."""

    def do_POST(self) -> None:
        """Take one notification, which holds one alert or more."""
        length = int(self.headers.get("Content-Length", 0))
        if length > MAX_BYTES:
            self.send_error(413)
            return
        for alert in json.loads(self.rfile.read(length))["alerts"]:
            entry = {
                "at": time.time(),
                "alert": alert["labels"]["alertname"],
                "status": alert["status"],
                "labels": alert["labels"],
                "annotations": alert["annotations"],
            }
            received.append(entry)
            print(json.dumps(entry), flush=True)
        self._answer([])

    def do_GET(self) -> None:
        """Hand out all that was received."""
        self._answer(received)

    def log_message(self, *_: object) -> None:
        """Say nothing of each request; the alerts are the log."""

    def _answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else PORT
    ThreadingHTTPServer(("", port), Receiver).serve_forever()
