#!/bin/sh
# What each figure is worth on the virtual machine's engine, in every way there is to it; stores the runs for docs/engines.md.
#   engines.sh [--kernel new|old|uml] [--driver systemd|cgroupfs] [--engine docker|podman|docker-rootless|podman-rootless] [WAY...]
# WAY: inside:host (not on a rootless engine), inside:agent, inside:api, and through the forwarded port outside:agent, outside:api.
# Without one: all of them.
# 'bench/engines.py --table' then prints the matrix. A figure that is wrong ends it with exit code 8, the others done.
set -eu
# shellcheck source-path=SCRIPTDIR source=settings.sh
. "$(dirname "$0")/settings.sh"

while [ $# -gt 0 ]; do
    case $1 in
        inside:host | inside:agent | inside:api | outside:agent | outside:api) break ;;
        *) machine_option "$1" "${2:-}" || fail "engines.sh does not know '$1'" "the head of $0 tells what it takes" ;;
    esac
    [ $# -ge 2 ] || fail "$1 needs a value"
    shift 2
done
if [ $# -eq 0 ]; then
    set -- inside:agent inside:api outside:agent outside:api
    case $engine in *-rootless) ;; *) set -- inside:host "$@" ;; esac
fi

started=""
measuring=""
result=$(mktemp)
# shellcheck disable=SC2317  # by the trap
give_back() {
    status=$?
    trap - EXIT INT TERM HUP
    if [ -n "$measuring" ]; then
        kill -INT "$measuring" 2> /dev/null || true
        wait "$measuring" || true
    fi
    rm -f "$result"
    [ -z "$started" ] || "$vm_dir/stop.sh" || true
    exit "$status"
}
trap give_back EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

borrow_machine

cd "$checkout"
wrong=0
for way in "$@"; do
    vantage=${way#*:}
    say "$way"
    machine=emulated
    [ "$kernel" != uml ] || machine=program
    set -- bench/engines.py --machine "$machine" --json --vantage "$vantage"
    # In the background, since a shell hears no signal before what it has in the foreground ends.
    case $way in
        inside:*) env --default-signal=INT "$vm_dir/inside.sh" python "$@" > "$result" & ;;
        outside:*) DOCKER_HOST=tcp://127.0.0.1:$engine_port env --default-signal=INT "$python" "$@" > "$result" & ;;
    esac
    measuring=$!
    status=0
    wait "$measuring" || status=$?
    measuring=""
    [ "$status" = 0 ] || [ "$status" = 8 ] || exit "$status"
    "$python" bench/engines.py --take --out docs/results/engines < "$result" || wrong=$?
done
exit "$wrong"
