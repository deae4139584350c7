"""Google Cloud Storage in memory: what gcsfs, TensorStore and google-cloud-storage ask of it, preconditions included.

    python tests/gcs_server.py 9023     # then export the variables of `environment(9023)`

A request is answered as the JSON API says. There are no accounts, and one bucket: `bucket`.
"""

import http.server
import json
import re
import sys
import threading
import urllib.parse


def environment(port: int) -> dict[str, str]:
    """What leads a process to the server on this machine, and keeps it from asking for a login."""
    return {
        "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
        "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{port}",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GOOGLE_CLOUD_PROJECT": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it asks for more than the JSON API
    }


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.objects: dict[tuple[str, str], tuple[int, bytes]] = {}  # (bucket, name): (generation, content)
        self.uploads: dict[str, tuple[str, str, dict, bytearray]] = {}
        self.count = 0  # of generations and uploads
        self.turn = threading.RLock()
        self.read_only = False

    def names(self, bucket: str) -> list[str]:
        return sorted(name for of, name in self.objects if of == bucket)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # headers and content in one packet, at once

    def log_message(self, *_):
        pass

    def answer(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        self.body = self.read_body()
        with self.server.turn:
            if "/b/bucket" not in url.path:
                return self.refuse(404, "The specified bucket does not exist.")
            if self.server.read_only and self.command != "GET":
                return self.refuse(403, "no storage.objects.create access")
            for method, pattern, act in ROUTES:
                if self.command == method and (found := re.fullmatch(pattern, url.path)):
                    return act(self, query, *map(urllib.parse.unquote, found.groups()))
        self.send(501, {"error": {"code": 501, "message": f"{self.command} {self.path}"}})

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def send(self, code: int, content: dict | bytes = b"", **headers) -> None:
        is_json = isinstance(content, dict)
        content = json.dumps(content).encode() if is_json else content
        self.send_response(code)
        self.send_header("Content-Type", "application/json" if is_json else "application/octet-stream")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if code not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if code not in (204, 304):
            self.wfile.write(content)

    def refuse(self, code: int, message: str) -> None:
        self.send(code, {"error": {"code": code, "message": message}})

    def meets(self, query: dict, bucket: str, name: str) -> bool:
        """Whether the object is of the generation that the request asks for; a missing one is of generation 0."""
        generation = self.server.objects.get((bucket, name), (0, b""))[0]
        wanted, unwanted = query.get("ifGenerationMatch"), query.get("ifGenerationNotMatch")
        if wanted is not None and int(wanted) != generation:
            self.refuse(412, "conditionNotMet")
        elif unwanted is not None and int(unwanted) == generation:
            self.send(304)
        else:
            return True
        return False

    def store(self, bucket: str, name: str, content: bytes) -> None:
        self.server.count += 1
        self.server.objects[bucket, name] = self.server.count, bytes(content)
        self.send(200, self.described(bucket, name))

    def described(self, bucket: str, name: str) -> dict:
        generation, content = self.server.objects[bucket, name]
        about = {"kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(content))}
        times = {"timeCreated": "2026-01-01T00:00:00.000Z", "updated": "2026-01-01T00:00:00.000Z"}
        return {**about, **times, "generation": str(generation), "metageneration": "1", "storageClass": "STANDARD"}

    def get_bucket(self, query: dict, bucket: str) -> None:
        self.send(200, {"kind": "storage#bucket", "name": bucket, "location": "US", "storageClass": "STANDARD"})

    def list_objects(self, query: dict, bucket: str) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        start, end = query.get("startOffset", ""), query.get("endOffset")
        items, prefixes = [], set()
        for name in self.server.names(bucket):
            if name.startswith(prefix) and name >= start and (not end or name < end):
                head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
                prefixes |= {f"{prefix}{head}{found}"} if found else set()
                items += [] if found else [self.described(bucket, name)]
        self.send(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def get_object(self, query: dict, bucket: str, name: str) -> None:
        if not self.meets(query, bucket, name):
            return
        if (bucket, name) not in self.server.objects:
            return self.refuse(404, f"No such object: {bucket}/{name}")
        generation, content = self.server.objects[bucket, name]
        if query.get("alt") != "media":
            return self.send(200, self.described(bucket, name))
        headers = {"x_goog_generation": generation, "x_goog_stored_content_length": len(content)}
        if not (given := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))):
            return self.send(200, content, **headers)
        first, last = given.groups()
        begin = int(first) if first else max(len(content) - int(last), 0)
        end = min(int(last) + 1, len(content)) if first and last else len(content)
        if begin >= max(len(content), 1):
            return self.refuse(416, "Range")
        self.send(206, content[begin:end], Content_Range=f"bytes {begin}-{end - 1}/{len(content)}", **headers)

    def upload(self, query: dict, bucket: str) -> None:
        name, content = query.get("name"), self.body
        if query["uploadType"] == "multipart":
            boundary = re.search("boundary=['\"]?([^'\";]+)", self.headers["Content-Type"])[1].encode()
            about, content = (
                part.partition(b"\r\n\r\n" if b"\r\n\r\n" in part else b"\n\n")[2]
                for part in self.body.split(b"--" + boundary)[1:3]
            )
            name = json.loads(about)["name"]
            content = content.removesuffix(b"\n").removesuffix(b"\r")
        if query["uploadType"] == "resumable":
            self.server.count += 1
            key = str(self.server.count)
            name = name or json.loads(self.body)["name"]
            self.server.uploads[key] = bucket, name, query, bytearray()
            host = f"http://{self.headers['Host']}"
            return self.send(200, Location=f"{host}/upload/storage/v1/b/{bucket}/o?uploadType=part&upload_id={key}")
        if query["uploadType"] == "part":
            bucket, name, query, before = self.server.uploads[query["upload_id"]]
            before += self.body
            if self.headers.get("Content-Range", "").endswith("/*"):
                return self.send(308, Range=f"bytes=0-{len(before) - 1}")
            content = before
        if self.meets(query, bucket, name):
            self.store(bucket, name, content)

    def delete(self, query: dict, bucket: str, name: str) -> None:
        if not self.meets(query, bucket, name):
            return
        if self.server.objects.pop((bucket, name), None) is None:
            return self.refuse(404, f"No such object: {bucket}/{name}")
        self.send(204)

    def move(self, query: dict, bucket: str, name: str, to_name: str) -> None:
        if (bucket, name) not in self.server.objects:
            return self.refuse(404, f"No such object: {bucket}/{name}")
        self.store(bucket, to_name, self.server.objects.pop((bucket, name))[1])

    def rewrite(self, query: dict, bucket: str, name: str, to_bucket: str, to_name: str) -> None:
        if (bucket, name) not in self.server.objects:
            return self.refuse(404, f"No such object: {bucket}/{name}")
        content = self.server.objects[bucket, name][1]
        self.server.count += 1
        self.server.objects[to_bucket, to_name] = self.server.count, content
        size = str(len(content))
        described = self.described(to_bucket, to_name)
        self.send(200, {"done": True, "objectSize": size, "totalBytesRewritten": size, "resource": described})


BUCKET = "(?:/storage/v1)?/b/([^/]+)"
OBJECT = f"(?:/download)?{BUCKET}/o/([^/]+)"
ROUTES = [
    ("GET", BUCKET, Handler.get_bucket),
    ("GET", f"{BUCKET}/o/?", Handler.list_objects),
    ("GET", OBJECT, Handler.get_object),
    ("POST", f"/upload{BUCKET}/o", Handler.upload),
    ("PUT", f"/upload{BUCKET}/o", Handler.upload),
    ("DELETE", OBJECT, Handler.delete),
    ("POST", f"{OBJECT}/moveTo/o/([^/]+)", Handler.move),
    ("POST", f"{OBJECT}/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)", Handler.rewrite),
]


if __name__ == "__main__":
    Server(int(sys.argv[1])).serve_forever()
