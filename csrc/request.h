// One call of the operators, unpacked and checked.
#pragma once

#include "kernels.h"
#include "tensors.h"

namespace torchrnn {

inline void forward(const CellKernels& c, const Layer<float>& l) { c.forward_float(l); }
inline void forward(const CellKernels& c, const Layer<double>& l) { c.forward_double(l); }
inline void backward(const CellKernels& c, const Layer<float>& l) { c.backward_float(l); }
inline void backward(const CellKernels& c, const Layer<double>& l) { c.backward_double(l); }
inline int64_t pack(const CellKernels& c, const Layer<float>& l) { return c.pack_float(l); }
inline int64_t pack(const CellKernels& c, const Layer<double>& l) { return c.pack_double(l); }

inline Options options_of(int64_t activation, double limit) {
  STD_TORCH_CHECK(activation >= 0 && activation < ACTIVATIONS && limit > 0, "there is no activation ", activation,
                  ", or no cell_clip of ", limit);
  return {(int)activation, limit};
}

// One layer's call, unpacked: sizes, contiguous tensors that stay alive, and where its parts stand. A single step is a
// layer of one step and one direction whose tensors lack those two dimensions.
template <class T>
struct Request {
  const CellKernels& cell;
  Tensor x;
  Tensors states, weights;
  std::optional<Tensor> steps;
  std::vector<int64_t> first;
  Layer<T> layer{};
  int64_t N, out;
  int per_direction;
  bool bias, one_step;

  Request(const CellKernels& cell, const Tensor& input, const Tensors& given, const Tensors& params,
          const std::optional<Tensor>& batch_sizes, bool bias)
      : cell(cell), x(dense_rows(input)), bias(bias), one_step(given.at(0).dim() == 2) {
    states.reserve(given.size());
    weights.reserve(params.size());
    for (const Tensor& t : given) states.push_back(dense(t));
    for (const Tensor& t : params) weights.push_back(dense(t));
    Shape& s = layer.shape;
    layer.directions = one_step ? 1 : (int)states[0].size(0);
    STD_TORCH_CHECK(layer.directions == 1 || layer.directions == 2, "a layer has 1 or 2 directions");
    per_direction = (int)weights.size() / layer.directions;
    bool packed = batch_sizes.has_value();
    if (packed) steps = dense(*batch_sizes);
    s.T = packed ? steps->size(0) : one_step ? 1 : x.size(0);
    s.B = states[0].size(-2);
    s.I = x.size(-1);
    out = states[0].size(-1);
    s.P = per_direction == (bias ? 5 : 3) ? out : 0;
    s.H = s.P ? weights[0].size(0) / cell.gates : out;
    if (packed) {
      s.running = steps->const_data_ptr<int64_t>();
      first.resize((size_t)s.T);
      for (int64_t t = 0, n = 0; t < s.T; n += s.running[t], t++) {
        first[(size_t)t] = n;
        int64_t most = t ? s.running[t - 1] : s.B;
        STD_TORCH_CHECK(s.running[t] > 0 && s.running[t] <= most && (t || s.running[0] == s.B), "batch_sizes must begin with ",
                        s.B, " rows and never rise or reach 0, got ", s.running[t], " at step ", t);
      }
      s.first = first.data();
    }
    N = s.total();
    check();
    layer.parallel = {(int)torch::stable::get_num_threads(), in_threads};
    layer.profile = profile();
    for (int d = 0; d < layer.directions; d++) {
      Direction<T>& to = layer.direction[d];
      to.reverse = d == 1;
      const Tensor* w = &weights[(size_t)(d * per_direction)];
      to.w_ih = w[0].template const_data_ptr<T>();
      to.w_hh = w[1].template const_data_ptr<T>();
      to.b_ih = bias ? w[2].template const_data_ptr<T>() : nullptr;
      to.b_hh = bias ? w[3].template const_data_ptr<T>() : nullptr;
      to.w_hr = s.P ? w[per_direction - 1].template const_data_ptr<T>() : nullptr;
      to.x = rows(x);
      for (int k = 0; k < cell.states; k++) to.initial[k] = states[(size_t)k].template const_data_ptr<T>() + d * row(k);
    }
  }

  // To be called before anything asks for the size of what is kept.
  void set_options(const Options& options) {
    for (Direction<T>& to : layer.direction) to.options = options, to.open = !options.plain();
  }

  void check() const {
    const Shape& s = layer.shape;
    int64_t D = layer.directions, GH = cell.gates * s.H;
    STD_TORCH_CHECK((int)states.size() == cell.states && (int)weights.size() == D * per_direction &&
                        per_direction == (bias ? 4 : 2) + (s.P ? 1 : 0),
                    "a layer of ", states.size(), " states and ", weights.size(), " weights is no ", cell.name);
    if (s.first || one_step) expect(x, {N, s.I}, "the input");
    else expect(x, {s.T, s.B, s.I}, "the input");
    for (int k = 0; k < cell.states; k++) {
      if (one_step) expect(states[(size_t)k], {s.B, width(k)}, "a state");
      else expect(states[(size_t)k], {D, s.B, width(k)}, "a state");
    }
    for (size_t i = 0; i < weights.size(); i++) {
      size_t which = i % (size_t)per_direction;
      if (which == 0) expect(weights[i], {GH, s.I}, "weight_ih");
      else if (which == 1) expect(weights[i], {GH, out}, "weight_hh");
      else if (bias && which < 4) expect(weights[i], {GH}, which == 2 ? "bias_ih" : "bias_hh");
      else expect(weights[i], {s.P, s.H}, "weight_hr");
    }
  }

  int64_t width(int k) const { return k ? layer.shape.H : out; }
  int64_t row(int k) const { return layer.shape.B * width(k); }

  // A (T, B, …) tensor by its strides, or a packed (N, …) one.
  Rows<const T> rows(const Tensor& t) const {
    const T* base = t.template const_data_ptr<T>();
    return layer.shape.first || one_step ? Rows<const T>{base, 0, t.stride(0), layer.shape.first}
                             : Rows<const T>{base, t.stride(0), t.stride(1), nullptr};
  }
  Rows<T> rows_of(T* base, int64_t width) const {
    return {base, layer.shape.B * width, width, layer.shape.first};
  }

  int64_t saved() const { return layer.direction[0].open ? cell.saved_open : cell.saved; }
  int64_t reserve_size() const {
    return N * layer.shape.H * (saved() + cell.states - 1 + (layer.shape.P ? 1 : 0));
  }
  void set_outputs(T* y, T* reserve) {
    int64_t NH = N * layer.shape.H, width = layer.directions * out;
    for (int d = 0; d < layer.directions; d++) {
      Direction<T>& to = layer.direction[d];
      to.y = rows_of(y + d * out, width);
      if (!reserve) continue;
      T* at = reserve + d * reserve_size();
      to.keep = at;
      at += NH * saved();
      for (int k = 1; k < cell.states; k++, at += NH) to.sequence[k] = at;
      to.unprojected = layer.shape.P ? at : nullptr;
    }
  }
};

}  // namespace torchrnn
