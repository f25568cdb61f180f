"""Writes the results on docs/learning.md, and their pictures: `python docs/_learning.py`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.baselines import StoredRun  # noqa: E402
from bench.baselines.accepted import load_baseline  # noqa: E402
from bench.baselines.runs import load_run  # noqa: E402
from bench.baselines.storage import stored_files  # noqa: E402
from bench.learning.study import said_of, studies  # noqa: E402
from bench.reports.layout import markdown  # noqa: E402
from bench.reports.learning import learning_figure, learning_report  # noqa: E402

PAGE = ROOT / "docs" / "learning.md"
RESULTS = ROOT / "results" / "learning"
BEGIN, END = "<!-- results, written by docs/_learning.py -->", "<!-- end of results -->"


def runs_of(study: str) -> tuple[StoredRun, StoredRun | None] | None:
    """The accepted run of a study, and another one, complete if there is such; None where none is
    stored."""
    if not any((RESULTS / study).glob("*.json")):
        return None
    first = load_baseline(RESULTS / study)
    others = [load_run(path) for path in stored_files(RESULTS / study) if path != first.path]
    others.sort(key=lambda run: run.interrupted)
    return first, next(iter(others), None)


def results() -> str:
    """The part of the page that the stored runs decide."""
    parts = []
    for name in studies():
        if (found := runs_of(name)) is None:
            continue
        run, other = found
        text = markdown(learning_report(run, said_of(name), other))
        text = text.replace("## Does it learn?", f"## Results: {name}", 1)
        parts.append(f"{text}\n![{name}: loss against cost](images/learning-{name}.svg)\n")
    return "\n".join(parts)


def written(page: str) -> str:
    """The page with today's results."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{results()}\n{END}{after}"


def main() -> None:
    """Write the page and its pictures."""
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    import matplotlib as mpl

    mpl.rcParams["svg.hashsalt"] = "bench"  # the same names of its parts each time
    for name in studies():
        if (found := runs_of(name)) is not None:
            path = ROOT / "docs" / "images" / f"learning-{name}.svg"
            learning_figure(found[0]).savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
