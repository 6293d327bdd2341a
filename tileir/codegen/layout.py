"""What a kernel and the runtime agree on: arguments, codes of waits, marks of traces, places in memory."""

from tileir.codegen.plan import UNIT, Plan

# The kernel's arguments, in order. `slot` types are LLVM's.
ARGUMENTS = {
    "tape": "!llvm.ptr<1>",  # weight blocks
    "tape_offsets": "!llvm.ptr<1>",  # i64 per SM: where its tape begins
    "constants": "!llvm.ptr<1>",
    "states": "!llvm.ptr<1>",
    "exchange": "!llvm.ptr<1>",
    "table": "!llvm.ptr<1>",
    "prompt": "!llvm.ptr<1>",  # i32 tokens that are forced
    "stop_ids": "!llvm.ptr<1>",  # i32
    "logits": "!llvm.ptr<1>",  # f32 [steps, vocabulary], or null
    "control": "!llvm.ptr<1>",  # see Control
    "mailbox": "!llvm.ptr<1>",  # host memory: word 0 count, word 1 state, tokens from byte 64
    "trace": "!llvm.ptr<1>",  # i64 [sms, rows + 1, MARKS], of kernels that trace; else not touched
    "stamps": "!llvm.ptr<1>",  # i64 [steps]: the GPU's timer in ns at each step's end, or null
    "rows": "i32",
    "prompt_length": "i32",
    "steps": "i32",
    "epoch_base": "i32",  # the first step's epoch, less one
    "position_base": "i32",  # the first step's position
    "stride": "i32",  # by how much a step moves the position: 1, or 0 to measure
    "stop_count": "i32",
    "traced_epoch": "i32",  # of the step that a kernel which traces takes note of
    "tape_window": "i32",  # copies of the tape on their way at once
    "fed_window": "i32",  # and no more than so many while at most a quarter of the ring is free
    "alone_bytes": "i32",  # old rows of a kv head, k and v, that one split takes alone
    "split_bytes": "i32",  # and of more, one split for each so many
    "splits": "i32",  # at most
    "limit": "i64",
}
# Launch parameters that stand in the PTX as constants, so that what they leave out costs nothing: the loader writes
# them there, and the driver assembles the kernel again. By name, what they are unless told otherwise.
CONSTANTS = {
    "replicas": 1,  # copies that are written of channels which have room for two
    "poll_sleep_ns": 0,  # for which a poll that failed sleeps
}
MAILBOX_TOKENS = 64

# What a wait that ran out of time was waiting for. A report is 4 words: this code, and from bit 8 on one more than the
# parity of an mbarrier's phase that was awaited (0: no mbarrier); the row; the epoch; the number of what was awaited.
WAIT_CODES = {
    1: "a packet",
    2: "a free ring slot",
    3: "an earlier copy to land",
    4: "a full ring slot",
    5: "the step record",
}
PACKET, EMPTY, WINDOW, FULL, RECORD = WAIT_CODES

# What a kernel that traces notes of each row on each SM: the low words of clocks, thread 0's first, and of the clocks
# that it has spent waiting for a ring; what a row has not noted is 0. A row ends where the next one begins.
# "met" lies behind the barrier after "received".
ROW_MARKS = ("begin", "received", "met", "multiplied", "waited")
MARKS = (
    *ROW_MARKS,
    *("tape_begin", "tape_end", "state_begin", "state_end"),
)
# The row behind the last is the step: its begin and end, each as the SM's clock and the GPU's timer in ns, i64.
STEP_MARKS = ("begin", "begin_timer", "end", "end_timer")

# Byte offsets in the scratch region.
SQUARES = 0  # two halves of f32 per warp
BEST = 256  # i64 per warp: the emit's reduction
CHOICE = 512  # i64 per warp: the select's reduction
RECORD_DATA = 768  # i32 position, i32 stop
DEAD = 784  # i32: this block gave up, and no wait holds it any longer
FINISHED = 788  # i32: no further step will be consumed
HEART = 792  # i32: changes with every row that consumers begin
RECORD_FULL, RECORD_EMPTY = 800, 808
LOADED = 824  # two i32: a loader has ended
LATE = 832  # i32: waits are reported, and last until the block is dead
NOTED = 848  # i32 for each of ROW_MARKS: what thread 0 has marked since the row's begin, in a kernel that traces
SLEEP_NS = 2000


class Control:
    """Places in the control memory, bytes. Words: `abort` (HUNG, STOPPED), `taken` and `copied` chunks of the snapshot.

    `reports`: 16 bytes for each consumer and loader warp. `ends`: for each SM two i64 of the GPU's timer in ns, when
    its limit had run out (0: it had not) and when it ended (0: not by giving up). `snapshot`: the exchange memory as it
    was when every warp had stopped.
    """

    abort, taken, copied, reports = 0, 4, 8, 256
    report_bytes, end_bytes = 16, 16

    def __init__(self, plan: Plan) -> None:
        self.ends = self.reports + plan.sms * (plan.warps + 2) * self.report_bytes
        self.snapshot = -(-(self.ends + plan.sms * self.end_bytes) // UNIT) * UNIT


HUNG, STOPPED = 1, 2
