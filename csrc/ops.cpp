// The operators for a layer over a whole sequence. With step.cpp, request.h and tensors.h the only file that includes
// torch, and of it only the stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "request.h"

namespace torchrnn {

using torch::headeronly::ScalarType;

static std::string isa() { return kernels().isa; }

static const CellKernels* find(const std::string& name) {
  const Kernels& all = kernels();
  for (int i = 0; i < all.count; i++)
    if (name == all.cells[i].name) return all.cells + i;
  return nullptr;
}

// A cell's place in the table, by which `step` knows it; -1 where there is none.
static int64_t number(const std::string& cell) {
  const CellKernels* found = find(cell);
  return found ? found - kernels().cells : -1;
}

static const CellKernels& known(const std::string& cell) {
  const CellKernels* kernels = find(cell);
  STD_TORCH_CHECK(kernels, "torchrnn has no kernel for the cell ", cell);
  return *kernels;
}

// Numbers kept for backward for each step and unit: the fake kernels ask, so that they need no table of their own.
static int64_t saved(const std::string& cell, bool plain) {
  return plain ? known(cell).saved : known(cell).saved_open;
}

// Output, final states, if asked for the states after the first at all steps, each (D, N, H), and in training what
// backward needs (the outputs once more, and what else was kept); a single step has no output beside its states.
template <class T>
static Tensors forward_of(const CellKernels& cell, const Tensor& x, const Tensors& states, const Tensors& weights,
                          const std::optional<Tensor>& batch_sizes, bool bias, bool training, bool all,
                          const Options& options) {
  Request<T> request(cell, x, states, weights, batch_sizes, bias);
  request.set_options(options);
  Layer<T>& layer = request.layer;
  int64_t width = layer.directions * request.out;
  Tensors results;
  results.reserve((size_t)cell.states * 2 + 2);
  if (batch_sizes.has_value()) results.push_back(fresh(x, {request.N, width}));
  else if (!request.one_step) results.push_back(fresh(x, {layer.shape.T, layer.shape.B, width}));
  size_t first = results.size();
  for (int k = 0; k < cell.states; k++)
    results.push_back(request.one_step ? fresh(x, {layer.shape.B, request.width(k)})
                                       : fresh(x, {layer.directions, layer.shape.B, request.width(k)}));
  size_t first_all = results.size();
  STD_TORCH_CHECK(!all || !request.one_step, "the states of all steps are those of a layer");
  for (int k = 1; all && k < cell.states; k++) results.push_back(fresh(x, {layer.directions, request.N, layer.shape.H}));
  auto all_states = [&](int k, int d) {
    return results[first_all + (size_t)k - 1].template mutable_data_ptr<T>() + d * request.N * layer.shape.H;
  };
  T* reserve = nullptr;
  if (training) {
    results.push_back(fresh_as(results[0]));
    results.push_back(fresh(x, {layer.directions * request.reserve_size()}));
    reserve = results.back().template mutable_data_ptr<T>();
  }
  request.set_outputs(results[0].template mutable_data_ptr<T>(), reserve);
  for (int d = 0; d < layer.directions; d++) {
    Direction<T>& to = layer.direction[d];
    for (int k = 0; k < cell.states; k++)
      to.final[k] = results[first + (size_t)k].template mutable_data_ptr<T>() + d * request.row(k);
    for (int k = 1; all && !training && k < cell.states; k++) to.sequence[k] = all_states(k, d);
  }
  forward(cell, layer);
  if (!training) return results;
  // backward reads what was computed, and the user may change his in place, as with torch.nn
  std::memcpy(results[results.size() - 2].template mutable_data_ptr<T>(), results[0].template const_data_ptr<T>(),
              (size_t)(request.N * width) * sizeof(T));
  for (int d = 0; all && d < layer.directions; d++)
    for (int k = 1; k < cell.states; k++)
      std::memcpy(all_states(k, d), layer.direction[d].sequence[k], (size_t)(request.N * layer.shape.H) * sizeof(T));
  return results;
}

// Gradients in the order x, states, weights; an empty tensor where `needs` says that nobody asks.
template <class T>
static Tensors backward_of(const CellKernels& cell, const Tensor& x, const Tensors& states, const Tensors& weights,
                           const std::optional<Tensor>& batch_sizes, bool bias, const Tensor& y, const Tensor& reserve,
                           const std::optional<Tensor>& dy, const std::vector<std::optional<Tensor>>& dfinal,
                           const std::vector<std::optional<Tensor>>& dall, const std::vector<int64_t>& needs,
                           const Options& options) {
  Request<T> request(cell, x, states, weights, batch_sizes, bias);
  request.set_options(options);
  Layer<T>& layer = request.layer;
  const Shape& s = layer.shape;
  size_t S = (size_t)cell.states;
  int64_t width = layer.directions * request.out;
  // a hook of saved tensors may have brought them back with other strides
  Tensor outputs = dense(y), kept = dense(reserve);
  auto like_output = [&](const Tensor& t, const char* name) {
    if (s.first || request.one_step) expect(t, {request.N, width}, name);
    else expect(t, {s.T, s.B, width}, name);
  };
  like_output(outputs, "the output");
  if (dy.has_value()) like_output(*dy, "the gradient of the output");
  expect(kept, {layer.directions * request.reserve_size()}, "what was kept for backward");
  STD_TORCH_CHECK(dfinal.size() == S && needs.size() == 1 + S + weights.size(), "a gradient is missing");
  for (size_t k = 0; k < S; k++)
    if (dfinal[k].has_value()) {
      if (request.one_step) expect(*dfinal[k], {s.B, request.width((int)k)}, "the gradient of a state");
      else expect(*dfinal[k], {layer.directions, s.B, request.width((int)k)}, "the gradient of a state");
    }
  request.set_outputs(const_cast<T*>(outputs.const_data_ptr<T>()), const_cast<T*>(kept.const_data_ptr<T>()));
  Tensors results;
  results.reserve(1 + S + weights.size());
  for (size_t i = 0; i < 1 + S + weights.size(); i++) {
    const Tensor& like = i == 0 ? x : i <= S ? request.states[i - 1] : request.weights[i - 1 - S];
    results.push_back(needs[i] ? fresh_as(like) : fresh(x, {0}));
  }
  auto pointer = [&](size_t i) { return needs[i] ? results[i].template mutable_data_ptr<T>() : nullptr; };
  std::optional<Tensor> above;
  if (dy.has_value()) above = dense_rows(*dy);
  Tensors ends;
  for (size_t k = 0; k < S; k++) ends.push_back(dfinal[k].has_value() ? dense(*dfinal[k]) : y);
  Tensors throughout;  // gradients of the states at all steps
  for (size_t k = 1; k < S && !dall.empty(); k++) {
    STD_TORCH_CHECK(dall.size() == S - 1, "a gradient is missing");
    if (dall[k - 1].has_value()) expect(*dall[k - 1], {layer.directions, request.N, s.H}, "the gradient of all states");
    throughout.push_back(dall[k - 1].has_value() ? dense(*dall[k - 1]) : y);
  }
  Tensor scratch = fresh(x, {layer.directions * request.N * (cell.columns * s.H + s.P)});
  T* at = scratch.mutable_data_ptr<T>();
  for (int d = 0; d < layer.directions; d++) {
    Direction<T>& to = layer.direction[d];
    if (above.has_value()) {
      to.dy = request.rows(*above);
      to.dy.base += d * request.out;
    }
    to.dx = request.rows_of(pointer(0), s.I);
    to.add_dx = d == 1;
    for (size_t k = 0; k < S; k++) {
      if (dfinal[k].has_value()) to.dfinal[k] = ends[k].template const_data_ptr<T>() + d * request.row((int)k);
      if (k && !dall.empty() && dall[k - 1].has_value())
        to.dall[k] = throughout[k - 1].template const_data_ptr<T>() + d * request.N * s.H;
      if (T* p = pointer(1 + k)) to.dinitial[k] = p + d * request.row((int)k);
    }
    size_t w = 1 + S + (size_t)(d * request.per_direction);
    to.dw_ih = pointer(w);
    to.dw_hh = pointer(w + 1);
    if (bias) to.db_ih = pointer(w + 2), to.db_hh = pointer(w + 3);
    if (s.P) to.dw_hr = pointer(w + (size_t)request.per_direction - 1);
    to.da = at;
    at += request.N * cell.columns * s.H;
    to.dprojected = at;
    at += request.N * s.P;
  }
  backward(cell, layer);
  return results;
}

static Tensors forward_any(const std::string& cell, const Tensor& x, const Tensors& states, const Tensors& weights,
                           const std::optional<Tensor>& batch_sizes, bool bias, bool training, bool all) {
  auto f = x.scalar_type() == ScalarType::Double ? forward_of<double> : forward_of<float>;
  return f(known(cell), x, states, weights, batch_sizes, bias, training, all, {});
}

static Tensors backward_any(const std::string& cell, const Tensor& x, const Tensors& states, const Tensors& weights,
                            const std::optional<Tensor>& batch_sizes, bool bias, const Tensor& y,
                            const Tensor& reserve, const std::optional<Tensor>& dy,
                            const std::vector<std::optional<Tensor>>& dfinal,
                            const std::vector<std::optional<Tensor>>& dall, const std::vector<int64_t>& needs) {
  auto f = x.scalar_type() == ScalarType::Double ? backward_of<double> : backward_of<float>;
  return f(known(cell), x, states, weights, batch_sizes, bias, y, reserve, dy, dfinal, dall, needs, {});
}

// The same with options. Operators of their own, since an argument with a default costs every call.
static Tensors forward_open(const std::string& cell, const Tensor& x, const Tensors& states, const Tensors& weights,
                            const std::optional<Tensor>& batch_sizes, bool bias, bool training, bool all,
                            int64_t activation, double limit) {
  auto f = x.scalar_type() == ScalarType::Double ? forward_of<double> : forward_of<float>;
  return f(known(cell), x, states, weights, batch_sizes, bias, training, all, options_of(activation, limit));
}

static Tensors backward_open(const std::string& cell, const Tensor& x, const Tensors& states, const Tensors& weights,
                             const std::optional<Tensor>& batch_sizes, bool bias, const Tensor& y,
                             const Tensor& reserve, const std::optional<Tensor>& dy,
                             const std::vector<std::optional<Tensor>>& dfinal,
                             const std::vector<std::optional<Tensor>>& dall, const std::vector<int64_t>& needs,
                             int64_t activation, double limit) {
  auto f = x.scalar_type() == ScalarType::Double ? backward_of<double> : backward_of<float>;
  return f(known(cell), x, states, weights, batch_sizes, bias, y, reserve, dy, dfinal, dall, needs,
           options_of(activation, limit));
}

}  // namespace torchrnn

