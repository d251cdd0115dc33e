"""The aggregators that the documents show, word for word."""

from fedjx.aggregation import clip_by_norm
from tests.aggregation.case import Case
from tests.algorithms.cases_documents import shown
from tests.test_documents import ROOT

SHOWN = shown(ROOT / "docs" / "aggregation.md")

CASES = {"slowly": Case(SHOWN["slowly"](decay=0.5, inner=clip_by_norm(max_norm=1.0)))}
