"""The agent: the harness's cgroup code, running in a container beside the sandboxes, on the kernel that runs them.

`wire` is how the two sides talk, over the container's standard streams; `inside` is the agent's own process; `link` is the
side of the harness. `wire` and `inside`, and what they import, need Python's standard library alone.
"""
