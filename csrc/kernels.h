// The kernels as plain functions: one table of them for each instruction set, and the one that this processor runs.
#pragma once

#include "layer.h"

namespace torchrnn {

// One cell: its constants, and its layer forward and backward for both number types.
struct CellKernels {
  const char* name;
  int gates, states, saved, columns;
  void (*forward_float)(const Layer<float>&);
  void (*backward_float)(const Layer<float>&);
  void (*forward_double)(const Layer<double>&);
  void (*backward_double)(const Layer<double>&);
};

struct Kernels {
  const char* isa;
  const CellKernels* cells;
  int count;
};

// Throws std::runtime_error where the environment variable TORCHRNN_ISA names a set that this processor lacks.
const Kernels& kernels();

}  // namespace torchrnn
