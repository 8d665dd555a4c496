"""What it takes to add something: each test writes the files, and no others, and runs them.

"inside" adds the files to the tree of the package (here by extending a package's search path).
"outside" keeps them in a package of its own, which the user names with ``plugins``.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

from recexp.config.check import check_config
from recexp.errors import RecexpError
from recexp.objectives import losses
from recexp.report.papers.claims import all_claims
from recexp.report.papers.published import figures
from recexp.runs.run import run
from tests.support.running import composed

SMALL = (
    "logger=none",
    "trainer.max_epochs=1",
    "threads=1",
    "++trainer.enable_progress_bar=false",
)
TABLE = ("dataset=table", "dataset.source.file=events.csv")
HOMES = ["inside", "outside"]


@dataclass
class Workshop:
    """A folder with raw data, a config directory and a package, and runs with them."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def __post_init__(self):
        rows = [(u, (3 * u + n * n) % 20, 100 * u + n) for u in range(30) for n in range(6)]
        lines = ["user,item,timestamp", *(",".join(map(str, row)) for row in rows)]
        self.write("raw/events.csv", "\n".join(lines))

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n") + "\n")
        return path

    def code(self, home: str, package: str, name: str, text: str) -> str:
        """Write a module; returns the name to import it by."""
        path = self.write(f"code/my_package/{name}.py", text)
        if home == "outside":
            (path.parent / "__init__.py").touch()
            self.monkeypatch.syspath_prepend(path.parent.parent)
            module = f"my_package.{name}"
        else:
            parent = importlib.import_module(package)
            self.monkeypatch.setattr(parent, "__path__", [*parent.__path__, str(path.parent)])
            module = f"{package}.{name}"
        importlib.invalidate_caches()
        for stale in (module, "my_package"):
            self.monkeypatch.delitem(sys.modules, stale, raising=False)
        return module

    def conf(self, name: str, text: str) -> None:
        self.write(f"conf/{name}.yaml", text)

    def config(self, home: str, *words: str, data: tuple[str, ...] = TABLE):
        plugins = ["plugins=[my_package]"] if home == "outside" else []
        conf = self.folder / "conf"
        conf.mkdir(exist_ok=True)
        overrides = ["protocol=full", *data, *words, *plugins]
        return composed(self.folder / "run", *overrides, searchpath=conf, small=SMALL)

    def run(self, home: str, *words: str, **data) -> dict:
        return run(self.config(home, *words, **data))


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    return Workshop(tmp_path, monkeypatch)


MODEL = """
    import torch
    from torch import nn

    from recexp.contracts import MultiBehavior


    class Scaled(MultiBehavior):
        n_behaviors = 1

        def __init__(self, schema, *, temperature: float = 1.0):
            super().__init__()
            self.temperature = temperature
            self.user = nn.Embedding(schema.n_users, 4)
            self.item = nn.Embedding(schema.V, 4, padding_idx=0)

        def score(self, query, item_BC=None):
            if item_BC is None:
                item_BC = torch.arange(1, len(self.item.weight)).expand(len(query), -1)
            user_BD = self.user(query.user_B)
            return torch.einsum("bd,bcd->bc", user_BD, self.item(item_BC)) / self.temperature

        def logits(self, query, item_BC):
            return self.score(query, item_BC).unsqueeze(-1)
"""


@pytest.mark.parametrize("home", HOMES)
def test_a_model_with_a_parameter_of_its_own_is_two_files(workshop, home):
    module = workshop.code(home, "recexp.models", "scaled", MODEL)
    workshop.conf(
        "model/scaled",
        f"""
        # @package _global_
        defaults:
          - override /objective: pointwise
          - override /sampler: uniform
        model:
          _target_: {module}.Scaled
          temperature: 2.0
        """,
    )
    result = workshop.run(home, "model=scaled", "model.temperature=0.5")
    assert result["model"] == "scaled" and result["metrics"]["test/users"] == 30
    with pytest.raises(RecexpError, match=r"model\.temprature"):
        check_config(workshop.config(home, "model=scaled", "+model.temprature=3"))


