"""Local receivers of what functions send to AWS: metrics to CloudWatch, traces to X-Ray, lines to CloudWatch Logs.

They stand inside the network namespace of each sandbox, on 127.0.0.1, where the SDKs are told to send; nothing of it
leaves the machine. Must know nothing of sandboxes, pools or the service: they are handed ways into networks, output, records.
"""

from harness.receivers.logs import LogEvent, LogFiles
from harness.receivers.server import Attendance, Receivers

__all__ = ["Attendance", "LogEvent", "LogFiles", "Receivers"]
