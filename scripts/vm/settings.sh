# What all scripts of the virtual machine agree on; sourced by them, never run. Everything can be set from outside.
# shellcheck shell=sh disable=SC2034,SC2154  # the scripts that source this use them, and set `log`

say() { echo "vm: $*" >&2; }
fail() {
    say "$1"
    [ -z "${2:-}" ] || say "$2"
    exit 4
}

# Debian's releases: of the system, and of the kernel that cannot reset memory.peak.
release=trixie
old_release=bookworm

vm_dir=$(cd "$(dirname "$0")" && pwd)
checkout=$(cd "$vm_dir/../.." && pwd)
cache=${LAMBDA_HARNESS_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lambda-harness/vm}

# One machine at a time has this folder: its process, its sockets, its console. Another one needs another, and other ports.
state=${LAMBDA_HARNESS_VM_STATE:-$cache/state}

engine_port=${LAMBDA_HARNESS_VM_PORT:-23750}
ssh_port=${LAMBDA_HARNESS_VM_SSH_PORT:-23722}
# What containers publish on the loopback of the machine inside is reached on the loopback out here, under the same ports, as with Docker
# Desktop: the engine takes free ports from the range that the kernel inside is told.
first_port=${LAMBDA_HARNESS_VM_FIRST_PORT:-24000}
last_port=$((first_port + 63))
cpus=${LAMBDA_HARNESS_VM_CPUS:-2}
# Where Linux runs as a program it has a network card of its own: one end here, named after this machine's port.
card=lhvm$ssh_port
net=198.18.$((ssh_port % 256))
memory=${LAMBDA_HARNESS_VM_MEMORY:-4G}
boot_wait_s=${LAMBDA_HARNESS_VM_BOOT_WAIT_S:-600}

inner_checkout=/srv/lambda-harness
# Whose engine a rootless one is.
inner_user=harness
inner_uid=1000
inner_python=/opt/venv/bin/python

python=${LAMBDA_HARNESS_VM_PYTHON:-$checkout/.venv/bin/python}
[ -x "$python" ] || fail "there is no Python with this project at $python" "run 'make venv', or name one with LAMBDA_HARNESS_VM_PYTHON"

# Runs a command that says nothing where it works: its output goes to the file `log`.
loud() {
    "$@" > "$log" 2>&1 || {
        tail -n 20 "$log" >&2
        fail "$(basename "$1") failed; the end of its output is above"
    }
}
# COMMAND:PACKAGE...: has the distribution install the packages (Debian's names) whose commands are missing.
install_missing() {
    missing=""
    for each in "$@"; do
        command -v "${each%%:*}" > /dev/null || missing="$missing ${each#*:}"
    done
    [ -n "$missing" ] || return 0
    command -v apt-get > /dev/null || fail "these are missing:$missing" "install them (the names are Debian's)"
    say "installing from the distribution:$missing"
    apt-get update -qq
    # shellcheck disable=SC2086  # several packages
    DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends $missing > /dev/null \
        || fail "the installation of$missing failed"
}

# ssh with what it needs to know of the machine. One connection, which start.sh opens, serves all calls.
vm_ssh() {
    ssh -F /dev/null -i "$state/key" -o IdentitiesOnly=yes -o StrictHostKeyChecking=no \
        -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=60 -o ServerAliveInterval=30 \
        -o ServerAliveCountMax=10 -o "ControlPath=$state/ssh" "$@"
}
inside() {
    vm_ssh -p "$ssh_port" root@127.0.0.1 "$@"
}

# Which engines the machine has, and where each listens in there.
engine_socket() {
    case $1 in
        docker) echo /run/docker.sock ;;
        podman) echo /run/podman/podman.sock ;;
        docker-rootless) echo "/run/user/$inner_uid/docker.sock" ;;
        podman-rootless) echo "/run/user/$inner_uid/podman/podman.sock" ;;
        *) fail "--engine is docker, podman, docker-rootless or podman-rootless, not '$1'" ;;
    esac
}

remove_card() {
    [ ! -e "/sys/class/net/$card" ] || ip link delete "$card"
}

# Sets `running` to the process of the machine.
is_running() {
    running=$(cat "$state/pid" 2> /dev/null || true)
    [ -n "$running" ] || return 1
    # Linux cuts names of processes at 15 characters.
    case $(cat "/proc/$running/comm" 2> /dev/null) in qemu-system-x86 | linux-uml) ;; *) return 1 ;; esac
}

# How much longer than on a laptop everything takes, whose kernel is KERNEL: Linux as a program, a processor emulated in software.
patience_of() {
    case $1 in uml) slower=4 ;; *) slower=10 ;; esac
    echo "${LAMBDA_HARNESS_TEST_PATIENCE:-$slower}"
}

# What kind of machine is asked for: the options that start.sh, test.sh and engines.sh share. `machine_option NAME VALUE` is
# false where NAME is none of them.
kernel=new
driver=systemd
engine=docker
machine_option() {
    case $1 in
        --kernel) kernel=$2 ;;
        --driver) driver=$2 ;;
        --engine) engine=$2 ;;
        *) return 1 ;;
    esac
}
# The machine that runs, if it is of that kind, or one that is booted now: then sets `started`, and the caller ends it.
borrow_machine() {
    started=""
    if is_running; then
        [ "$(cat "$state/kind")" = "$kernel $driver $engine" ] \
            || fail "a virtual machine of another kind runs: $(cat "$state/kind")" "scripts/vm/stop.sh ends it"
    else
        "$vm_dir/start.sh" --kernel "$kernel" --driver "$driver" --engine "$engine"
        started=yes
    fi
}
