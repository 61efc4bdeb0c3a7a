#!/bin/sh
# Runs tests in the virtual machine, or against its engine from outside, and ends the machine if it was started for that.
#   test.sh inside  [--vantage host|agent|api] [MACHINE...] [PYTEST ARGUMENT...]
#   test.sh outside --vantage agent|api [MACHINE...] [PYTEST ARGUMENT...]
#   test.sh beside  [MACHINE...] [PYTEST ARGUMENT...]
# MACHINE: --kernel new|old|uml, --driver systemd|cgroupfs, --engine docker|podman|docker-rootless|podman-rootless.
# inside: vantage host on cgroup version 2. outside: the shape of Docker Desktop, an engine on another kernel behind a port.
# beside: this machine's engine, and that of the other one as well: a sweep over two hosts.
# Without arguments for pytest: all of tests/engine; beside: what is of two engines.
set -eu
# shellcheck source-path=SCRIPTDIR source=settings.sh
. "$(dirname "$0")/settings.sh"

where=${1:-}
case $where in inside | outside | beside) shift ;; *) fail "test.sh inside|outside|beside, not '$where'" "the head of $0 tells more" ;; esac
vantage=""
while [ $# -gt 0 ]; do
    case $1 in
        --vantage) vantage=${2:-} ;;
        --) shift && break ;;
        *) machine_option "$1" "${2:-}" || break ;;
    esac
    [ $# -ge 2 ] || fail "$1 needs a value"
    shift 2
done
case $where,$vantage in
    inside, | inside,host | inside,agent | inside,api | outside,agent | outside,api) ;;
    beside,) ;;
    outside,) fail "outside needs --vantage agent or --vantage api" ;;
    *) fail "vantage '$vantage' is not possible $where" ;;
esac
if [ $# -eq 0 ]; then
    tests=tests/engine
    [ "$where" != beside ] || tests=tests/engine/test_fanout_cluster.py
    set -- "$tests"
fi

started=""
running_tests=""
# shellcheck disable=SC2317  # by the trap
give_back() {
    status=$?
    trap - EXIT INT TERM HUP
    if [ -n "$running_tests" ]; then
        # Ctrl-C at a terminal reached them already, and a second one would end their tidying up.
        [ "$status" = 130 ] || kill -INT "$running_tests" 2> /dev/null || true
        wait "$running_tests" || true
    fi
    [ -z "$started" ] || "$vm_dir/stop.sh" || true
    exit "$status"
}
trap give_back EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

borrow_machine
cd "$checkout"
patience=$(patience_of "$kernel")
export LAMBDA_HARNESS_TEST_PATIENCE="$patience"
[ -z "$vantage" ] || export LAMBDA_HARNESS_VANTAGE="$vantage"
say "tests $where${vantage:+, vantage $vantage}, $kernel kernel, $driver driver, $engine: $*"
set -- -m pytest -p no:cacheprovider -o "timeout=$((300 * patience))" "$@"
# A shell has what it starts in the background ignore Ctrl-C.
address=tcp://127.0.0.1:$engine_port
case $where in
    inside) env --default-signal=INT "$vm_dir/inside.sh" python "$@" & ;;
    outside)
        # For a debugger. The engine takes ports from this range, too, one after the other: seldom this one.
        export LAMBDA_HARNESS_TEST_PORT="$last_port"
        [ ! -S "$state/monitor" ] || export LAMBDA_HARNESS_TEST_MONITOR="$state/monitor"
        DOCKER_HOST=$address env --default-signal=INT "$python" "$@" &
        ;;
    beside) LAMBDA_HARNESS_TEST_OTHER_ENGINE=$address env --default-signal=INT "$python" "$@" & ;;
esac
running_tests=$!
status=0
wait $running_tests || status=$?
running_tests=""
exit $status