@pytest.mark.parametrize("home", HOMES)
def test_a_data_set_is_two_files(workshop, home):
    module = workshop.code(
        home,
        "recexp.data.readers",
        "triples",
        """
        from pathlib import Path

        import polars as pl

        from recexp.data.readers import Raw


        def read(raw_dir, *, on_bad_rows="error", first_time=0):
            path = f"{raw_dir}/triples.txt"
            frame = pl.scan_csv(path, has_header=False, new_columns=["user", "item", "timestamp"])
            late = frame.filter(pl.col("timestamp") >= first_time)
            return Raw(late.with_columns(behavior=pl.lit("seen")), [Path(path)])
        """,
    )
    workshop.conf(
        "dataset/triples",
        f"""
        _target_: recexp.data.dataset.Dataset
        name: triples
        raw_dir: data/triples
        source:
          _target_: {module}.read
          _partial_: true
          first_time: 100
        behaviors: [seen]
        explicit: [seen]
        """,
    )
    rows = [f"{u},{(u + n * n) % 15},{50 * u + n}" for u in range(20) for n in range(5)]
    workshop.write("raw/triples.txt", "\n".join(rows))
    result = workshop.run(home, "model=pop", data=("dataset=triples",))
    assert result["data"]["users"] == 18 and result["metrics"]["test/users"] == 18


def test_a_protocol_of_existing_parts_is_one_file(workshop):
    workshop.conf(
        "protocol/late_uniform",
        """
        _target_: recexp.evaluation.protocol.Protocol
        name: late_uniform
        split:
          _target_: recexp.data.split.Split
          kind: global_time
          test_share: 0.2
          val_share: 0.2
        candidates:
          _target_: recexp.evaluation.protocol.Candidates
          kind: uniform
          n: 5
        ks: [3, 10]
        """,
    )
    users = range(30)
    rows = [(u, (u + n * n) % 20, n * 50 + u) for u in users for n in range(8)]
    lines = ["user,item,timestamp", *(",".join(map(str, row)) for row in rows)]
    workshop.write("raw/events.csv", "\n".join(lines))
    result = workshop.run("inside", "model=pop", "protocol=late_uniform")
    assert result["protocol"] == "late_uniform"
    assert {"test/hr@3", "test/ndcg@3"} <= result["metrics"].keys()


def test_a_new_kind_of_split_is_a_class_and_a_file(workshop, monkeypatch):
    """The class belongs into recexp/data/split.py, the only module that a protocol may name."""
    from recexp.data import split

    scope = vars(split).copy()
    exec(
        dedent("""
        @dataclass(frozen=True)
        class FirstUsers(Split):
            \"\"\"Tests the last event of the first n users and validates on the one before.\"\"\"

            n_users: int = 10

            def assign(self, rows, explicit):
                code = np.full(len(rows), TRAIN, dtype=np.int8)
                for user in range(self.n_users):
                    own = np.flatnonzero(rows.user == user)
                    own = own[np.argsort(rows.time[own], kind="stable")]
                    code[own[-1]], code[own[-2]] = TEST, VAL
                return code

            def left_out(self, rows, explicit, code):
                return {}
        """),
        scope,
    )
    monkeypatch.setattr(split, "FirstUsers", scope["FirstUsers"], raising=False)
    workshop.conf(
        "protocol/first_users",
        """
        _target_: recexp.evaluation.protocol.Protocol
        name: first_users
        split:
          _target_: recexp.data.split.FirstUsers
          n_users: 7
        candidates:
          _target_: recexp.evaluation.protocol.Candidates
          kind: all
        """,
    )
    result = workshop.run("inside", "model=pop", "protocol=first_users")
    assert result["metrics"]["test/users"] == 7


