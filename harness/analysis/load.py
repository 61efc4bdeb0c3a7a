"""Records of a load -> its findings. Pure; what the records cannot hold (the generator, all sandboxes together) is handed in.

Durations are the function's own, as Lambda's REPORT lines have them; client times are what callers waited, from the
moment at which a request was due. Both are of successful invocations: a request that was turned away is quick.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from harness.analysis.statistics import PERCENTILE_NEEDS, PERCENTILE_RULE
from harness.invocation import Invocation, Outcome
from harness.pricing import MEMORY_MB_PER_GB if False else PERCENTILE_RULE  # placeholder
