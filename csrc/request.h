// One layer of one call, as the sweep takes it.
#pragma once

#include "kernels.h"
#include "steps.h"

namespace torchrnn {

inline const NarrowKernels& narrow(const CellKernels& c) {
  STD_TORCH_CHECK(kernels().narrow, "the kernels must be those for avx512bf16 to take bfloat16, got those for ",
                  kernels().isa, ": cast the arguments to float32");
  return kernels().narrow[&c - kernels().cells];
}
inline void forward(const CellKernels& c, const Layer<float, bfloat16>& l) { narrow(c).forward(l); }
inline void backward(const CellKernels& c, const Layer<float, bfloat16>& l) { narrow(c).backward(l); }
inline void forward(const CellKernels& c, const Layer<float>& l) { c.forward_float(l); }
inline void forward(const CellKernels& c, const Layer<double>& l) { c.forward_double(l); }
inline void backward(const CellKernels& c, const Layer<float>& l) { c.backward_float(l); }
inline void backward(const CellKernels& c, const Layer<double>& l) { c.backward_double(l); }
inline int64_t pack(const CellKernels& c, const Layer<float>& l) { return c.pack_float(l); }
inline int64_t pack(const CellKernels& c, const Layer<double>& l) { return c.pack_double(l); }
inline void weights(const CellKernels& c, const Layer<float>& l, const float** x, const float** h, const float** da) {
  c.weights_float(l, x, h, da);
}
inline void weights(const CellKernels& c, const Layer<double>& l, const double** x, const double** h, const double** da) {
  c.weights_double(l, x, h, da);
}

inline const CellKernels& numbered(int64_t number) {
  STD_TORCH_CHECK(number >= 0 && number < kernels().count, "torchrnn has no cell of the number ", number);
  return kernels().cells[number];
}

inline Options options_of(int64_t activation, double limit) {
  STD_TORCH_CHECK(activation >= 0 && activation < ACTIVATIONS && limit > 0, "there is no activation ", activation,
                  ", or no cell_clip of ", limit);
  return {(int)activation, limit};
}

// A layer's sizes, checked weights and what it reads and writes. `weights` are contiguous and stay alive, as does `steps`.
template <class T, class Stored = T>
struct Request {
  const CellKernels& cell;
  const Steps& steps;
  Layer<T, Stored> layer{};
  int64_t N, out;
  int per_direction;

  Request(const CellKernels& cell, const Steps& steps, int directions, int64_t I, int64_t out, const Tensor* weights,
          int per_direction, bool bias, const Options& options = {})
      : cell(cell), steps(steps), N(steps.N), out(out), per_direction(per_direction) {
    layer.shape = steps.shape;
    layer.directions = directions;
    layer.parallel = {(int)torch::stable::get_num_threads(), in_threads};
    layer.profile = profile();
    Shape& s = layer.shape;
    s.I = I;
    s.P = per_direction == (bias ? 5 : 3) ? out : 0;
    s.H = s.P ? weights[0].size(0) / cell.gates : out;
    STD_TORCH_CHECK(per_direction == (bias ? 4 : 2) + (s.P ? 1 : 0), "a layer of ", per_direction,
                    " weights for each direction is no ", cell.name);
    for (int d = 0; d < directions; d++) {
      Direction<T, Stored>& to = layer.direction[d];
      to.reverse = d == 1;
      to.options = options, to.open = !options.plain();
      const Tensor* w = weights + d * per_direction;
      check(w, bias);
      to.w_ih = read<Stored>(w[0]);
      to.w_hh = read<Stored>(w[1]);
      to.b_ih = bias ? read<Stored>(w[2]) : nullptr;
      to.b_hh = bias ? read<Stored>(w[3]) : nullptr;
      to.w_hr = s.P ? read<Stored>(w[per_direction - 1]) : nullptr;
    }
  }

  void check(const Tensor* w, bool bias) const {
    const Shape& s = layer.shape;
    int64_t GH = cell.gates * s.H;
    expect(w[0], {GH, s.I}, "weight_ih");
    expect(w[1], {GH, out}, "weight_hh");
    if (bias) expect(w[2], {GH}, "bias_ih"), expect(w[3], {GH}, "bias_hh");
    if (s.P) expect(w[per_direction - 1], {s.P, s.H}, "weight_hr");
  }

  int64_t width(int k) const { return k ? layer.shape.H : out; }
  int64_t row(int k) const { return layer.shape.B * width(k); }

  void set_input(const Rows<const Stored>& x) {
    for (int d = 0; d < layer.directions; d++) layer.direction[d].x = x;
  }
  // States (D, rows, …) of the sweep.
  void set_initial(int k, const Stored* from) {
    for (int d = 0; d < layer.directions; d++) layer.direction[d].initial[k] = from + d * row(k);
  }
  void set_final(int k, Stored* to) {
    for (int d = 0; d < layer.directions; d++) layer.direction[d].final[k] = to + d * row(k);
  }
  void set_sequence(int k, T* to) {
    for (int d = 0; d < layer.directions; d++) layer.direction[d].sequence[k] = to + d * N * layer.shape.H;
  }

  int64_t saved() const { return layer.direction[0].open ? cell.saved_open : cell.saved; }
  // Numbers that a direction keeps for backward beside the outputs, of n steps.
  int64_t kept(int64_t n) const { return n * layer.shape.H * (saved() + cell.states - 1 + (layer.shape.P ? 1 : 0)); }

  void set_outputs(Stored* y, T* reserve) {
    int64_t NH = N * layer.shape.H;
    for (int d = 0; d < layer.directions; d++) {
      Direction<T, Stored>& to = layer.direction[d];
      to.y = steps.rows(y + d * out, layer.directions * out);
      if (!reserve) continue;
      T* at = reserve + d * kept(N);
      to.keep = at;
      at += NH * saved();
      for (int k = 1; k < cell.states; k++, at += NH) to.sequence[k] = at;
      to.unprojected = layer.shape.P ? (Stored*)at : nullptr;
    }
  }
};

}  // namespace torchrnn