LOSS = """
    from dataclasses import dataclass
    from typing import Annotated

    from pydantic import Field

    from recexp.contracts import SampledLoss


    @dataclass(frozen=True)
    class Hinge(SampledLoss):
        margin: Annotated[float, Field(gt=0)] = 1.0

        def of_sampled(self, scores):
            too_close = self.margin - scores.positive[:, None] + scores.negative
            return too_close.clamp(min=0).mean()

        def constant_of_sampled(self, n, n_items):
            return self.margin
"""


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("model", ["sasrec", "bpr_mf"])
def test_a_loss_with_a_parameter_of_its_own_is_a_class_and_a_yaml(
    workshop, monkeypatch, home, model
):
    """Inside, the class stands in recexp/objectives/losses.py."""
    module = "recexp.objectives.losses"
    if home == "outside":
        module = workshop.code(home, module, "hinge", LOSS)
    else:
        scope = vars(losses).copy()
        exec(dedent(LOSS), scope)
        monkeypatch.setattr(losses, "Hinge", scope["Hinge"], raising=False)
    workshop.conf("loss/hinge", f"_target_: {module}.Hinge\nmargin: 1.0")
    words = [f"model={model}", "model.n_factors=8", "loss=hinge"]
    result = workshop.run(home, *words, "loss.margin=0.5")
    assert result["loss"] == "hinge" and result["metrics"]["test/users"] == 30
    assert result["constant_loss"] == 0.5
    with pytest.raises(RecexpError, match=r"loss\.margin=-1: must be a number above 0"):
        check_config(workshop.config(home, *words, "loss.margin=-1"))
    with pytest.raises(RecexpError, match="objective=Pointwise cannot train with loss=Hinge"):
        check_config(workshop.config(home, "model=mf", "loss=hinge"))


def test_a_metric_is_one_function(workshop, monkeypatch):
    """It stands in ``METRICS_WITHOUT_CUTOFF`` of recexp/evaluation/metrics.py."""
    from recexp.evaluation import metrics

    def rank(better, tied, n, ties="expected"):
        return (1 + better).double()

    monkeypatch.setitem(metrics.METRICS_WITHOUT_CUTOFF, "mean_rank", rank)
    result = workshop.run("inside", "model=pop")
    assert result["metrics"]["test/mean_rank"] >= 1


def test_an_experiment_is_one_file(workshop):
    workshop.conf(
        "experiment/mine",
        """
        # @package _global_
        defaults:
          - override /model: bpr_mf
          - override /sampler: popularity
        model: {n_factors: 4}
        batch_size: 32
        """,
    )
    cfg = workshop.config("inside", "experiment=mine")
    check_config(cfg)
    assert (cfg.model.n_factors, cfg.batch_size) == (4, 32)
    assert (cfg.names.model, cfg.names.sampler) == ("bpr_mf", "popularity")


def test_a_published_figure_is_one_line_of_data(tmp_path):
    shipped = Path(figures.__wrapped__.__code__.co_filename).parent / "published.csv"
    line = "bert4rec,table2,ml_1m,P3,mine,best,NDCG@10,0.5"
    (tmp_path / "published.csv").write_text(shipped.read_text().rstrip("\n") + f"\n{line}\n")
    found = figures.__wrapped__(tmp_path / "published.csv")
    assert len(found) == len(figures()) + 1
    assert (found[-1].model, found[-1].value) == ("mine", 0.5)


def test_a_claim_is_one_line_of_data(tmp_path):
    shipped = Path(all_claims.__wrapped__.__code__.co_filename).parent / "claims.csv"
    line = "bert4rec,table2,bert4rec,,>,wmf,,ndcg@10,ml_1m,,Table 2"
    (tmp_path / "claims.csv").write_text(shipped.read_text().rstrip("\n") + f"\n{line}\n")
    found = all_claims.__wrapped__(tmp_path / "claims.csv")
    assert len(found) == len(all_claims()) + 1
