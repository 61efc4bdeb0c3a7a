#!/bin/sh
# Gives the sample functions what git does not hold: npm and Python packages, and the picture that two of them resize.
# $1: a Python with this project in it. What was made from the same files before is left alone, or copied from the cache.
set -eu
exec "$1" - << 'PYTHON'
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from harness.engine import parts
from harness.errors import HarnessError

SAMPLES = Path("sample_functions")
PICTURES = ("image_resize_node", "image_resize_python")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
STAMP = ".made-from"
TIMEOUT_S = 600
MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())


def say(text):
    print(f"samples: {text}", file=sys.stderr, flush=True)


def run(command, folder, **environment):
    # Node.js trusts its own certificates alone; behind a proxy with one of its own the system's are needed as well.
    if CERTIFICATES.is_file() and "NODE_EXTRA_CA_CERTS" not in os.environ:
        environment["NODE_EXTRA_CA_CERTS"] = str(CERTIFICATES)
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=TIMEOUT_S,
    )
    if done.returncode:
        print(done.stdout[-3000:], file=sys.stderr)
        sys.exit(f"samples: {' '.join(map(str, command[:4]))} ended with {done.returncode}; its output is above")


def provide(target, kind, sources, make):
    """The directory ``target``, made from the files ``sources`` by ``make(folder)``, which returns it; through the cache."""
    content = hashlib.sha256(f"{kind} {MACHINE}".encode())
    for path in sources:
        content.update(f"\n{path.name} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    made_from = content.hexdigest()
    stamp = target / STAMP
    if stamp.is_file() and stamp.read_text() == made_from:
        return
    cached = parts.cache_dir() / "samples" / f"{kind}-{made_from[:24]}"
    if not cached.is_dir():
        say(f"making {target}")
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent, prefix=".making-") as folder:
            made = make(Path(folder))
            (made / STAMP).write_text(made_from)
            made.rename(cached)
    # A copy, no link: a sandbox sees nothing outside of the function's directory, and an edit must not reach the cache.
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix=".copying-") as folder:
        shutil.copytree(cached, Path(folder) / "copy", symlinks=True)
        shutil.move(Path(folder) / "copy", target)


def npm_packages(sample):
    manifest = json.loads((sample / "package.json").read_text())
    if not manifest.get("dependencies"):
        return
    lock = sample / "package-lock.json"
    if not lock.is_file():
        sys.exit(f"samples: {lock} is missing: 'npm install --package-lock-only --omit-lockfile-registry-resolved' makes it")
    vendored = sorted(path for path in (sample / "vendor").rglob("*") if path.is_file())

    def make(folder):
        for path in (sample / "package.json", lock):
            shutil.copy(path, folder)
        if vendored:
            shutil.copytree(sample / "vendor", folder / "vendor")
        # What is installed follows from the lock file, whose hashes npm checks. No script of a package is run. The
        # system is named outright: on a Mac the packages are for the sandbox all the same.
        cpu = {"x86_64": "x64", "aarch64": "arm64"}.get(MACHINE, MACHINE)
        options = ["--ignore-scripts", "--omit=dev", "--install-links", "--no-audit", "--no-fund"]
        system = ["--os=linux", f"--cpu={cpu}", "--libc=glibc"]
        run([*parts.npm(say), "ci", *options, *system], folder)
        return folder / "node_modules"

    provide(sample / "node_modules", "npm", [sample / "package.json", lock, *vendored], make)


def python_packages(sample):
    version = tomllib.loads((sample / "function.toml").read_text())["runtime"].removeprefix("python")
    # manylinux_2_34 is what Amazon Linux 2023 can load; pip takes each tag by name, not those that it includes.
    tags = [*(f"manylinux_2_{minor}_{MACHINE}" for minor in range(34, 16, -1)), f"manylinux2014_{MACHINE}"]

    def make(folder):
        options = ["--quiet", "--no-compile", "--only-binary=:all:"]
        system = ["--python-version", version, "--implementation", "cp", *(f"--platform={tag}" for tag in tags)]
        target = folder / "made"
        requirements = (sample / "requirements.txt").resolve()
        run([*pip_install(target), *options, *system, "--requirement", requirements], folder)
        return target

    provide(sample / "python", f"python{version}", [sample / "requirements.txt"], make)


def picture(sample):
    script = Path("scripts/photograph.py")
    requirements = SAMPLES / "image_resize_python/requirements.txt"
    pillow = re.search(r"^pillow==[\w.]+", requirements.read_text(), re.MULTILINE)[0]

    def make(folder):
        own = folder / "pillow"  # for this Python; the sample's is for the sandbox's
        run([*pip_install(own), "--quiet", "--only-binary=:all:", pillow], folder)
        target = folder / "made"
        target.mkdir()
        run([sys.executable, script.resolve(), target / "photograph.jpg"], folder, PYTHONPATH=str(own))
        return target

    provide(sample / "picture", "picture", [script, requirements], make)


def pip_install(target):
    return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--target", target]


os.umask(0o022)  # the sandbox's user has to read it all
try:
    with parts.locked("samples"):
        for sample in sorted(path for path in SAMPLES.iterdir() if path.is_dir()):
            if (sample / "package.json").is_file():
                npm_packages(sample)
            if (sample / "requirements.txt").is_file():
                python_packages(sample)
            if sample.name in PICTURES:
                picture(sample)
except HarnessError as error:
    sys.exit(f"samples: {error}; {error.remedy}")
PYTHON
