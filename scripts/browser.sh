#!/bin/sh
# Sees to it that the browser which the report tests open is there: on Debian and Ubuntu as root it is installed.
set -eu
say() { echo "browser: $*" >&2; }
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" > /dev/null; then exit 0; fi
done
if command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
    say "installing chromium from the distribution, for the tests of reports"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends chromium > /dev/null
else
    say "no Chromium: install it (Debian: apt-get install chromium), or the tests that open reports are left out, and named"
fi
