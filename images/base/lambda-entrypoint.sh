#!/bin/sh
# The entrypoint of Lambda's images: the handler as the one argument; the emulator unless a Runtime API is there already.
if [ $# -ne 1 ]; then
    echo "the entrypoint takes exactly one argument, the name of the handler; it was given $#" >&2
    exit 142
fi
export _HANDLER="$1"
if [ -z "${AWS_LAMBDA_RUNTIME_API:-}" ]; then
    exec /usr/local/bin/aws-lambda-rie /var/runtime/bootstrap
fi
exec /var/runtime/bootstrap
