"""The kernel on a GPU against what the reference device said where there is MLIR; needs neither MLIR nor torch.

    python -m benchmarks.device_check FOLDER

FOLDER holds the `tiny-….tileir` and `tiny-….npz` of benchmarks/make_packages.py.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tileir.errors import DeviceHang
from tileir.package import load_package
from tileir.runtime.session import CudaSession

# Launch parameters by which every split takes part at any position, and none is alone.
ALL_SPLITS = {"alone_bytes": 0, "split_bytes": 1}
CORRECT = "correct"  # the case that benchmarks.hangs and host_faults go back to


@dataclass(frozen=True)
class Case:
    """A small model: its weights by name, the prompt's token ids, and what is right.

    logits: [positions, vocabulary], f32, of reference-bf16. bound: the largest error that is rounding, a fraction of
    the largest logit.
    """

    weights: dict[str, np.ndarray]
    ids: list[int]
    logits: np.ndarray
    bound: float

    def close(self, logits: np.ndarray) -> bool:
        """Whether they are the case's own but for rounding."""
        return self.error(logits) < self.bound

    def error(self, logits: np.ndarray) -> float:
        """The largest, a fraction of the largest logit."""
        return float(np.abs(logits - self.logits).max() / np.abs(self.logits).max())


@contextmanager
def all_splits(session: Any) -> Iterator[None]:
    """Launches of a CudaSession, or of what does as it does, in which every split takes part."""
    usual = dict(session.launch)
    session.launch |= ALL_SPLITS
    try:
        yield
    finally:
        session.launch |= usual


def load_case(folder: Path, name: str) -> Case:
    """What benchmarks.make_packages.write_case has written."""
    held = dict(np.load(folder / f"{name}.npz"))
    ids, logits, rounding = (
        held.pop("ids").tolist(),
        held.pop("logits"),
        float(held.pop("rounding")),
    )
    # The kernel rounds elsewhere than the reference device does: what bf16 itself costs a model is no error.
    return Case(held, ids, logits, max(0.02, rounding))


def check(folder: Path, name: str, *, hang: bool) -> dict[str, Any]:
    """Compare one model: logits, bits, stop ids, leaving early, and on request a hang that explains itself."""
    case = load_case(folder, name)
    ids = case.ids
    session = CudaSession(load_package(folder / f"{name}.tileir"), case.weights)
    found = session.logits(ids)
    tokens = list(session.generate(ids, 24))
    stop = tokens[5]
    stopped = list(session.generate(ids, 24, stop_ids=[stop]))
    iterator = session.generate(ids, 24)
    first = next(iterator)
    iterator.close()
    # Where one split takes all old rows, and where all splits do.
    with all_splits(session):
        parted = session.logits(ids)
    report = {
        "error_of_splits": case.error(parted),
        "error": case.error(found),
        "bits": bool(np.array_equal(found, session.logits(ids))),
        "first": tokens[0] == int(found[-1].argmax()) == first,
        "stop": stopped == tokens[: tokens.index(stop) + 1],
        "hang": hangs(session, ids) if hang else True,
        "again": list(session.generate(ids, 24)) == tokens,
    }
    session.close()
    errors = [v for k, v in report.items() if k.startswith("error")]
    report["passed"] = max(errors) < case.bound and all(
        v for k, v in report.items() if not k.startswith("error")
    )
    return report | {"bound": case.bound}


def hangs(session: CudaSession, ids: list[int]) -> bool:
    """A channel that nobody writes ends in DeviceHang, within seconds, and the report names the row."""
    device, table = session._device, np.asarray(session.manifest["table"], np.uint32)
    bodies = [session.manifest["bodies"][word & 0xFFFF] for word in table[:, 0]]
    # The second contraction receives from the records' memory, whose packets never have this step's epoch in time.
    row = [i for i, name in enumerate(bodies) if name.startswith("contract")][1]
    broken = table.copy()
    broken[row, 2] = table[-1, 2]
    device.upload(broken, session._table)
    try:
        list(session.generate(ids, 4))
    except DeviceHang as error:
        print(error, flush=True)
        return f"row {row}" in str(error) and "packet" in str(error)
    finally:
        device.upload(table, session._table)
    return False


def main() -> int:
    """Exit status 1 if a check fails."""
    folder, status = Path(sys.argv[1]), 0
    for path in sorted(folder.glob("tiny*.npz")):
        report = check(folder, path.stem, hang="family" not in path.stem)
        print(path.stem, report, flush=True)
        status |= not report["passed"]
    return status


if __name__ == "__main__":
    sys.exit(main())
