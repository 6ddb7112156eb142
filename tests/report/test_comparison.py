"""What a page says of several runs, or of a sweep's networks."""

from feedax.report.comparison import MOST_LINES, ComparedRun, compared_networks, compared_runs


def network(rate, seed, rows, error=None, **test):
    """As `SweepFolder` keeps it: one that failed has no scores of the test set."""
    return {
        "name": f"learning_rate={rate},seed={seed}", "setting": {"learning_rate": rate},
        "seed": seed, "seconds": 1.0, "error": error, "params": "p",
        "result": rows[-1] | test if rows else None, "rows": rows,
    }  # fmt: skip


def row(epoch, loss, **more):
    return {"epoch": epoch, "seconds": 0.5, "loss": loss, "accuracy": 0.5, **more}


def test_a_network_that_failed_is_counted_and_in_no_mean_and_no_curve():
    failed = "it turned not-a-number"
    records = [
        network(0.5, 0, [row(0, 90.0)], failed),
        network(0.5, 1, [row(0, 80.0)], failed),
        network(0.1, 0, [row(0, 2.0), row(1, 1.0)], test_accuracy=0.75),
        network(0.1, 1, [row(0, 70.0)], failed),
        network(0.2, 0, [row(0, 4.0), row(1, 3.0)], test_accuracy=0.25),
        network(0.2, 1, [], failed),
    ]
    found = compared_networks(records, None)
    (dots,) = found["dots"]
    assert [(one["name"], [dot["said"] for dot in one["dots"]]) for one in dots["rows"]] == [
        ("learning_rate=0.5", []),
        ("learning_rate=0.1", ["75.00 %"]),
        ("learning_rate=0.2", ["25.00 %"]),
    ]
    assert [(one[0], one[2], one[-1]) for one in found["settings"]["rows"]] == [
        ("learning_rate=0.5", "0", "2"),
        ("learning_rate=0.1", "1", "1"),
        ("learning_rate=0.2", "1", "1"),
    ]
    lines = {one["label"]: one["values"] for one in found["curves"][0]["series"]}
    assert lines["learning_rate=0.1 (highest)"] == [2.0, 1.0]
    assert "learning_rate=0.5" not in lines
    assert found["rates"][0]["x"] == [0.1, 0.2]
    assert len(found["results"]["rows"]) == 6


def test_of_many_runs_the_best_are_drawn_and_the_title_says_so():
    runs = []
    for i in range(MOST_LINES + 1):
        rows = [row(0, 1.0, test_accuracy=i / 10)]
        runs.append(ComparedRun(f"run {i}", rows, rows[0], {}))
    found = {one["title"]: one for one in compared_runs(runs)["curves"]}
    best = found["test set accuracy: the best 8 of 9"]
    assert [one["label"] for one in best["series"]] == [f"run {i}" for i in range(1, 9)]
