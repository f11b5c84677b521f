// What every isa_*.cpp compiles under its own flags: the kernels in the namespace TORCHRNN_ISA, and their table.
#pragma once

#include "kernels.h"

#define TORCHRNN_TEXT_(name) #name
#define TORCHRNN_TEXT(name) TORCHRNN_TEXT_(name)

namespace torchrnn::TORCHRNN_ISA {

static void add(const float* a, const float* b, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = a[i] + b[i];
}

extern const Kernels table;
const Kernels table = {TORCHRNN_TEXT(TORCHRNN_ISA), add};

}  // namespace torchrnn::TORCHRNN_ISA
