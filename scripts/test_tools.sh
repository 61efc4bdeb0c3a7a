#!/bin/sh
# Sees to it that what only tests need is there: the browser which they open pages in and the driver that steers it, curl for
# the commands of the documents, ip for an engine of a test's own. On Debian and Ubuntu as root they are installed.
set -eu
say() { echo "test tools: $*" >&2; }
missing=""
browser=""
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" > /dev/null; then browser=$name; fi
done
if [ -z "$browser" ]; then missing="chromium"; fi
if ! command -v chromedriver > /dev/null; then missing="$missing chromium-driver"; fi
if ! command -v curl > /dev/null; then missing="$missing curl"; fi
if ! command -v ip > /dev/null; then missing="$missing iproute2"; fi
if [ -z "$missing" ]; then exit 0; fi
if command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
    say "installing from the distribution:" $missing
    apt-get update -qq
    # shellcheck disable=SC2086  # several packages
    DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends $missing > /dev/null
else
    say "install (Debian's names):" $missing "- or the tests that need them are left out, and named, or fail"
fi
