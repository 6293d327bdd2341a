// Each run breaks the schedule that verify-schedule.mlir proves.

// RUN: sed 's/depth = 2/depth = 1/' %S/verify-schedule.mlir | not tileir-opt - --verify-schedule=target=virtual 2>&1 | filecheck %s --check-prefix=COPY
// COPY: channel candidates_0 has 1 copy
// COPY: missing: a second copy by epoch

// RUN: sed 's/release = array<i64: 4, 5>, //' %S/verify-schedule.mlir | not tileir-opt - --verify-schedule=target=virtual 2>&1 | filecheck %s --check-prefix=RELEASE
// RELEASE: row 1 (contract_0) appends to state k_cache_0 with no release

// RUN: sed 's/acquire = array<i64: 1, 2>, //' %S/verify-schedule.mlir | not tileir-opt - --verify-schedule=target=virtual 2>&1 | filecheck %s --check-prefix=ACQUIRE
// ACQUIRE: row 2 (attend_0) streams state k_cache_0 with no acquire

// RUN: sed 's/names = \["attention_0", "residual_0", "embedding_0"\]/names = ["residual_1", "residual_0", "embedding_0"]/' %S/verify-schedule.mlir | not tileir-opt - --verify-schedule=target=virtual 2>&1 | filecheck %s --check-prefix=ORDER
// ORDER: row 4 (contract_1) waits for channel residual_1, which row 6 (contract_1) writes later in the same step

// RUN: sed 's/names = \["gated_0", "residual_1", "residual_0"\]/names = ["gated_0", "residual_0", "residual_0"]/' %S/verify-schedule.mlir | not tileir-opt - --verify-schedule=target=virtual 2>&1 | filecheck %s --check-prefix=TWICE
// TWICE: of channel residual_0 are written by row 4 (contract_1) and by row 6 (contract_1)

// RUN: sed 's/smem_offset = 0 /smem_offset = 786432 /' %S/verify-schedule.mlir | not tileir-opt - --verify-schedule=target=virtual 2>&1 | filecheck %s --check-prefix=OVERLAP
// OVERLAP: overlap in shared

// RUN: not tileir-opt %S/verify-schedule.mlir --verify-schedule=target=nowhere 2>&1 | filecheck %s --check-prefix=TARGET
// TARGET: unknown target 'nowhere'
