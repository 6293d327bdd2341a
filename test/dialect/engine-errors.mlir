// RUN: tileir-opt %s --split-input-file --verify-diagnostics

"engine.device"() ({
  // expected-error @below {{window of 5 outside 1 … 4}}
  "engine.ring"() {sym_name = "tape", slots = 4 : i64, slot_bytes = 1024 : i64, window = 5 : i64, fed_window = 5 : i64} : () -> ()
}) {index = 0 : i64, devices = 1 : i64, sequences = 1 : i64, page = 0 : i64, sms = 4 : i64, consumer_warps = 4 : i64, tokens = 1 : i64, context = 8 : i64, vocabulary = 16 : i64} : () -> ()

// -----

"engine.device"() ({
  // expected-error @below {{fed window of 0}}
  "engine.ring"() {sym_name = "tape", slots = 4 : i64, slot_bytes = 1024 : i64, window = 2 : i64, fed_window = 0 : i64} : () -> ()
}) {index = 0 : i64, devices = 1 : i64, sequences = 1 : i64, page = 0 : i64, sms = 4 : i64, consumer_warps = 4 : i64, tokens = 1 : i64, context = 8 : i64, vocabulary = 16 : i64} : () -> ()

// -----

"engine.device"() ({
  // expected-error @below {{protocol 'mail' is none of}}
  %c = "engine.channel"() {sym_name = "c", payload = "f32", protocol = "mail", replicas = 1 : i64, level = "gpu", depth = 1 : i64} : () -> tensor<1x8xf32, "channel">
}) {index = 0 : i64, devices = 1 : i64, sequences = 1 : i64, page = 0 : i64, sms = 4 : i64, consumer_warps = 4 : i64, tokens = 1 : i64, context = 8 : i64, vocabulary = 16 : i64} : () -> ()

// -----

"engine.device"() ({
  // expected-error @below {{no body 'nowhere'}}
  "engine.row"() {body = "nowhere", names = [], phase = 0 : i64, rotation = 0 : i64, stage = 0 : i64, tile_base = 0 : i64, weights = []} : () -> ()
}) {index = 0 : i64, devices = 1 : i64, sequences = 1 : i64, page = 0 : i64, sms = 4 : i64, consumer_warps = 4 : i64, tokens = 1 : i64, context = 8 : i64, vocabulary = 16 : i64} : () -> ()

// -----

// expected-error @below {{3 parts of K}}
"engine.multiply"() {k = 64 : i64, k_parts = 3 : i64, tiles = 4 : i64, ring = "tape", source = "tape"} : () -> ()
