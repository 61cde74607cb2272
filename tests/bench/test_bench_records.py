"""Results on disk."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import pytest
from made_up import GRID, an_arm, finished, settings

from awm.bench.jobs import Job, Record, final_jobs
from awm.bench.records import Records

ROOT = Path(__file__).parents[2]
JOB, OTHER = final_jobs("a", an_arm("awm"), GRID[0], settings())[:2]
JOBS = {job.name: job for job in (JOB, OTHER)}


def read(folder: Path, digest: str = "d") -> dict[str, Record]:
    return Records(folder).read(JOBS, lambda job: digest)


def test_what_is_written_is_read_again(tmp_path: Path):
    written = Records(tmp_path).write(JOB, finished(JOB, [0.5, 0.6]))
    assert read(tmp_path) == {JOB.name: written}
    assert written["curve"][2]["score"] == 0.6


def test_git_takes_the_records_of_a_published_comparison():
    name = "benchmarks/results/algorithms/records/x.json"
    assert Records(Path("benchmarks/results/algorithms")).folder / "x.json" == Path(name)
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    ignored = subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT).returncode
    assert ignored == 1


def test_numbers_are_short_and_what_is_not_finite_is_null(tmp_path: Path):
    record = Records(tmp_path).write(JOB, {"status": "finished", "x": 1 / 3, "y": [math.nan, math.inf], "z": 10**12})
    assert record["x"] == 0.333333 and record["y"] == [None, None] and record["z"] == 10**12


def test_a_point_of_the_curve_is_a_line(tmp_path: Path):
    Records(tmp_path).write(JOB, finished(JOB, [0.5, 0.6]))
    lines = (tmp_path / "records" / f"{JOB.name}.json").read_text().splitlines()
    assert sum('"epoch":' in line for line in lines) == 3


@pytest.mark.parametrize("text", ["{", "[]", '{"status": "finished"}', '{"status": "?", "name": "a-low-seed0"}'])
def test_a_damaged_file_is_told_of_and_its_run_is_made_again(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
):
    kept = Records(tmp_path).write(OTHER, finished(OTHER, [0.5]))
    (tmp_path / "records" / f"{JOB.name}.json").write_text(text)
    assert read(tmp_path) == {OTHER.name: kept}
    assert f"{JOB.name}.json is damaged" in capsys.readouterr().err


def test_results_of_another_configuration_are_refused_with_the_command_that_removes_all_of_them(tmp_path: Path):
    Records(tmp_path).write(JOB, finished(JOB, [0.5]))
    with pytest.raises(ValueError, match=r"1 result in .* of another configuration") as error:
        read(tmp_path, "e")
    removed = str(error.value).partition("rm -rf ")[2].split()
    assert removed == [
        f"{tmp_path}/records/{JOB.name}.*",
        f"{tmp_path}/logs/{JOB.name}",
        f"{tmp_path}/logs/{JOB.name}.log",
    ]


def test_every_file_is_compared_with_its_own_job(tmp_path: Path):
    for job in JOBS.values():
        Records(tmp_path).write(job, finished(job, [0.5]) | {"digest": job.name})
    assert Records(tmp_path).read(JOBS, lambda job: job.name).keys() == JOBS.keys()


def test_runs_that_the_comparison_does_not_ask_for_are_left_alone(tmp_path: Path):
    Records(tmp_path).write(Job("a", "low", 77, "final", ()), {"status": "finished", "digest": "another"})
    assert read(tmp_path) == {}


def test_the_file_is_json(tmp_path: Path):
    written = Records(tmp_path).write(JOB, finished(JOB, [0.5]))
    assert json.loads((tmp_path / "records" / f"{JOB.name}.json").read_text()) == written
