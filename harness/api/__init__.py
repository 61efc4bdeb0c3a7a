"""The Lambda-compatible HTTP service: AWS's operations over pools of sandboxes, and a page that shows them.

May use everything below it and is used by `harness.cli` alone. Must not measure anything: figures come from records.
"""
