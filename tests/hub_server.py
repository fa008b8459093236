"""A small server on the loopback interface that answers what huggingface_hub asks of the Hub.

It keeps repositories in memory: a commit is a dict of path to bytes. It can be told to fail once. Repositories of
datasets are kept under `datasets/ORG/NAME`, as the Hub's addresses have them.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_BYTES = 8192  # larger files go through LFS


class Repository:
    def __init__(self, owner: str, private: bool):
        self.owner, self.private = owner, private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refs: dict[str, str] = {}
        self.commit("main", {})

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        name = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[name] = files
        self.refs[branch] = name
        return name

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


class HubServer(ThreadingHTTPServer):
    """`users` maps a token to its user. `log` holds (method, path) of every request, `served` the bytes a path."""

    def __init__(self, users: dict[str, str]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.users, self.repositories, self.blobs, self.log = users, {}, {}, []
        self.served: Counter[str] = Counter()  # bytes of files, by path
        self.fail_commits = 0  # so many commits answer 500
        self.refuse_lfs_after: int | None = None  # uploads of large files that still work

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo_id]
        return repository.commits[repository.resolve(revision)]


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status: int = 200, body=b"", headers: dict | None = None, error: str | None = None):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(body))} | (headers or {})
        if error:
            headers |= {"X-Error-Code": error, "X-Error-Message": error}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def user(self) -> str | None:
        return self.server.users.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def handle_request(self):
        body = self.read()
        path = unquote(urlsplit(self.path).path)
        self.server.log.append((self.command, path))
        parts = path.strip("/").split("/")
        if self.command == "PUT":
            self.upload(parts[-1], body)
        elif path == "/api/validate-yaml":
            self.validate(**json.loads(body))
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif parts[:2] == ["api", "models"]:
            self.api("/".join(parts[2:4]), parts[4:], body)
        elif parts[:2] == ["api", "datasets"]:
            self.api("/".join(parts[1:4]), parts[4:], body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.lfs_batch(path[1:].split(".git/")[0], json.loads(body))
        elif "resolve" in parts[2:4]:
            end = parts.index("resolve")
            self.resolve("/".join(parts[:end]), parts[end + 1], "/".join(parts[end + 2 :]))
        else:
            self.reply(404, error="EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def repository(self, repo_id: str, write: bool = False) -> Repository | None:
        """The repository if the user may read (or write) it; otherwise answers and gives None."""
        repository = self.server.repositories.get(repo_id)
        if repository is None or (repository.private and self.user != repository.owner and not write):
            self.reply(404 if self.user else 401, {"error": "Repository not found"}, error="RepoNotFound")
        elif write and self.user is None:
            self.reply(401, {"error": "Invalid credentials in Authorization header"})
        elif write and self.user != repository.owner:
            self.reply(403, {"error": "You don't have the rights to write to this repository"})
        else:
            return repository
        return None

    def validate(self, content: str, repoType: str = "model"):
        errors = []
        try:
            data = yaml.safe_load(content.split("---")[1])
            for name in ("license", "library_name", "pipeline_tag") if repoType == "model" else ("license",):
                if not isinstance(data.get(name), str):
                    errors.append({"message": f'"{name}" must be a string'})
            for entry in data.get("model-index", []):
                for result in entry["results"]:
                    if not all(result["dataset"].get(key) for key in ("type", "name")):
                        errors.append({"message": '"model-index" needs a dataset'})
        except (IndexError, KeyError, yaml.YAMLError) as error:
            errors.append({"message": f"invalid metadata: {error!r}"})
        self.reply(400 if errors else 200, {"errors": errors, "warnings": []})

    def create(self, request: dict):
        if self.user is None:
            return self.reply(401, {"error": "Invalid credentials in Authorization header"})
        owner = request.get("organization") or self.user
        repo_id = "datasets/" * (request.get("type") == "dataset") + f"{owner}/{request['name']}"
        answer = {"url": f"{self.server.url}/{repo_id}", "name": repo_id}
        if repo_id in self.server.repositories:
            return self.reply(409, answer | {"error": "You already created this model repo"})
        if owner != self.user:
            return self.reply(403, {"error": f"You don't have the rights to create a model under {owner}"})
        private = request.get("visibility") == "private" or bool(request.get("private"))
        self.server.repositories[repo_id] = Repository(owner, private)
        self.reply(200, answer)

    def api(self, repo_id: str, rest: list[str], body: bytes):
        action = rest[0] if rest else "revision"
        repository = self.repository(repo_id, write=self.command == "POST" and action != "paths-info")
        if repository is None:
            return
        revision = "/".join(rest[1:]) or "main"
        if action == "branch":
            if revision in repository.refs:
                return self.reply(409, {"error": "Reference already exists"})
            repository.refs[revision] = repository.refs["main"]
            return self.reply(200, {})
        commit = repository.resolve(rest[1] if len(rest) > 1 else "main")
        if commit is None:
            return self.reply(404, {"error": "Invalid rev id"}, error="RevisionNotFound")
        files = repository.commits[commit]
        if action == "revision":
            siblings = [{"rfilename": name} for name in sorted(files)]
            info = {"id": repo_id, "modelId": repo_id, "sha": commit, "private": repository.private, "tags": []}
            self.reply(200, info | {"siblings": siblings})
        elif action == "tree":
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
            entries = list(self.tree(files, "/".join(rest[2:]), recursive))
            self.reply(200, entries) if entries or len(rest) <= 2 else self.reply(404, error="EntryNotFound")
        elif action == "paths-info":
            fields = parse_qs(body.decode()) or {}
            wanted = fields.get("paths") or json.loads(body)["paths"]
            listed = [entry for entry in self.tree(files, "", recursive=True) if entry["path"] in wanted]
            self.reply(200, listed)
        elif action == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] > LFS_BYTES else "regular",
                    "shouldIgnore": False,
                    "oid": git_oid(files[file["path"]]) if file["path"] in files else None,
                }
                for file in json.loads(body)["files"]
            ]
            self.reply(200, {"files": modes})
        elif action == "commit":
            self.commit(repo_id, repository, rest[1], dict(files), body)
        elif action == "tag":
            tag = json.loads(body)["tag"]
            if tag in repository.refs:
                return self.reply(409, {"error": "Reference already exists"})
            repository.refs[tag] = commit
            self.reply(200, {})
        else:
            self.reply(404, error="EntryNotFound")

    def tree(self, files: dict[str, bytes], folder: str, recursive: bool):
        """Files and folders in a folder, as the Hub describes them."""
        prefix, folders = f"{folder}/" if folder else "", set()
        for name, content in sorted(files.items()):
            if not name.startswith(prefix):
                continue
            parents = name[len(prefix) :].split("/")[:-1]
            for depth in range(1, len(parents) + 1 if recursive else min(len(parents), 1) + 1):
                folders.add(prefix + "/".join(parents[:depth]))
            if recursive or not parents:
                yield self.describe(name, content)
        yield from ({"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())} for path in folders)

    @staticmethod
    def describe(name: str, content: bytes) -> dict:
        entry = {"type": "file", "path": name, "size": len(content), "oid": git_oid(content)}
        if len(content) > LFS_BYTES:
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry

    def commit(self, repo_id: str, repository: Repository, branch: str, files: dict[str, bytes], body: bytes):
        if self.server.fail_commits > 0:
            self.server.fail_commits -= 1
            return self.reply(500, {"error": "Internal Error"})
        for line in body.decode().splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        name = repository.commit(branch, files)
        url = f"{self.server.url}/{repo_id}/commit/{name}"
        self.reply(200, {"success": True, "commitOid": name, "commitUrl": url})

    def lfs_batch(self, repo_id: str, request: dict):
        if self.repository(repo_id, write=True) is None:
            return
        objects = []
        for wanted in request["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.blobs:
                entry["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}
            objects.append(entry)
        self.reply(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str, body: bytes):
        if self.server.refuse_lfs_after is not None:
            if self.server.refuse_lfs_after == 0:
                return self.reply(400, {"error": "upload broke off"})
            self.server.refuse_lfs_after -= 1
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.blobs[oid] = body
        self.reply(200)

    def resolve(self, repo_id: str, revision: str, name: str):
        repository = self.repository(repo_id)
        if repository is None:
            return
        commit = repository.resolve(revision)
        if commit is None:
            return self.reply(404, error="RevisionNotFound")
        content = repository.commits[commit].get(name)
        if content is None:
            return self.reply(404, error="EntryNotFound", headers={"X-Repo-Commit": commit})
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
        status, asked = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            status, start, size = 206, int(asked[1]), len(content)
            content = content[start : int(asked[2] or size) + 1]
            headers["Content-Range"] = f"bytes {start}-{start + len(content) - 1}/{size}"
        if self.command == "GET":
            self.server.served[f"{repo_id}/{name}"] += len(content)
        self.reply(status, content, headers | {"Accept-Ranges": "bytes"})


def git_oid(content: bytes) -> str:
    """Returns the Hub's oid of a file: of the content, or for a large file of its sha256."""
    if len(content) > LFS_BYTES:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def environment(server: HubServer, home: Path, **more) -> dict[str, str]:
    """Variables of a process whose Hub is this server, with an empty cache in `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return (
        kept
        | {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
        | more
    )
