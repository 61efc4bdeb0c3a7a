"""The first Python file of a sandbox: puts the function's code and layers on the path, then hands over to AWS's client."""

import os
import sys

# Before the function's path stands: its modules must not take the place of what the client needs.
from awslambdaric.__main__ import main

# As on Lambda: the code first, then the layers, then what the runtime itself brings.
sys.path[0:1] = [
    os.environ["LAMBDA_TASK_ROOT"],
    "/opt/python/lib/python3.13/site-packages",
    "/opt/python",
]

main([sys.argv[0], os.environ["_HANDLER"]])
