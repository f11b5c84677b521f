// The kernels as plain functions: one table of them for each instruction set, and the one that this processor runs.
#pragma once

#include "layer.h"

namespace torchrnn {

// One cell: its constants, and for both number types its layer forward and backward, the packing of weights for many
// steps, which gives their size and packs where there is a place, and the gradients of the weights from rows of many
// calls: inputs, previous outputs and gradients of the pre-activations, as many as the layer has rows.
struct CellKernels {
  const char* name;
  int gates, states, saved, saved_open, columns;  // saved_open: with options
  void (*forward_float)(const Layer<float>&);
  void (*backward_float)(const Layer<float>&);
  void (*forward_double)(const Layer<double>&);
  void (*backward_double)(const Layer<double>&);
  int64_t (*pack_float)(const Layer<float>&);
  int64_t (*pack_double)(const Layer<double>&);
  void (*weights_float)(const Layer<float>&, const float** x, const float** h, const float** da);
  void (*weights_double)(const Layer<double>&, const double** x, const double** h, const double** da);
  const char *kept, *kept_open;  // names of what is saved
};

// A cell's layer with tensors of bfloat16, whose products are made of it, too.
struct NarrowKernels {
  void (*forward)(const Layer<float, bfloat16>&);
  void (*backward)(const Layer<float, bfloat16>&);
};

struct Kernels {
  const char* isa;
  const CellKernels* cells;
  int count;
  const NarrowKernels* narrow;  // of the same cells; null: the processor does not multiply bfloat16
};

// Whether the processor has matrix instructions for bfloat16 (AMX): torch's kernels use them, ours do not.
bool has_tiles();

// Throws std::runtime_error where the environment variable TORCHRNN_ISA names a set that this processor lacks.
const Kernels& kernels();

}  // namespace torchrnn
