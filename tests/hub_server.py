"""A small hub of the tests: the calls that reading, making and committing to a repository take, over HTTP."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

import yaml


class Hub(ThreadingHTTPServer):
    """Repositories by name, each with commits of files; large ones come by a store apart, as in Git LFS."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.commits = {}  # (repository, commit) -> {file: bytes}
        self.names = {}  # (repository, branch, tag or commit) -> commit
        self.fetched = []  # repository, commit and file of every answer that had a file's content
        self.stored = {}  # SHA-256 -> a large file's content
        self.token = None  # that is asked for, where one is
        self.private = set()  # repositories that are read with the token alone
        self.made = []  # what was asked to be made
        self.stalls = False  # whether a large file is never taken
        self.stalled = threading.Event()
        self.ends = threading.Event()
        self.before_commit = lambda: None

    def push(self, repository, directory, revision="main"):
        """Puts the files of a directory into a repository, and returns the commit."""
        held = {
            str(file.relative_to(directory)): file.read_bytes()
            for file in sorted(directory.rglob("*"))
            if file.is_file()
        }
        return self.commit(repository, held, revision)

    def commit(self, repository, held, revision="main"):
        """Makes a commit of files, and returns it."""
        commit = hashlib.sha1(repr(sorted(held.items())).encode()).hexdigest()
        self.commits[repository, commit] = held
        self.names[repository, revision] = self.names[repository, commit] = commit
        return commit

    def head(self, repository, revision="main"):
        """Returns the files of a branch."""
        return self.commits[repository, self.names[repository, revision]]


class Answer(BaseHTTPRequestHandler):
    """One answer of the hub."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(with_content=False)

    def do_GET(self):
        self.answer(with_content=True)

    def do_POST(self):
        parts = self.parts()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.is_refused(None, write=True):
            return
        if parts == ["api", "validate-yaml"]:
            self.validate(json.loads(body)["content"])
        elif parts == ["api", "repos", "create"]:
            self.create(json.loads(body))
        elif parts[:2] == ["api", "models"] and parts[4] == "preupload":
            self.preupload("/".join(parts[2:4]), parts[5], json.loads(body)["files"])
        elif parts[2:] == ["info", "lfs", "objects", "batch"]:
            self.batch(json.loads(body)["objects"])
        elif parts[:2] == ["api", "models"] and parts[4] == "commit":
            self.commit("/".join(parts[2:4]), parts[5], [json.loads(line) for line in body.splitlines()])
        else:
            self.send(404, {}, b"{}")

    def do_PUT(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.stalls:
            self.server.stalled.set()
            self.server.ends.wait(60)
            return
        oid = self.parts()[1]
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.stored[oid] = content
        self.send(200, {}, b"")

    def parts(self):
        return [unquote(part) for part in urlparse(self.path).path.strip("/").split("/")]

    def answer(self, *, with_content):
        parts = self.parts()
        if parts[:2] == ["api", "models"]:
            if not self.is_refused("/".join(parts[2:4])):
                self.tell_repository("/".join(parts[2:4]), parts[4:])
        elif len(parts) > 4 and parts[2] == "resolve":
            if not self.is_refused("/".join(parts[:2])):
                self.send_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), with_content)
        else:
            self.send(404, {}, b"")

    def is_refused(self, repository, *, write=False):
        """Answers as the hub does where the token is another, or a private repository's is lacking."""
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.server.token is None or given == self.server.token:
            return False
        if given:
            self.send(401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b"{}")
        elif write:
            self.send(401, {"X-Error-Message": "Invalid username or password."}, b"{}")
        elif repository in self.server.private:
            self.send(401, {"X-Error-Code": "RepoNotFound"}, b"{}")
        else:
            return False
        return True

    def tell_repository(self, repository, rest):
        commit = self.server.names.get((repository, rest[1] if len(rest) > 1 else "main"))
        if commit is None:
            known = any(name == repository for name, _ in self.server.names)
            code = "RevisionNotFound" if known else "RepoNotFound"
            self.send(404, {"X-Error-Code": code}, b"{}")
            return
        held = self.server.commits[repository, commit]
        if rest and rest[0] == "tree":
            told = [{"type": "file", "path": f, "size": len(c), "oid": commit} for f, c in held.items()]
        else:
            told = {"id": repository, "sha": commit, "siblings": [{"rfilename": file} for file in held]}
            told |= {"private": False, "downloads": 0, "likes": 0, "tags": []}
        self.tell(told)

    def send_file(self, repository, revision, file, with_content):
        commit = self.server.names.get((repository, revision))
        content = self.server.commits.get((repository, commit), {}).get(file)
        if content is None:
            self.send(404, {"X-Error-Code": "EntryNotFound"}, b"")
            return
        etag = hashlib.sha1(content).hexdigest()
        self.send(200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, content, with_content)
        if with_content:
            self.server.fetched.append((repository, commit, file))

    def validate(self, card):
        """Says whether the head of a model card is what the hub understands."""
        _, head, text = card.split("---\n", 2)
        told = yaml.safe_load(head)
        assert isinstance(told["tags"], list)
        assert text.strip()
        self.tell({"errors": [], "warnings": []})

    def create(self, told):
        repository = f"{told['organization']}/{told['name']}"
        if any(name == repository for name, _ in self.server.names):
            self.send(409, {}, b'{"error": "You already created this model repo"}')
            return
        self.server.made.append(told)
        self.server.commit(repository, {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.tell({"url": f"http://127.0.0.1:{self.server.server_port}/{repository}"})

    def preupload(self, repository, revision, files):
        """Says which files are large, and the hashes of those that are there."""
        held, told = self.server.head(repository, revision), []
        for file in files:
            large = file["path"].endswith(".safetensors")
            content, oid = held.get(file["path"]), None
            if content is not None and large:
                oid = hashlib.sha256(content).hexdigest()
            elif content is not None:
                oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            mode = "lfs" if large else "regular"
            told.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.tell({"files": told})

    def batch(self, objects):
        """Says where large files go that are not stored yet."""
        place = f"http://127.0.0.1:{self.server.server_port}/lfs"
        for one in objects:
            if one["oid"] not in self.server.stored:
                one["actions"] = {"upload": {"href": f"{place}/{one['oid']}", "header": {}}}
        self.tell({"transfer": "basic", "objects": objects})

    def commit(self, repository, revision, lines):
        self.server.before_commit()
        held = dict(self.server.head(repository, revision))
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                if value.get("parentCommit") not in (None, self.server.names[repository, revision]):
                    self.send(412, {}, b'{"error": "A commit has happened since."}')
                    return
            elif line["key"] == "file":
                held[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                held[value["path"]] = self.server.stored[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del held[value["path"]]
        made = self.server.commit(repository, held, revision)
        url = f"http://127.0.0.1:{self.server.server_port}/{repository}/commit/{made}"
        self.tell({"commitUrl": url, "commitOid": made})

    def tell(self, told):
        self.send(200, {"Content-Type": "application/json"}, json.dumps(told).encode())

    def send(self, code, headers, content, with_content=True):
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_content:
            self.wfile.write(content)
