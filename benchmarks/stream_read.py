"""The streaming-read ceiling of a GPU: one block per SM, bulk copies of 16 KB into a ring, nothing else."""

from itertools import pairwise
from typing import Any

SOURCE = r"""
typedef unsigned int uint32_t; typedef unsigned long long uint64_t;
constexpr int SLOT = 16384, SLOTS = 12;
extern "C" __global__ __launch_bounds__(32) void stream_read(const char* data, long long chunks) {
  extern __shared__ __align__(128) char smem[];
  __shared__ __align__(8) uint64_t full[SLOTS];
  if (threadIdx.x) return;
  auto address = [](const void* p) { return (uint32_t)__cvta_generic_to_shared(p); };
  for (int i = 0; i < SLOTS; i++)
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(address(full + i)));
  asm volatile("fence.mbarrier_init.release.cluster;");
  long long mine = (chunks - blockIdx.x + gridDim.x - 1) / gridDim.x;
  for (long long n = 0; n < mine + SLOTS; n++) {
    int slot = n % SLOTS;
    uint32_t bar = address(full + slot);
    if (n >= SLOTS) {
      uint32_t parity = (n / SLOTS - 1) & 1, done = 0;
      while (!done)
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                     : "=r"(done) : "r"(bar), "r"(parity) : "memory");
    }
    if (n < mine) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(bar), "r"(SLOT) : "memory");
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                   "[%0], [%1], %2, [%3], %4;"
                   :: "r"(address(smem + slot * SLOT)), "l"(data + (blockIdx.x + n * gridDim.x) * SLOT), "r"(SLOT),
                      "r"(bar), "l"(0x12F0000000000000ull) : "memory");
    }
  }
}
"""


def ceiling_tbps(gigabytes: float = 4.0, repeats: int = 300) -> float:
    """The best bandwidth of `repeats` streaming reads in a row, TB/s. Needs cupy.

    A ceiling is a maximum: what slows a read down, such as clocks that have yet to come up, says nothing of it. Reads
    go on for 0.3 … 0.4 s, so that the best of them comes after any start.
    """
    import cupy as cp

    module: Any = cp.RawModule(code=SOURCE, options=("-arch=sm_90a",))
    kernel = module.get_function("stream_read")
    kernel.max_dynamic_shared_size_bytes = 12 * 16384
    chunks = int(gigabytes * 1e9) // 16384
    data = cp.zeros(chunks * 16384, cp.uint8)
    data[::4096] = 1
    blocks = cp.cuda.Device().attributes["MultiProcessorCount"]
    events = [cp.cuda.Event() for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        kernel((blocks,), (32,), (data, chunks), shared_mem=12 * 16384)
        event.record()
    events[-1].synchronize()
    best = min(cp.cuda.get_elapsed_time(*pair) for pair in pairwise(events))
    return chunks * 16384 / float(best) / 1e9
