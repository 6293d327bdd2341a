"""Launch parameters are checked before a kernel could hang on them."""

import pytest

from tileir.errors import DeviceError
from tileir.runtime.session import check_launch

LIMITS = {"tape_window": [1, 12], "alone_bytes": [0, 1 << 20]}


@pytest.mark.parametrize("window", [1, 12])
def test_inside(window: int) -> None:
    check_launch({"tape_window": window, "alone_bytes": 0}, LIMITS)


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ({"tape_window": 13, "alone_bytes": 0}, r"(?s)tape_window is 13.*1 … 12"),
        ({"tape_window": 3, "alone_bytes": -1}, "alone_bytes is -1"),
        ({"tape_window": 3}, "they are tape_window, alone_bytes"),
    ],
)
def test_outside(launch: dict[str, int], message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        check_launch(launch, LIMITS)
