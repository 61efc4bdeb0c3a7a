#!/bin/sh
# A rootful Podman service with a configuration and a storage of its own, for tests of the harness on Podman:
# podman.sh start SOCKET    starts it and loads the harness's images out of the engine that answers otherwise
# podman.sh stop SOCKET     removes its containers and storage, and ends it
# Everything lies in the folder SOCKET.state; neither the system's Podman nor Docker is touched, but the bridge podman0 and
# netavark's chains in iptables (which stay) are one and the same. Podman is not installed by this script (Debian and
# Ubuntu: podman, netavark, iptables, and crun or runc).
# LAMBDA_HARNESS_IMAGES: names of the images to load, in place of all that the harness built.
set -eu
action=${1:-} socket=${2:-}
wait_s=30
say() { echo "podman: $*" >&2; }
case "$action $socket" in
    "start /"* | "stop /"*) ;;
    *)
        say "usage: podman.sh start|stop SOCKET (an absolute path)"
        exit 2
        ;;
esac
state=$socket.state
export CONTAINERS_CONF="$state/containers.conf" CONTAINERS_STORAGE_CONF="$state/storage.conf"

# Podman against this service, whatever engine the caller's environment names.
own() { env -u DOCKER_HOST -u CONTAINER_HOST podman --remote --url "unix://$socket" "$@"; }

stop() {
    [ -d "$state" ] || return 0
    if [ -f "$CONTAINERS_STORAGE_CONF" ]; then
        # The service is not asked: it may be gone. What is paused has to go on to be killed on version 1 of cgroups.
        timeout "$wait_s" podman unpause --all > /dev/null 2>&1 || true
        timeout "$wait_s" podman rm --all --force --volumes --time 0 > "$state/removed" 2>&1 || {
            cat "$state/removed" >&2
            say "there are containers that cannot be removed; $state stays"
            exit 4
        }
    fi
    if pid=$(cat "$state/service.pid" 2> /dev/null) && [ "$(cat "/proc/$pid/comm" 2> /dev/null)" = podman ]; then
        kill "$pid"
        while [ -d "/proc/$pid" ] && ! grep -qs '^State:.Z' "/proc/$pid/status"; do sleep 0.1; done
    fi
    # The monitor of a command that was run in a container outlives it by five minutes, and would make the folder again.
    for process in /proc/[0-9]*; do
        if [ "$(cat "$process/comm" 2> /dev/null)" = conmon ] && grep -qsaF "$state/" "$process/cmdline"; then
            kill "${process#/proc/}" 2> /dev/null || true
        fi
    done
    # It was mounted once for the service, again for commands beside it, and what Podman runs after a container's end may do
    # so once more.
    tries=20
    while umount --lazy "$state/storage/overlay" 2> /dev/null; do :; done
    until rm -rf "$state" "$socket" 2> /dev/null; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || {
            say "$state cannot be removed: something is mounted in it"
            exit 4
        }
        sleep 0.5
        while umount --lazy "$state/storage/overlay" 2> /dev/null; do :; done
    done
}

may_raise_limits() {
    effective=$(awk '/^CapEff/ { print $2 }' /proc/self/status)
    [ $((0x$effective >> 24 & 1)) = 1 ] # CAP_SYS_RESOURCE
}

# Podman gives containers limits above this process's own, which it may not do here, and its API cannot be told others:
# what is asked of the runtime is lowered on the way to it.
lower_limits() {
    cat > "$state/$runtime" << SCRIPT
#!/bin/sh
config=
previous=
for word; do
    case \$previous in
        --bundle) config=\$word/config.json ;;
        --process) config=\$word ;;
    esac
    previous=\$word
done
[ -z "\$config" ] || python3 - "\$config" << 'PYTHON'
import json, pathlib, resource, sys
path = pathlib.Path(sys.argv[1])
config = json.loads(path.read_text())
for each in config.get("process", config).get("rlimits", []):
    _, highest = resource.getrlimit(getattr(resource, each["type"]))
    if highest != resource.RLIM_INFINITY:
        each["hard"], each["soft"] = min(each["hard"], highest), min(each["soft"], highest)
path.write_text(json.dumps(config))
PYTHON
exec $(command -v $runtime) "\$@"
SCRIPT
    chmod +x "$state/$runtime"
    printf '[engine.runtimes]\n%s = ["%s"]\n' "$runtime" "$state/$runtime" >> "$CONTAINERS_CONF"
}

start() {
    [ "$(id -u)" = 0 ] || { say "a rootful Podman needs root"; exit 4; }
    command -v podman > /dev/null || { say "podman is not installed"; exit 4; }
    if [ -e "$state" ]; then
        say "$state is there already: stop it first"
        exit 2
    fi
    # crun 1.8 gives up where version 2 of cgroups has controllers beside version 1; runc does not.
    runtime=crun
    ! grep -qs . /sys/fs/cgroup/unified/cgroup.controllers || runtime=runc
    command -v "$runtime" > /dev/null || { say "$runtime is not installed"; exit 4; }
    mkdir -p "$state"
    # Without systemd there is neither its cgroup driver nor its journal. Locks in memory would be the system's too.
    cat > "$CONTAINERS_CONF" << CONF
[engine]
runtime = "$runtime"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
events_logfile_path = "$state/events.log"
static_dir = "$state/libpod"
tmp_dir = "$state/run"
volume_path = "$state/volumes"
[network]
network_backend = "netavark"
network_config_dir = "$state/networks"
CONF
    may_raise_limits || lower_limits
    cat > "$CONTAINERS_STORAGE_CONF" << CONF
[storage]
driver = "overlay"
graphroot = "$state/storage"
runroot = "$state/runroot"
CONF
    # Its monitors leave a file "oom" where they were started, after an out-of-memory kill.
    env --chdir="$state" setsid podman system service --time=0 "unix://$socket" > "$state/service.log" 2>&1 < /dev/null 3>&- 4>&- 5>&- &
    echo $! > "$state/service.pid"
    waited=0
    until own version > /dev/null 2>&1; do
        waited=$((waited + 1))
        if [ $waited -gt $wait_s ] || ! kill -0 "$(cat "$state/service.pid")" 2> /dev/null; then
            tail -n 20 "$state/service.log" >&2
            say "the service does not come up; the end of its log is above"
            exit 4
        fi
        sleep 1
    done
    say "Podman $(own version --format '{{.Server.Version}}') answers at unix://$socket; its log is $state/service.log"
    images=${LAMBDA_HARNESS_IMAGES:-$(docker image ls --filter label=lambda-harness.image --format '{{.Repository}}:{{.Tag}}' |
        grep -v -e '<none>' -e ':dev$' || true)}
    if [ -z "$images" ]; then
        say "the other engine has none of the harness's images: 'lambda-harness images build' makes them there first"
        exit 0
    fi
    # shellcheck disable=SC2086  # a list of names, one word each
    docker save $images | podman load --quiet > "$state/loaded" || { say "the images could not be loaded"; exit 4; }
    say "$(echo "$images" | wc -w) images loaded"
}

"$action"
