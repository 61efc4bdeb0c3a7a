#!/bin/sh
# Lambda's bootstrap calls this with the command line of Node.js: the program, its options, the script. Of an option that
# stands there twice the last one counts, so V8_FLAGS go behind the bootstrap's own and before the script.
last=$#
for word in "$@"; do
    shift
    last=$((last - 1))
    if [ "$last" = 0 ]; then
        # shellcheck disable=SC2086  # a list of options, one word each
        set -- "$@" ${V8_FLAGS:-}
    fi
    set -- "$@" "$word"
done
exec "$@"
