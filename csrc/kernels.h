// The kernels as plain functions: one table of them for each instruction set, and the one that this processor runs.
#pragma once

#include <cstdint>

namespace torchrnn {

struct Kernels {
  const char* isa;
  void (*add)(const float* a, const float* b, float* out, int64_t n);
};

// Throws std::runtime_error where the environment variable TORCHRNN_ISA names a set that this processor lacks.
const Kernels& kernels();

}  // namespace torchrnn