STABLE_TORCH_LIBRARY(torchrnn, m) {
  m.def("isa() -> str");
  m.def("number(str cell) -> int");
  m.def("saved(str cell, bool plain=True) -> int");
  m.def(
      "layer(str cell, Tensor x, Tensor[] states, Tensor[] weights, Tensor? batch_sizes, bool bias, bool training, "
      "bool all) "
      "-> Tensor[]");
  m.def(
      "layer_backward(str cell, Tensor x, Tensor[] states, Tensor[] weights, Tensor? batch_sizes, bool bias, Tensor y, "
      "Tensor reserve, Tensor? dy, Tensor?[] dfinal, Tensor?[] dall, int[] needs) -> Tensor[]");
  m.def(
      "layer_open(str cell, Tensor x, Tensor[] states, Tensor[] weights, Tensor? batch_sizes, bool bias, bool training, "
      "bool all, int activation, float limit) -> Tensor[]");
  m.def(
      "layer_open_backward(str cell, Tensor x, Tensor[] states, Tensor[] weights, Tensor? batch_sizes, bool bias, "
      "Tensor y, Tensor reserve, Tensor? dy, Tensor?[] dfinal, Tensor?[] dall, int[] needs, int activation, "
      "float limit) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(torchrnn, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&torchrnn::isa));
  m.impl("number", TORCH_BOX(&torchrnn::number));
  m.impl("saved", TORCH_BOX(&torchrnn::saved));
}

STABLE_TORCH_LIBRARY_IMPL(torchrnn, CPU, m) {
  m.impl("layer", TORCH_BOX(&torchrnn::forward_any));
  m.impl("layer_backward", TORCH_BOX(&torchrnn::backward_any));
  m.impl("layer_open", TORCH_BOX(&torchrnn::forward_open));
  m.impl("layer_open_backward", TORCH_BOX(&torchrnn::backward_open));
}
