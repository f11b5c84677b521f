// One call of a stack of layers, unpacked and checked: the tensors stay alive with it.
#pragma once

#include "request.h"

namespace torchrnn {

// What a call says beside its tensors, as `flags` and `limit` in the operators that are quick to call.
struct Said {
  bool bias, training, all, bidirectional, planned;
  Options options;
  int64_t samples = 0;  // backward: if not 0, row r is one of sample r % samples, and each has its weights' gradients

  static Said of(int64_t flags, double limit) {
    return {(flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0, (flags & 8) != 0, (flags & 16) != 0,
            options_of(flags >> 8 & 255, limit), flags >> 16};
  }
};

// L layers of D directions; states (L·D, B, H), weights by layer, then direction. A single step is one of one layer and
// direction whose tensors lack the dimensions of those and of time.
template <class T, class Stored = T>
struct Stack {
  const CellKernels& cell;
  const Said said;
  Tensor x;
  Tensors states, weights;
  Steps steps;
  int64_t L, D, I, H, P, out;
  int per_direction;

  Stack(const CellKernels& cell, const Tensor& input, const Tensors& given, const Tensors& params,
        const std::optional<Tensor>& numbers, const Said& said)
      : cell(cell), said(said), x(said.planned ? dense(input) : dense_rows(input)) {
    states.reserve(given.size());
    weights.reserve(params.size());
    for (const Tensor& t : given) states.push_back(dense(t));
    for (const Tensor& t : params) weights.push_back(dense(t));
    STD_TORCH_CHECK((int)states.size() == cell.states && x.dim() >= 2, "a layer of ", states.size(), " states is no ",
                    cell.name);
    bool one_step = states[0].dim() == 2;
    D = said.bidirectional ? 2 : 1;
    L = one_step ? 1 : states[0].size(0) / D;
    I = x.size(-1);
    out = states[0].size(-1);
    STD_TORCH_CHECK(L > 0 && (int64_t)weights.size() % (L * D) == 0 && !weights.empty(), weights.size(),
                    " weights are none of ", L, " layers of ", D, " directions");
    per_direction = (int)((int64_t)weights.size() / (L * D));
    P = per_direction == (said.bias ? 5 : 3) ? out : 0;
    H = P ? weights[0].size(0) / cell.gates : out;
    int64_t B = states[0].size(-2);
    if (one_step) steps.one(B), expect(x, {B, I}, "the input");
    else if (!numbers.has_value()) steps.dense(x.size(0), B), expect(x, {x.size(0), B, I}, "the input");
    else if (said.planned) steps.planned(*numbers, rows_of(x), B, D);
    else steps.packed(*numbers, x.size(0), B), expect(x, {steps.M, I}, "the input");
    for (int k = 0; k < cell.states; k++) expect_states(states[(size_t)k], k, "a state");
  }

  static int64_t rows_of(const Tensor& t) { return t.dim() == 2 ? t.size(0) : t.size(0) * t.size(1); }
  int64_t width(int k) const { return k ? H : out; }
  bool one_step() const { return steps.kind == Steps::ONE; }

  void expect_states(const Tensor& t, int k, const char* name) const {
    if (one_step()) expect(t, {steps.B, width(k)}, name);
    else expect(t, {L * D, steps.B, width(k)}, name);
  }
  // A tensor of the sizes of the input but for its features.
  void expect_rows(const Tensor& t, int64_t features, const char* name) const {
    if (x.dim() == 2) expect(t, {x.size(0), features}, name);
    else expect(t, {x.size(0), x.size(1), features}, name);
  }
  Tensor fresh_rows(int64_t features) const {
    return x.dim() == 2 ? fresh(x, {x.size(0), features}) : fresh(x, {x.size(0), x.size(1), features});
  }
  Rows<const Stored> rows(const Tensor& t) const {
    const Stored* base = read<Stored>(t);
    if (steps.kind == Steps::DENSE) return steps.rows(base, t.stride(0), t.stride(1));
    // a plan counts the rows of a contiguous tensor; a dimension of size 1 may have any stride in one
    return steps.rows(base, 0, steps.kind == Steps::PLANNED ? t.size(-1) : t.stride(0));
  }

  Request<T, Stored> layer(int64_t l) const {
    const Tensor* w = &weights[(size_t)(l * D * per_direction)];
    return {cell, steps, (int)D, l ? D * out : I, out, w, per_direction, said.bias, said.options};
  }

  // What backward needs: for each layer its outputs once more, then what its directions keep. Where only some steps
  // count there is room for all, so that the size follows from those of the arguments. The sizes are in T.
  int64_t outputs() const { return steps.M * D * out; }
  int64_t room() const { return std::is_same_v<T, Stored> ? outputs() : (outputs() + 1) / 2; }
  int64_t kept_layer() const {
    int64_t saved = said.options.plain() ? cell.saved : cell.saved_open;
    return room() + D * steps.M * H * (saved + cell.states - 1 + (P ? 1 : 0));
  }
  int64_t reserve_size() const { return L * kept_layer(); }

  // Gradients and states of layer l and state k among those of all layers.
  template <class U>
  U* of_layer(U* base, int64_t l, int k) const { return base ? base + l * D * steps.shape.B * width(k) : nullptr; }
};

}  // namespace torchrnn
