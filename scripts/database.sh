#!/bin/sh
# $1 start: a PostgreSQL server in a container on the engine's default bridge network, where sandboxes reach it; a second
# start leaves it alone. $1 stop: removes it with all its data. $1 image: makes its image alone, and prints that of its base and its own.
# $2: a Python with this project in it.
# DATABASE_IDLE_S (5): after so many idle seconds the server ends a session. 0: never. DATABASE_WAIT_S (60): so long it may take to come up.
set -eu
exec "$2" - "$1" << 'PYTHON'
import hashlib
import os
import secrets
import sys
import time
from pathlib import Path

import docker
import docker.errors

from harness.engine import build
from harness.engine.client import LABEL, Engine
from harness.errors import HarnessError

SAMPLE = Path("sample_functions/database_connection_python")
RECIPE = SAMPLE / "server"
URL_FILE = SAMPLE / "database.url"
CHECKOUT = hashlib.sha256(str(Path.cwd()).encode()).hexdigest()[:8]
NAME = f"{LABEL}-database-{CHECKOUT}"  # checkouts on one engine do not get in each other's way
WAIT_S = float(os.environ.get("DATABASE_WAIT_S", "60"))


def say(text):
    print(f"database: {text}", file=sys.stderr)


def image(client, architecture):
    """The server's image, built where it is not there yet: its tag is a hash over all that goes into it."""
    base = build.content_tag("base", architecture)
    try:
        client.images.get(base)
    except docker.errors.ImageNotFound:
        sys.exit(f"database: the image {base} is not there; run 'make images', then again")
    content = hashlib.sha256(base.encode())
    for path in sorted(RECIPE.iterdir()):
        content.update(path.name.encode() + path.read_bytes())
    tag = f"{build.REPOSITORY}/database:{content.hexdigest()[:12]}"
    try:
        client.images.get(tag)
    except docker.errors.ImageNotFound:
        say("building PostgreSQL's image from Debian's packages (about a minute, once)")
        proxies = {key: os.environ[key] for key in os.environ if key.lower() in ("http_proxy", "https_proxy", "no_proxy")}
        try:
            client.images.build(path=str(RECIPE), tag=tag, rm=True, forcerm=True, buildargs={"BASE": base, **proxies})
        except docker.errors.BuildError as error:
            said = "".join(part.get("stream", "") for part in error.build_log)
            sys.exit(f"database: the image could not be built: {error.msg}\n{said[-2000:]}")
    return tag


def existing(client):
    try:
        return client.containers.get(NAME)
    except docker.errors.NotFound:
        return None


def remove(client):
    found = existing(client)
    if found is not None:
        found.remove(force=True, v=True)
    URL_FILE.unlink(missing_ok=True)
    return found is not None


def start(client, architecture):
    found = existing(client)
    if found is not None and found.status == "running" and URL_FILE.exists():
        say("the server runs already; 'make database-stop' removes it")
        return
    remove(client)  # what a power cut or a restart of the engine left
    tag = image(client, architecture)
    password = secrets.token_urlsafe(18)
    try:
        container = client.containers.run(
            tag,
            name=NAME,
            detach=True,
            environment={"DATABASE_PASSWORD": password, "DATABASE_IDLE_S": os.environ.get("DATABASE_IDLE_S", "5")},
            labels={LABEL: "1", f"{LABEL}.database": CHECKOUT},
            read_only=True,
            tmpfs={"/tmp": "mode=1777,size=256m"},
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            mem_limit="384m",
            memswap_limit="384m",
            pids_limit=128,
        )
        deadline = time.monotonic() + WAIT_S
        while container.exec_run(["pg_isready", "--quiet", "--host=127.0.0.1"]).exit_code != 0:
            container.reload()
            if container.status != "running" or time.monotonic() > deadline:
                raise RuntimeError(container.logs().decode(errors="replace")[-2000:])
            time.sleep(0.2)
        container.reload()
        address = container.attrs["NetworkSettings"]["IPAddress"]
        # The sandbox's user reads it: another one than whoever runs this.
        URL_FILE.write_text(f"postgresql://lambda:{password}@{address}:5432/postgres\n")
        URL_FILE.chmod(0o644)
    except BaseException as error:
        remove(client)
        if isinstance(error, (RuntimeError, docker.errors.APIError)):
            sys.exit(f"database: the server did not come up: {error}")
        raise
    say(f"PostgreSQL answers at {address}:5432, for sandboxes and this machine only; 'make database-stop' removes it")
    if not any(SAMPLE.glob("python/pg8000*")):
        say("its driver is not installed yet: run 'make samples'")


try:
    engine = Engine()
    if sys.argv[1] == "start":
        start(engine.docker, engine.facts().architecture)
    elif sys.argv[1] == "image":
        architecture = engine.facts().architecture
        print(build.content_tag("base", architecture), image(engine.docker, architecture))
    else:
        say("removed, with its data" if remove(engine.docker) else "there was none")
except HarnessError as error:
    sys.exit(f"database: {error}")
PYTHON
