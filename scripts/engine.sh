#!/bin/sh
# Sees to it that a container engine answers. One that does is used and nothing is installed; else, on Debian and Ubuntu
# as root, Docker is installed from the distribution and started. $1: a Python with the Docker SDK; $2: packages to install.
set -eu
python=$1
packages=$2
log=/var/log/lambda-harness-dockerd.log
wait_s=60
say() { echo "engine: $*" >&2; }

# Prints the engine's name and version, or fails and prints why it does not answer.
ask() {
    "$python" - 2>&1 << 'PYTHON'
import sys
import docker
try:
    version = docker.from_env(version="auto", timeout=5).version()
except Exception as error:
    sys.exit((str(error) or type(error).__name__).splitlines()[0][:160])
print(version.get("Platform", {}).get("Name") or "Docker", version["Version"])
PYTHON
}

if answer=$(ask); then
    say "using $answer"
    exit 0
fi

if [ -n "${DOCKER_HOST:-}" ]; then
    say "no engine answers at DOCKER_HOST=$DOCKER_HOST: $answer"
    say "start it, or unset DOCKER_HOST to use one on this machine"
    exit 4
fi
case $(. /etc/os-release 2> /dev/null && echo "${ID:-} ${ID_LIKE:-}") in
    *debian* | *ubuntu*) ;;
    *)
        say "no container engine answers: $answer"
        say "install Docker (Docker Engine on Linux, Docker Desktop or Colima on a Mac) and start it, then run make again"
        exit 4
        ;;
esac
if [ "$(id -u)" != 0 ]; then
    say "no container engine answers: $answer"
    say "if Docker runs here, let this user use it ('sudo usermod -aG docker $(id -un)', then log in again);"
    say "else install and start it with 'sudo apt-get install $packages', or run 'sudo make engine'"
    exit 4
fi

if ! command -v dockerd > /dev/null || ! command -v mmdebstrap > /dev/null; then
    say "no engine answers: installing $packages from the distribution"
    apt-get update -qq
    # shellcheck disable=SC2086  # a list of packages, one word each
    DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends $packages > "$log" 2>&1 || {
        tail -n 20 "$log" >&2
        say "the installation failed; all of its output is in $log"
        exit 4
    }
fi

# Waits until the engine answers. $1: the daemon's process, where this script started it.
wait_for_engine() {
    waited=0
    while [ $waited -lt $wait_s ]; do
        if answer=$(ask); then
            say "using $answer"
            exit 0
        fi
        if [ -n "$1" ] && ! kill -0 "$1" 2> /dev/null; then
            return 0
        fi
        sleep 1
        waited=$((waited + 1))
    done
}

if [ -d /run/systemd/system ]; then
    say "starting Docker with systemd"
    systemctl start docker || true
    wait_for_engine ""
    systemctl status --no-pager --lines=20 docker >&2 || true
    say "Docker does not come up; 'journalctl -u docker' has all of its log"
    exit 4
fi

# Files of a daemon that a power cut or a snapshot ended name a process that is another one's by now; dockerd and its
# containerd would take that for themselves, running, and never come up.
for file in /run/docker.pid:dockerd /run/docker/containerd/containerd.pid:containerd; do
    if pid=$(cat "${file%:*}" 2> /dev/null) && [ "$(cat "/proc/$pid/comm" 2> /dev/null)" != "${file#*:}" ]; then
        rm -f "${file%:*}"
    fi
done

# No service manager: the daemon becomes a process of its own, which outlives make and its terminal. It must not hold on
# to make's pipes, or whoever reads make's output would wait for the daemon's end.
say "starting dockerd; its log is $log"
setsid dockerd > "$log" 2>&1 < /dev/null 3>&- 4>&- 5>&- &
wait_for_engine $!
tail -n 20 "$log" >&2
say "dockerd does not come up; the end of $log is above"
exit 4
