"""The ledger of searches counts every trial once."""

from __future__ import annotations

from recexp.report.__main__ import main
from recexp.report.searches import search_tables
from recexp.search.trial_file import TrialFile
from tests.support.finished_runs import write_run

PLACE = {"search": "s", "dataset": "ml_1m", "protocol": "full", "metric": "val/ndcg@10"}


def write_trial(folder, model, number, state, value=None, epochs=2, updates=1000):
    folder = folder / model / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    TrialFile(
        **PLACE,
        model=model,
        number=number,
        state=state,
        value=value,
        values={"optimizer.lr": 0.1},
        epochs=epochs,
        updates=updates,
    ).write(folder)
    return folder


def texts(table):
    return [" ".join(cell.text for cell in row) for row in table.rows]


def test_trials_are_counted_by_model_and_state(tmp_path):
    write_trial(tmp_path, "sasrec", 0, "finished", 0.25)
    write_trial(tmp_path, "sasrec", 1, "finished", 0.5)
    write_trial(tmp_path, "sasrec", 2, "pruned")
    write_trial(tmp_path, "pop", 0, "failed", epochs=0, updates=0)
    write_trial(tmp_path, "pop", 1, "running")
    (table,) = search_tables([tmp_path, tmp_path / "sasrec"])
    assert table.title == "Searches: ml_1m, full"
    assert texts(table) == ["pop 2 0 0 1 1 2 1,000 –", "sasrec 3 2 1 0 0 6 3,000 0.5000"]
    assert table.notes == ("the models had unequal numbers of trials: pop 2, sasrec 3",)


def test_equal_numbers_need_no_note_and_a_damaged_file_is_a_warning(tmp_path, caplog):
    for model in ("sasrec", "pop"):
        write_trial(tmp_path, model, 0, "finished", 0.5)
    (write_trial(tmp_path, "pop", 1, "pruned") / "trial.json").write_text('{"state": "good"}')
    (table,) = search_tables([tmp_path])
    assert table.notes == ()
    assert "left out of the ledger of searches" in caplog.text


def test_the_report_shows_the_ledger(tmp_path, capsys):
    (tmp_path / "pop").mkdir()
    write_run(tmp_path / "pop" / "0", 0.5)
    write_trial(tmp_path, "pop", 0, "finished", 0.5)
    main([str(tmp_path), "--format", "markdown"])
    assert "### Searches: ml_1m, full" in capsys.readouterr().out


def test_runs_without_a_search_have_no_ledger(tmp_path):
    write_run(tmp_path / "a", 0.5)
    assert search_tables([tmp_path]) == []
