// What every isa_*.cpp compiles under its own flags: the kernels in the namespace TORCHRNN_ISA, and their table.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#ifdef __linux__
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

#define TORCHRNN_TEXT_(name) #name
#define TORCHRNN_TEXT(name) TORCHRNN_TEXT_(name)

namespace torchrnn::TORCHRNN_ISA {

#include "simd.h"
#include "vector_math.h"
#include "options.h"
#include "turn.h"
#if TORCHRNN_NARROW
#include "narrow.h"
#endif
// in this order: each stands on those before it
#include "gemm.h"
#include "transposed.h"
#include "sweep.h"
#include "few_rows.h"
#include "forward.h"
#include "backward.h"
#include "cells/all.h"

#if TORCHRNN_NARROW  // bfloat16 alone: all else is another set's

template <class Cell>
static constexpr NarrowKernels kernels_of() {
  using V = Vec<float, 16>;
  return {layer_forward<Cell, V, bfloat16>, layer_backward<Cell, V, bfloat16>};
}
#define TORCHRNN_ROW(cell) kernels_of<cell>(),
extern const NarrowKernels table[];
const NarrowKernels table[] = {TORCHRNN_CELLS(TORCHRNN_ROW)};
#undef TORCHRNN_ROW

#else

enum Task { forward, backward, pack };

// Short vectors for small layers: most lanes of a long one would be empty.
template <class Cell, class T, Task task, class V>
static auto layer_with(const Layer<T>& call) {
  if constexpr (task == forward) return layer_forward<Cell, V>(call);
  else if constexpr (task == backward) return layer_backward<Cell, V>(call);
  else return layer_pack<Cell, V>(call);
}
template <class Cell, class T, Task task>
static auto layer(const Layer<T>& call) {
  constexpr int lanes = TORCHRNN_VECTOR_BYTES / sizeof(T);
  if constexpr (lanes > 4) {
    if (call.shape.H <= 4) return layer_with<Cell, T, task, Vec<T, 4>>(call);
  }
  return layer_with<Cell, T, task, Vec<T, lanes>>(call);
}

template <class Cell, class T>
static void weights(const Layer<T>& call, const T** x, const T** h, const T** da) {
  weights_backward<Cell, Vec<T, TORCHRNN_VECTOR_BYTES / sizeof(T)>>(call, x, h, da);
}

template <class Cell>
static constexpr CellKernels kernels_of(const char* name) {
  return {name, Cell::gates, Cell::states, Cell::saved, Cell::open::saved, Cell::columns,
          layer<Cell, float, forward>, layer<Cell, float, backward>, layer<Cell, double, forward>, layer<Cell, double, backward>,
          layer<Cell, float, pack>, layer<Cell, double, pack>, weights<Cell, float>, weights<Cell, double>,
          Cell::kept, Cell::open::kept};
}

#define TORCHRNN_ROW(cell) kernels_of<cell>(#cell),
static const CellKernels cells[] = {TORCHRNN_CELLS(TORCHRNN_ROW)};
#undef TORCHRNN_ROW

extern const Kernels table;
const Kernels table = {TORCHRNN_TEXT(TORCHRNN_ISA), cells, sizeof cells / sizeof *cells, nullptr};

#endif

}  // namespace torchrnn::TORCHRNN_ISA
