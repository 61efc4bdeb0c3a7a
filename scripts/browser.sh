#!/bin/sh
# Sees to it that the browser which the tests of reports and of the service's page open is there, and the driver that
# steers it: on Debian and Ubuntu as root they are installed.
set -eu
say() { echo "browser: $*" >&2; }
missing=""
browser=""
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" > /dev/null; then browser=$name; fi
done
if [ -z "$browser" ]; then missing="chromium"; fi
if ! command -v chromedriver > /dev/null; then missing="$missing chromium-driver"; fi
if [ -z "$missing" ]; then exit 0; fi
if command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
    say "installing from the distribution, for the tests that open pages:" $missing
    apt-get update -qq
    # shellcheck disable=SC2086  # several packages
    DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends $missing > /dev/null
else
    say "install (Debian's names):" $missing "- or the tests that open pages are left out, and named"
fi
