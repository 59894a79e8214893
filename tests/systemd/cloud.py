"""
What an EC2 instance finds around it, for user data to talk to: run in the machine.

The metadata service, version 2 only, at every address given; and of SSM the one call
that reads a parameter, from files in a folder.
"""

import json
import socket
import sys
import threading

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


PARAMETERS = Path("/srv/parameters")
SESSION = "a-session"
DOCUMENTS = {
    "placement/region": "eu-west-1",
    "placement/availability-zone": "eu-west-1b",
    "instance-id": "i-0123456789abcdef0",
    "ami-id": "ami-0123456789abcdef0",
    "instance-type": "m7i.large",
    "tags/instance/aws:autoscaling:groupName": "launchers",
    "iam/security-credentials/": "launcher",
    "iam/security-credentials/launcher": json.dumps(
        {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "AccessKeyId": "AKIAEXAMPLE",
            "SecretAccessKey": "example",
            "Token": "example",
            "LastUpdated": "2026-01-01T00:00:00Z",
            "Expiration": "2099-01-01T00:00:00Z",
        }
    ),
}


class Handler(BaseHTTPRequestHandler):
    def do_PUT(self):
        self.answer(200, SESSION)

    def do_GET(self):
        if self.headers.get("X-aws-ec2-metadata-token") != SESSION:
            return self.answer(401, "")
        name = self.path.removeprefix("/latest/meta-data/")
        found = DOCUMENTS.get(name)
        return self.answer(404 if found is None else 200, found or "")

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["X-Amz-Target"] == "AmazonSSM.GetParameter"
        assert "Credential=AKIAEXAMPLE/" in self.headers["Authorization"]
        file = PARAMETERS / asked["Name"].strip("/").replace("/", "-")
        parameter = {"Name": asked["Name"], "Value": file.read_text().strip()}
        self.answer(200, json.dumps({"Parameter": parameter}))

    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


class Server(ThreadingHTTPServer):
    def __init__(self, address):
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, 80), Handler)


if __name__ == "__main__":
    servers = [Server(address) for address in sys.argv[1:]]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].serve_forever()
