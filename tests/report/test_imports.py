"""Reading results needs neither torch nor Lightning nor Hydra's runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from recexp.evaluation import metrics
from recexp.report.ranks import TIES, Ranks

READERS = (
    "collect",
    "formats",
    "tables",
    "ranks",
    "significance",
    "comparison",
    "convergence",
    "statistics",
    "validation",
    "claim_tests",
    "scorecard",
    "figures",
    "page",
    "write",
    "__main__",
    "papers.published",
    "papers.matching",
    "papers.deviations",
    "papers.recipe",
    "papers.settings",
    "papers.claims",
    "papers.paper_tables",
)
SLOW_TO_IMPORT = ("torch", "lightning", "pytorch_lightning", "hydra")
CHECK = f"""
import sys
loaded = [name for name in {SLOW_TO_IMPORT} if name in sys.modules]
sys.exit(f"imported {{loaded}}" if loaded else 0)
"""


def run(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_importing_what_reads_results_imports_no_torch():
    imports = "\n".join(f"import recexp.report.{name}" for name in READERS)
    run(imports + CHECK)


def test_tables_of_results_without_a_published_figure_need_no_torch():
    """Beside a published figure, settings are compared with the defaults of the constructors."""
    results = Path(__file__).parents[2] / "docs" / "results" / "implicit_to_explicit"
    run(f"from recexp.report.__main__ import main\nmain([{str(results)!r}])" + CHECK)


@pytest.mark.parametrize("ties", TIES)
def test_metrics_of_ranks_have_the_digits_of_the_evaluation(ties):
    generator = np.random.default_rng(0)
    better_U = generator.binomial(100, generator.beta(0.5, 2.0, 500))
    tied_U = np.minimum(generator.poisson(0.5, 500), 100 - better_U)
    ranks = Ranks(np.arange(500), better_U, tied_U, 101)
    better, tied = torch.from_numpy(better_U), torch.from_numpy(tied_U)
    expected = {
        "hr@3": metrics.expected_hr(better, tied, 3, ties),
        "ndcg@10": metrics.expected_ndcg(better, tied, 10, ties),
        "mrr": metrics.mrr(better, tied, 101, ties),
    }
    for name, values in expected.items():
        assert np.array_equal(ranks.metric(name, ties), values.numpy())
