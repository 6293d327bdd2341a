// Each run breaks the schedule that verify-schedule.mlir proves. test/unit/test_verify_schedule.py has more.

// RUN: sed 's/depth = 2/depth = 1/' %S/verify-schedule.mlir | not tileir-opt - --verify-schedule=target=virtual 2>&1 | filecheck %s --check-prefix=COPY
// COPY: channel candidates_0 has 1 copy: row 8 (select_0) on a slow SM may still read step 1's when row 7 (contract_3) on a fast SM writes step 2's; for example row 8 (select_0), SM 0, step 2
// COPY: missing: the path row 8 (select_0) → record of row 7 (contract_3) in step 2 → row 8 (select_0) → row 7 (contract_3), which takes 2 copies by epoch
// COPY: row 8 (select_0) is at -:{{[0-9]+}}:5
// COPY: row 7 (contract_3) is at -:{{[0-9]+}}:5

// RUN: sed 's/release = array<i64: 4, 5>, //' %S/verify-schedule.mlir | not tileir-opt - --verify-schedule=target=virtual 2>&1 | filecheck %s --check-prefix=RELEASE
// RELEASE: row 1 (contract_0) appends to state k_cache_0 with no release: the copy engine of the next step, behind row 8 (select_0), may miss it

// RUN: sed 's/acquire = array<i64: 1, 2>, //' %S/verify-schedule.mlir | not tileir-opt - --verify-schedule=target=virtual 2>&1 | filecheck %s --check-prefix=ACQUIRE
// ACQUIRE: row 2 (attend_0) streams state k_cache_0 with no acquire after the step record: it may miss what row 1 (contract_0) appended

// RUN: sed 's/\(tile.key.*\)offset = 32/\1offset = 48/' %S/verify-schedule.mlir | not tileir-opt - --verify-schedule=target=virtual 2>&1 | filecheck %s --check-prefix=OWN
// OWN: row 2 (attend_0) takes the step's own row of state k_cache_0 at 48 of channel qkv_0, and row 1 (contract_0) publishes what it appends at 32 of channel qkv_0

// RUN: sed 's/names = \["attention_0", "residual_0", "embedding_0"\]/names = ["residual_1", "residual_0", "embedding_0"]/' %S/verify-schedule.mlir | not tileir-opt - --verify-schedule=target=virtual 2>&1 | filecheck %s --check-prefix=ORDER
// ORDER: row 4 (contract_1) waits for channel residual_1, which row 6 (contract_1) writes later in the same step
// ORDER: missing: row 6 (contract_1) before row 4 (contract_1)

// RUN: sed 's/names = \["gated_0", "residual_1", "residual_0"\]/names = ["gated_0", "residual_0", "residual_0"]/' %S/verify-schedule.mlir | not tileir-opt - --verify-schedule=target=virtual 2>&1 | filecheck %s --check-prefix=TWICE
// TWICE: of channel residual_0 are written by row 4 (contract_1) and by row 6 (contract_1)

// RUN: sed 's/rows = 2 : i64/rows = 1 : i64/' %S/verify-schedule.mlir | not tileir-opt - --verify-schedule=target=virtual 2>&1 | filecheck %s --check-prefix=UNWRITTEN
// UNWRITTEN: row 4 (contract_1) waits for values 0 … 31 of channel attention_0, of which row 3 (combine_0) writes 0 … 15; for example row 4 (contract_1), SM 0, step 1
// UNWRITTEN: missing: an arrival from row 3 (combine_0) to row 4 (contract_1)

// RUN: sed 's/"engine.fill"() {k = 32 : i64, \(.*\) tiles = 4/"engine.fill"() {k = 32 : i64, \1 tiles = 3/' %S/verify-schedule.mlir | not tileir-opt - --verify-schedule=target=virtual 2>&1 | filecheck %s --check-prefix=SLOTS
// SLOTS: role tape fills 0 slots of ring tape with 0 blocks and the consumers drain 1 slots of 1 blocks; for example row {{.*}}, SM 3, step 1

// RUN: sed 's/"engine.barrier"() : () -> ()//' %S/verify-schedule.mlir | not tileir-opt - --verify-schedule=target=virtual 2>&1 | filecheck %s --check-prefix=BARRIER
// BARRIER: receive leaves activations that multiply takes from other warps

// RUN: sed 's/smem_offset = 0 /smem_offset = 786432 /' %S/verify-schedule.mlir | not tileir-opt - --verify-schedule=target=virtual 2>&1 | filecheck %s --check-prefix=OVERLAP
// OVERLAP: ring {{state|tape}} and ring {{state|tape}} overlap in shared

// RUN: sed 's/ registers = [0-9]*/ registers = 600/' %S/verify-schedule.mlir | not tileir-opt - --verify-schedule=target=virtual 2>&1 | filecheck %s --check-prefix=REGISTERS
// REGISTERS: registers are asked for by an SM's roles; there are 65536

// RUN: not tileir-opt %S/verify-schedule.mlir --verify-schedule=target=nowhere 2>&1 | filecheck %s --check-prefix=TARGET
// TARGET: unknown target 'nowhere'
