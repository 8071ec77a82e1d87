"""Several processes and a Dask cluster on this machine: overhead per task, and many small cases with kills.

    python benchmarks/cluster.py [--cases 200] [--workers 4] [--kills 6] [--tasks 100000]

Starts a real scheduler and real workers (with nannies, which replace killed workers) on the loopback interface. It
kills workers, the scheduler and the client at fixed moments, runs the same command again until it succeeds, and
compares all bytes with a run in one process. Ends with status 1 if a byte differs, or if a finished case was written
again. `--tasks 0` and `--cases 0` leave out the one or the other part.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from measure import peak_mib

SHAPE = (48, 48, 12)
PREDICT = [sys.executable, "-c", "from handful.cli import main; main()", "predict"]


def nothing(task: int) -> int:
    """The no-op task."""
    return task


class Cluster:
    """A scheduler and a process with the nannies of its workers."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder, self.count, self.file = folder, workers, folder / "scheduler.json"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start()

    def start(self) -> None:
        self.close()
        self.file.unlink(missing_ok=True)
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        while not self.file.exists():
            time.sleep(0.05)
        self._start("worker", "--nworkers", str(self.count), "--nthreads", "1", "--local-directory", str(self.folder))

    def _start(self, kind: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", kind, *options, "--no-dashboard", "--scheduler-file", str(self.file)]
        path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
        environment = {**os.environ, "PYTHONPATH": path, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "10"}
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self.folder)
        self.processes.append(process)
        return process

    def worker_pids(self) -> list[int]:
        """The worker processes, from the scheduler."""
        from distributed import Client

        with Client(scheduler_file=str(self.file), set_as_default=False) as client:
            return list(client.run(os.getpid, on_error="ignore").values())  # without those that were just killed

    def close(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()


@contextmanager
def running(folder: Path, workers: int) -> Iterator[Cluster]:
    """A cluster until the context ends."""
    cluster = Cluster(folder, workers)
    try:
        yield cluster
    finally:
        cluster.close()


def resident_mib(pid: int) -> float:
    """Memory of a process now."""
    line = next(one for one in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines() if one.startswith("VmRSS:"))
    return int(line.split()[1]) / 2**10


def no_op_tasks(cluster: Cluster, count: int) -> None:
    """Print tasks per second, and memory and processor time of scheduler and client, at every tenth of the tasks."""
    from handful.jobs.dask_cluster import DaskCluster

    executor = DaskCluster(str(cluster.file), "benchmark")
    list(executor.run(nothing, range(2 * cluster.count)))  # workers are up and have imported everything
    scheduler = cluster.scheduler.pid
    before = most = resident_mib(scheduler)
    began, used, own = time.perf_counter(), cpu_seconds(scheduler), time.process_time()
    for done, _ in enumerate(executor.run(nothing, range(count)), start=1):
        if done % 500 == 0 or done == count:
            most = max(most, resident_mib(scheduler))
        if done % max(1, count // 10) == 0:
            seconds = time.perf_counter() - began
            print(
                f"{done} of {count} no-op tasks, {cluster.count} workers: {done / seconds:.0f} tasks/s, "
                f"{1e3 * seconds / done:.2f} ms per task; processor per task: scheduler "
                f"{1e3 * (cpu_seconds(scheduler) - used) / done:.2f} ms, client "
                f"{1e3 * (time.process_time() - own) / done:.2f} ms; scheduler {before:.0f} MiB before, {most:.0f} MiB "
                f"at most; client {peak_mib():.0f} MiB at most",
                flush=True,
            )


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def write_material(folder: Path, cases: int) -> tuple[Path, Path]:
    """A cohort of phantoms and a model fitted on two of them."""
    from handful.cohort.demo import write_phantom_cohort
    from handful.data.files import write_volume
    from handful.data.volume import Geometry, Volume
    from handful.synthesis.episodes import phantom_cohort

    labelled, scans, model = folder / "labelled", folder / "scans", folder / "model"
    write_phantom_cohort(labelled, cases=2)
    scans.mkdir()
    for phantom in phantom_cohort(cases, seed=1, shape=SHAPE):
        write_volume(scans / f"{phantom.name}.nii.gz", Volume(phantom.image[None], Geometry(SHAPE, phantom.affine)))
    fit = ["fit", "nearest-slice", "-i", str(labelled), "-o", str(model), "--no-cache", "-q"]
    subprocess.run([*PREDICT[:-1], *fit], check=True, stdout=subprocess.DEVNULL)
    return scans, model


def finished(out: Path) -> set[str]:
    """Names of the cases whose notes tell the digest of the label map; a case without it is segmented again."""
    notes = (out / ".handful").glob("phantom*.json")
    return {path.stem for path in notes if json.loads(path.read_text("utf-8"))["output"]}


def file_time(out: Path, name: str) -> int:
    """When the label map of a case was written."""
    return (out / f"{name}.nii.gz").stat().st_mtime_ns


def with_kills(cluster: Cluster, scans: Path, model: Path, out: Path, kills: int) -> tuple[int, int]:
    """Predict until the command succeeds; kill a process after each share of the cases. Returns runs and kills."""
    count, done, runs, rng = len(list(scans.iterdir())), 0, 0, random.Random(0)
    command = [*PREDICT, str(model), "-i", str(scans), "-o", str(out), "-q", "--scheduler", str(cluster.file)]
    written: dict[str, int] = {}
    while True:
        runs += 1
        client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while client.poll() is None:
            written |= {name: file_time(out, name) for name in finished(out) - written.keys()}
            assert all(file_time(out, name) == then for name, then in written.items())
            if done < kills and len(written) >= (done + 1) * count // (kills + 1):
                victim = ("worker", "client", "worker", "scheduler")[done % 4]
                if victim == "worker":
                    if not (pids := cluster.worker_pids()):
                        continue
                    os.kill(rng.choice(pids), signal.SIGKILL)
                elif victim == "client":
                    client.kill()
                else:
                    cluster.scheduler.kill()
                done += 1
                print(f"  killed the {victim} after {len(written)} of {count}", flush=True)
            time.sleep(0.02)
        if client.returncode == 0:
            return runs, done
        if cluster.scheduler.poll() is not None:
            cluster.start()


def many_cases(folder: Path, workers: int, count: int, kills: int) -> bool:
    """Print the times of one process, several, and a cluster with kills; return whether all bytes are equal."""
    scans, model = write_material(folder, count)
    outs = {name: folder / name for name in ("serial", "workers", "dask")}
    for name, options in (("serial", []), ("workers", ["--workers", str(workers)])):
        began = time.perf_counter()
        subprocess.run(
            [*PREDICT, str(model), "-i", str(scans), "-o", str(outs[name]), "-q", *options],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        print(f"{count} cases, {name}: {time.perf_counter() - began:.1f} s", flush=True)
    (folder / "dask-files").mkdir()
    with running(folder / "dask-files", workers) as cluster:
        began = time.perf_counter()
        runs, killed = with_kills(cluster, scans, model, outs["dask"], kills)
        seconds = time.perf_counter() - began
    same = all(
        (outs[name] / file.name).read_bytes() == file.read_bytes()
        for file in outs["serial"].glob("*.nii.gz")
        for name in ("workers", "dask")
    )
    notes = len(list((outs["dask"] / ".handful").glob("*.json")))
    print(
        f"{count} cases, Dask with {workers} workers and {killed} kills: {seconds:.1f} s in {runs} runs; {notes} "
        f"notes; no finished case was written again; all bytes as in one process: {same}"
    )
    return same and notes == count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--tasks", type=int, default=100_000)
    arguments = parser.parse_args()
    print(json.dumps({"cores": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 1)}), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "no-op").mkdir()
        if arguments.tasks:
            with running(folder / "no-op", min(2, arguments.workers)) as cluster:
                no_op_tasks(cluster, arguments.tasks)
        if not arguments.cases:
            return 0
        return 0 if many_cases(folder, arguments.workers, arguments.cases, arguments.kills) else 1


if __name__ == "__main__":
    raise SystemExit(main())
