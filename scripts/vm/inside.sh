#!/bin/sh
# Runs a command inside the running virtual machine, in the checkout as it is now: inside.sh COMMAND [ARGUMENT...]
# `python` there is the environment with the project and what its tests need. It is root's, but where the engine is rootless its user's.
set -eu
# shellcheck source-path=SCRIPTDIR source=settings.sh
. "$(dirname "$0")/settings.sh"

[ $# -gt 0 ] || fail "inside.sh needs a command" "scripts/vm/inside.sh python -m pytest tests/engine/test_freeze.py"
is_running || fail "no virtual machine runs" "scripts/vm/start.sh boots one"

# Files that are gone from the checkout go inside as well; what git ignores stays: the samples' packages came with the disk.
cd "$checkout"
files=$state/files.$$
token=/run/inside.$$
session=""
# shellcheck disable=SC2317  # by the trap
give_back() {
    status=$?
    trap - EXIT INT TERM HUP
    rm -f "$files"
    # The command inside does not see that its caller is gone; what it says while it tidies up still comes through.
    if [ -n "$session" ] && kill -0 "$session" 2> /dev/null; then
        inside "kill -INT \$(cat $token)" < /dev/null > /dev/null 2>&1 || true
        wait "$session" || true
    fi
    exit "$status"
}
trap give_back EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
git ls-files --cached --others --exclude-standard | while IFS= read -r each; do
    [ ! -f "$each" ] || printf '%s\n' "$each"
done > "$files"
tar --verbatim-files-from -T "$files" -cf - < /dev/null \
    | inside "cd $inner_checkout && { [ ! -f .files ] || xargs -d '\n' rm -f < .files; } && tar --no-same-owner -xf -"
inside "cat > $inner_checkout/.files" < "$files"

engine=$(cut -d ' ' -f 3 "$state/kind")
patience=$(patience_of "$(cut -d ' ' -f 1 "$state/kind")")
line="cd $inner_checkout && export PATH=/opt/venv/bin:\$PATH LAMBDA_HARNESS_TEST_PATIENCE=$patience"
[ "$engine" = docker ] || line="$line DOCKER_HOST=unix://$(engine_socket "$engine")"
[ -z "${LAMBDA_HARNESS_VANTAGE:-}" ] || line="$line LAMBDA_HARNESS_VANTAGE=$LAMBDA_HARNESS_VANTAGE"
line="$line && echo \$\$ > $token && exec"
case $engine in
    *-rootless)
        line="$line setpriv --reuid=$inner_uid --regid=$inner_uid --init-groups --"
        line="$line env HOME=/home/$inner_user USER=$inner_user XDG_RUNTIME_DIR=/run/user/$inner_uid"
        line="$line DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$inner_uid/bus"
        ;;
esac
for word in "$@"; do
    line="$line '$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'"
done
# In the background, since a shell hears no signal before what it has in the foreground ends.
exec 3<&0
ended=0
inside "$line" <&3 3<&- &
session=$!
wait "$session" || ended=$?
session=""
exit "$ended"
