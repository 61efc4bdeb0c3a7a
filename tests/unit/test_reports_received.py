"""What local receivers got, as text."""

from __future__ import annotations

from harness.reports.received import metric_rows, trace_lines


def test_each_form_of_a_metric_shows_its_figures() -> None:
    rows = metric_rows(
        [
            {"MetricName": "a", "Namespace": "N", "Value": 1.5, "Unit": "Count", "Dimensions": [{"Name": "k", "Value": "v"}]},
            {"MetricName": "b", "Namespace": "N", "Values": [1, 2], "Counts": [1, 3]},
            {"MetricName": "c", "Namespace": "N", "StatisticValues": {"SampleCount": 4, "Minimum": 1, "Maximum": 9, "Sum": 12}},
            {"MetricName": "d", "Namespace": "N"},
        ]
    )  # fmt: skip
    assert rows[0] == ["a", "N", "k=v", "1.5", "Count"]
    assert [row[3] for row in rows[1:]] == ["1, 2 (3 times)", "4 samples, 1 to 9", "not given"]


def test_a_trace_is_a_tree_with_what_went_wrong() -> None:
    lines = trace_lines(
        {
            "name": "f", "start_time": 10.0, "end_time": 10.25, "origin": "AWS::Lambda", "fault": True,
            "subsegments": [{"name": "inner", "start_time": 10.1, "annotations": {"items": 3}}],
        }
    )  # fmt: skip
    assert lines == ["f  250 ms  fault  AWS::Lambda", "  inner  in progress  items=3"]
