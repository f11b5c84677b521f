// One recurrent layer as plain pointers and sizes: what the operators hand to the sweep. It computes in T; tensors hold
// Stored, which is T or, for T = float, bfloat16.
//
// Letters: T time, B batch, N all steps of all rows, I input, H hidden, P projected output (0: none), G gates.
#pragma once

#include <stdint.h>

#include "bfloat16.h"
#include "profile.h"

namespace torchrnn {

constexpr int MAX_STATES = 4;

// What may vary inside a cell's equations; in the order of ACTIVATIONS in torchrnn/activation.py.
enum Activation { TANH, RELU, SIGMOID, LINEAR, SOFTSIGN, ELU, ACTIVATIONS };
struct Options {
  int activation = TANH;
  double limit = __builtin_inf();  // of the state
  TORCHRNN_HERE bool plain() const { return activation == TANH && limit == __builtin_inf(); }
};

// Row r at step t of a tensor: dense with strides, packed with the first row of each step, or where its place says.
template <class T>
struct Rows {
  T* base;
  int64_t step, row;
  const int64_t *first, *place;
  TORCHRNN_HERE T* at(int64_t t, int64_t r) const {
    if (!first) return base + t * step + r * row;
    int64_t n = first[t] + r;
    return base + (place ? place[n] : n) * row;
  }
};

struct Shape {
  int64_t T, B, I, H, P;
  const int64_t* running;  // rows at each step, not increasing; null: B at every step
  const int64_t* first;    // packed rows before each step; null: t * B
  TORCHRNN_HERE int64_t rows(int64_t t) const { return running ? running[t] : B; }
  TORCHRNN_HERE int64_t index(int64_t t, int64_t r) const { return (first ? first[t] : t * B) + r; }
  TORCHRNN_HERE int64_t total() const { return T == 0 ? 0 : first ? first[T - 1] + running[T - 1] : T * B; }
  TORCHRNN_HERE int64_t length(int64_t r) const {
    if (!running) return T;
    int64_t low = 0, high = T;  // the first t at which r no longer runs
    while (low < high) {
      int64_t middle = (low + high) / 2;
      if (running[middle] > r) low = middle + 1;
      else high = middle;
    }
    return low;
  }
};

// One direction of a layer: what it reads and writes. Null where there is none or nobody asks.
template <class T, class Stored = T>
struct Direction {
  bool reverse;
  bool open;                     // the options are not plain: the cell's functions that take them run
  Options options;
  const Stored *w_ih, *w_hh, *b_ih, *b_hh, *w_hr;
  Rows<const Stored> x;
  Rows<Stored> y;                     // (…, P), without projection (…, H)
  const Stored* initial[MAX_STATES];  // as y (B, …), then (B, H)
  Stored* final[MAX_STATES];
  T* sequence[MAX_STATES];       // training, or if asked for: states after the first at every step, (N, H)
  T* keep;                       // training: (N, saved, H)
  Stored* unprojected;           // training with projection: (N, H)
  T* running[MAX_STATES];        // scratch where T is not Stored: the states from step to step, (B, H)
  // backward
  Rows<const Stored> dy;             // base null: zeros
  const Stored* dfinal[MAX_STATES];  // null: zeros
  const T* dall[MAX_STATES];         // of the states after the first at every step; null: zeros
  Stored* dinitial[MAX_STATES];
  Stored* da;                        // scratch: gradients of the pre-activations, (N, columns, H)
  Stored* dprojected;                // scratch with projection: (N, P)
  Rows<Stored> dx;
  bool add_dx;                       // the other direction has written there
  Stored *dw_ih, *dw_hh, *db_ih, *db_hh, *dw_hr;
};

struct Parallel {
  int threads;
  void (*run)(int64_t tasks, void (*body)(void*, int64_t), void* data);  // calls body(data, task) for each task
};

template <class T, class Stored = T>
struct Layer {
  Shape shape;
  int directions;
  Direction<T, Stored> direction[2];
  Parallel parallel;
  T* packed;  // the weights of the one direction as `pack` has left them, b_hh among them; null: packed for this call
  Profile* profile;  // null: nobody asks
  int64_t samples;   // backward: if not 0, the weights' gradients of each sample, (samples, …); see samples.h
};

}  // namespace torchrnn
