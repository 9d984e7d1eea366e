"""Every metric that Tidemark may export, with label sets, as Prometheus's own checker sees it."""

import subprocess

from shared import metrics


def check(exposition: bytes) -> tuple[int, str]:
    done = subprocess.run(["promtool", "check", "metrics"], input=exposition, capture_output=True, check=False)
    return done.returncode, (done.stdout + done.stderr).decode()


def everything() -> bytes:
    """One series at least of each metric."""
    for name, collector in vars(metrics).items():
        labels = getattr(collector, "_labelnames", ())
        if name.isupper() and labels:
            collector.labels(*(f"some-{label}" for label in labels))
    return metrics.exposition()


def test_prometheus_finds_no_fault_with_any_metric() -> None:
    text = everything()
    shown = {line.split()[2] for line in text.decode().splitlines() if line.startswith("# TYPE")}

    assert {series for name in shown for series in (name, name.removesuffix("_total"))} >= metrics.METRICS.keys()
    assert check(text) == (0, "")


def test_it_would_find_one() -> None:
    planted = b"# HELP tidemark_wait_milliseconds_total How long.\n# TYPE tidemark_wait_milliseconds_total gauge\n"
    code, said = check(planted + b"tidemark_wait_milliseconds_total 1\n")

    assert code != 0
    assert "tidemark_wait_milliseconds_total" in said
