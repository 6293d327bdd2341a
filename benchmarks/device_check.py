"""The kernel on a GPU against what the reference device said where there is MLIR; needs neither MLIR nor torch.

    python -m benchmarks.device_check FOLDER

FOLDER holds the `tiny-….tileir` and `tiny-….npz` of benchmarks/make_packages.py.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from tileir.errors import DeviceHang
from tileir.package import load_package
from tileir.runtime.session import CudaSession


def check(folder: Path, name: str, *, hang: bool) -> dict[str, Any]:
    """Compare one model: logits, bits, stop ids, leaving early, and on request a hang that explains itself."""
    case = dict(np.load(folder / f"{name}.npz"))
    ids, wanted = case.pop("ids").tolist(), case.pop("logits")
    # The kernel rounds elsewhere than the reference device does: what bf16 itself costs a model is no error.
    bound = max(0.02, float(case.pop("rounding")))
    session = CudaSession(load_package(folder / f"{name}.tileir"), case)
    found = session.logits(ids)
    tokens = list(session.generate(ids, 24))
    stop = tokens[5]
    stopped = list(session.generate(ids, 24, stop_ids=[stop]))
    iterator = session.generate(ids, 24)
    first = next(iterator)
    iterator.close()
    # Where one split takes all old rows, and where all splits do.
    session.launch["alone_bytes"] = 0
    parted = session.logits(ids)
    session.launch["alone_bytes"] = session.manifest["launch"]["alone_bytes"]
    report = {
        "error_of_splits": float(np.abs(parted - wanted).max() / np.abs(wanted).max()),
        "error": float(np.abs(found - wanted).max() / np.abs(wanted).max()),
        "bits": bool(np.array_equal(found, session.logits(ids))),
        "first": tokens[0] == int(found[-1].argmax()) == first,
        "stop": stopped == tokens[: tokens.index(stop) + 1],
        "hang": hangs(session, ids) if hang else True,
        "again": list(session.generate(ids, 24)) == tokens,
    }
    session.close()
    errors = [v for k, v in report.items() if k.startswith("error")]
    report["passed"] = max(errors) < bound and all(
        v for k, v in report.items() if not k.startswith("error")
    )
    return report | {"bound": bound}


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
