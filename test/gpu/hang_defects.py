"""Kernels that hang: one seeded defect each, of the engine module or of the code generator.

They are of benchmarks.make_packages.tiny(), whose rows have the numbers used here. None makes a kernel go out of
bounds: it waits for what does not come. `says` is what the report has to name.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from benchmarks.device_check import ALL_SPLITS
from test.gpu.mutants import patched
from test.unit.test_verify_schedule import row, sub
from tileir.codegen import attend, builder, combine, consumer, contract, epilogue, exchange, loaders
from tileir.codegen import rows as rows_
from tileir.codegen.kernel import Kernel
from tileir.mlir import nvvm

Edit = Callable[[str], str]
QKV, RECORDS = 1, 13  # rows of the table
PUBLISHERS = (exchange, epilogue, contract, rows_, consumer, attend, combine)


@dataclass(frozen=True)
class Defect:
    """edit: of the engine module's text. patch: of the code generator. launch: parameters that it needs."""

    says: tuple[str, ...]
    edit: Edit = str
    patch: Callable[[], AbstractContextManager[Any]] = nullcontext
    launch: dict[str, int] = field(default_factory=dict)


def _publishing(make: Callable[[Any], Any]) -> Callable[[], AbstractContextManager[None]]:
    return lambda: patched([(module, "publish_pair") for module in PUBLISHERS], make)


def _unless(lost: Callable[[Any, Any], Any]) -> Callable[[], AbstractContextManager[None]]:
    """Packets for which lost(kernel, packet) holds are not written."""

    def make(publish: Any) -> Any:
        def publish_pair(k: Any, channel: Any, packet: Any, payload: Any) -> None:
            kept = builder.negate(lost(k, packet))
            builder.if_(kept, lambda: publish(k, channel, packet, payload))

        return publish_pair

    return _publishing(make)


def _next_epoch(publish: Any) -> Any:
    """Row QKV's packets bear the epoch of the step after."""

    def publish_pair(k: Any, *packet: Any) -> None:
        before, k.epoch = k.epoch, k.epoch + builder.i32(builder.eq(k.row, QKV))
        publish(k, *packet)
        k.epoch = before

    return publish_pair


def _in_row(number: int, condition: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda k, packet: builder.both(builder.eq(k.row, number), condition(k, packet))


def _kernel(name: str, make: Callable[[Any], Any]) -> Callable[[], AbstractContextManager[None]]:
    return lambda: patched([(Kernel, name)], make)


def _nobody_has_tile_3(share: Any) -> Any:
    """Of stages with 16 tasks, as qkv has, for loaders and consumers alike."""

    def shared(k: Any, tasks: int) -> tuple[Any, Any]:
        first, count = share(k, tasks)
        idle = builder.both(builder.eq(first, 3), builder.const(tasks == 16, "i1"))
        return first, builder.select(idle, 0, count)

    return shared


def _one_warp_keeps_slots(release: Any) -> Any:
    def kept(k: Any, *slots: Any) -> None:
        builder.if_(builder.ne(k.warp, k.plan.warps - 1), lambda: release(k, *slots))

    return kept


def _no_record_for_position_2(send: Any) -> Any:
    def sent(k: Any, position: Any, *facts: Any) -> None:
        builder.if_(builder.ne(position, 2), lambda: send(k, position, *facts))

    return sent


def _other_parity(wait: Any) -> Any:
    return lambda k, barrier, parity, slot: wait(k, barrier, parity ^ 1, slot)


def _bytes_that_nobody_copies(expect: Any) -> Any:
    return lambda barrier, size, **how: expect(barrier, size + 16, **how)


DEFECTS: dict[str, Defect] = {
    "epoch off by one": Defect(
        (
            "Channel qkv_0: 128 of 128 packets bear epoch 2 instead of 1",
            "row 1 (contract_0) writes",
        ),
        patch=_publishing(_next_epoch),
    ),
    "a packet that is not written": Defect(
        ("qkv_0: 1 of 128 packets bear epoch 0 instead of 1: packets 5, which row 1", "tasks 1 on"),
        patch=_unless(_in_row(QKV, lambda k, packet: builder.eq(packet, 5))),
    ),
    "packets lost in one step": Defect(
        ("Channel qkv_0: 128 of 128 packets bear epoch 2 instead of 3",),
        patch=_unless(_in_row(QKV, lambda k, _: builder.eq(k.epoch, 3))),
    ),
    "an SM without a record": Defect(
        ("Channel candidates_0: 2 of 264 packets bear epoch 0 instead of 1", "on SMs 7."),
        patch=_unless(_in_row(RECORDS, lambda k, packet: builder.eq(packet >> 1, 7))),
    ),
    "a tile that no SM has": Defect(
        ("Channel qkv_0: ", "bear epoch 0 instead of 1", "tasks 3 on SMs 3"),
        patch=_kernel("share", _nobody_has_tile_3),
    ),
    "no release": Defect(
        ("in a circle", "tape loader", "a free ring slot", "a full ring slot"),
        patch=_kernel("release", lambda _: lambda *_: None),
    ),
    "a warp that releases nothing": Defect(
        ("in a circle", "tape loader", "a free ring slot", "a full ring slot"),
        patch=_kernel("release", _one_warp_keeps_slots),
    ),
    "a loader that awaits the other phase": Defect(
        ("tape loader", "a free ring slot", "phase 0 awaited, phase 1 seen"),
        patch=lambda: patched([(loaders, "_wait_unless_finished")], _other_parity),
    ),
    "bytes that never land": Defect(
        (
            "consumer in row 1 (contract_0) waited for a full ring slot",
            "phase 0 awaited, phase 1 seen",
        ),
        patch=lambda: patched([(nvvm, "mbarrier_arrive_expect_tx")], _bytes_that_nobody_copies),
    ),
    "a step record that is not sent": Defect(
        ("tape loader in row 2 (attend_0) waited for the step record",),
        patch=_kernel("send_record", _no_record_for_position_2),
    ),
    "a combine left out": Defect(
        ("of channel attention_0", "64 of 64 packets bear epoch 1 instead of 2"),
        edit=sub(r'.*engine.row.*body = "combine_0".*\n', "", 1),
        launch=ALL_SPLITS,
    ),
    "a channel of a later row": Defect(
        ("of channel attention_1", "later in the step: the row waits for itself"),
        edit=row("contract_1", '"attention_0"', '"attention_1"'),
    ),
    "two rows into one channel": Defect(
        ("of channel residual_1, which no row writes",),
        edit=sub('"gated_0", "residual_1", "residual_0"', '"gated_0", "residual_0", "residual_0"'),
    ),
    "a row left out": Defect(
        ("of channel residual_0, which no row writes",),
        edit=sub(r'.*engine.row.*body = "contract_1".*\n', "", 1),
    ),
    "a fill of fewer tiles": Defect(
        ("a full ring slot",),
        edit=sub(r'(engine.fill".*)tiles = 16', r"\g<1>tiles = 8", 1),
    ),
}
