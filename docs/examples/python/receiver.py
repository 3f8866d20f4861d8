"""Receives webhooks of the cancel worker, and acts on those about money.

pip install standardwebhooks && WEBHOOK_SECRET=whsec_... PORT=8090 python receiver.py
"""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

MOST_BYTES = 20_000  # an event has 4,096 at most
WEBHOOK = Webhook(os.environ["WEBHOOK_SECRET"])
SEEN = set()  # in an OMS: a unique column, written in the transaction that acts
SENTENCES = {
    "refund.released": "pay back order {}",
    "refund.refused": "do not pay back order {}",
    "refund.recalled": "a person looks at order {}",
}


class Receiver(BaseHTTPRequestHandler):
    timeout = 10

    def do_POST(self) -> None:
        self.send_response(self.answer())
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self) -> int:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            return 413
        try:
            event = WEBHOOK.verify(self.rfile.read(int(length)), dict(self.headers))["data"]
        except (WebhookVerificationError, ValueError):
            return 400
        if event["id"] not in SEEN and event["type"] in SENTENCES:  # it comes at least once
            print(SENTENCES[event["type"]].format(event["order_id"]), flush=True)
        SEEN.add(event["id"])
        return 204


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8090"))), Receiver)
    print(f"listening on {server.server_port}", flush=True)
    server.serve_forever()
