#!/bin/sh
# Ends the virtual machine. Its disk was never changed, so nothing has to be shut down in order.
set -eu
# shellcheck source-path=SCRIPTDIR source=settings.sh
. "$(dirname "$0")/settings.sh"

if ! is_running; then
    say "no virtual machine runs"
    remove_card
    rm -rf "$state"
    exit 0
fi
ssh -F /dev/null -o "ControlPath=$state/ssh" -O exit 127.0.0.1 > /dev/null 2>&1 || true
kill "$running" 2> /dev/null || true
waited=0
while kill -0 "$running" 2> /dev/null; do
    [ $waited -lt 100 ] || kill -9 "$running" 2> /dev/null || true
    sleep 0.1
    waited=$((waited + 1))
done
remove_card
rm -rf "$state"
