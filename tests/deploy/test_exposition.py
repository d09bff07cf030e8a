"""One page of metrics from several, read back by Prometheus' own parser."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.ray.exposition import merge
from server.metrics import Metrics
from tests.system.test_documents import busy_metrics

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def series(page: bytes) -> Series:
    """All samples of a page by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_every_series_of_every_replica_is_there_once():
    """With its value, its labels, and the replica's name."""
    one, two = busy_metrics(), Metrics(slo_s=0.5)
    two.observe_request("shed", 0.25)
    pages = {"one": one.render()[0], "two": two.render()[0]}
    merged = series(merge(pages))
    expected: Series = {
        (name, labels | {("replica", replica)}): value
        for replica, page in pages.items()
        for (name, labels), value in series(page).items()
    }
    assert len(expected) > 200
    assert merged == expected | {
        ("tocom_replicas", frozenset({("state", "told")})): 2,
        ("tocom_replicas", frozenset({("state", "missing")})): 0,
    }


def test_families_stay_together():
    """The format wants all samples of a family below its one HELP and TYPE."""
    page = merge({name: busy_metrics().render()[0] for name in ("one", "two")}).decode()
    headed = [line for line in page.splitlines() if line.startswith("# TYPE ")]
    assert len(headed) == len(set(headed))
    kinds = {family.name: family.type for family in text_string_to_metric_families(page)}
    assert kinds["tocom_requests"] == "counter"
    assert kinds["tocom_request_duration_seconds"] == "histogram"


@pytest.mark.parametrize("missing", [0, 3])
def test_who_is_missing_is_counted(missing: int):
    """A page without some replicas does not look like a whole one."""
    page = merge({"one": b"# HELP a b\n# TYPE a gauge\na 1.0\n"}, missing)
    assert series(page)["tocom_replicas", frozenset({("state", "missing")})] == missing
    assert series(page)["a", frozenset({("replica", "one")})] == 1.0


def test_odd_labels_stay_as_they_are():
    """Spaces, braces and quotes in a label's value."""
    text = b'# HELP a b {c} d\n# TYPE a gauge\na{x="{ \\" }"} 1.0\n'
    assert series(merge({"one": text}))["a", frozenset({("replica", "one"), ("x", '{ " }')})] == 1.0
