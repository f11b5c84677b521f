// The operators for one step of a cell: what a loop in Python calls, so the cost of the call decides. No lists to take
// apart, and no tensor more than needed.
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <memory>
#include <tuple>

#include "request.h"

namespace torchrnn {

using torch::headeronly::ScalarType;
using torch::stable::detail::to;

// A result on its way to torch's stack; undefined (None in Python) where nothing was made.
struct Result {
  AtenTensorHandle handle = nullptr;

  Result() = default;
  Result(const Result&) = delete;
  ~Result() {
    if (handle) aoti_torch_delete_tensor_object(handle);
  }
  template <class T>
  T* make(const Tensor& like, std::initializer_list<int64_t> sizes) {
    handle = fresh_handle(like, sizes);
    void* data;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle, &data));
    return (T*)data;
  }
  void leave(StableIValue& slot) {
    if (!handle) STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_new_uninitialized_tensor(&handle));
    slot = torch::stable::detail::from(handle);
    handle = nullptr;
  }
};

// What the operators begin with: cell, x, h, c, w_ih, w_hh, b_ih, b_hh, bias. A cell of one state has its only one in
// the place of c, too; without biases weights stand in their place.
struct Step {
  static constexpr int COUNT = 9;
  const CellKernels& cell;
  Tensor x;
  Tensors states, weights;
  Steps steps;
  bool bias, is_double;

  explicit Step(StableIValue* stack) : cell(numbered(to<int64_t>(stack[0]))), x(dense_rows(to<Tensor>(stack[1]))) {
    states.reserve(2);
    weights.reserve(4);
    for (int i = 2; i < 4; i++) states.push_back(dense(to<Tensor>(stack[i])));
    for (int i = 4; i < 8; i++) weights.push_back(dense(to<Tensor>(stack[i])));
    bias = to<bool>(stack[8]);
    is_double = x.scalar_type() == ScalarType::Double;
    if (cell.states == 1) states.pop_back();
    STD_TORCH_CHECK((int)states.size() == cell.states && states[0].dim() == 2, "step takes one or two states (B, H), ",
                    cell.name, " has ", cell.states);
    steps.one(states[0].size(0));
    expect(x, {steps.B, x.size(-1)}, "the input");
    for (const Tensor& t : states) expect(t, {steps.B, states[0].size(1)}, "a state");
    STD_TORCH_CHECK(x.numel() && states[0].numel(), "step takes no empty tensor");
  }

  template <class T>
  Request<T> request() const {
    Request<T> made(cell, steps, 1, x.size(1), states[0].size(1), weights.data(), bias ? 4 : 2, bias);
    made.set_input(steps.rows(x.const_data_ptr<T>(), 0, x.stride(0)));
    for (int k = 0; k < cell.states; k++) made.set_initial(k, states[(size_t)k].const_data_ptr<T>());
    return made;
  }
};

// The new states, and in training what backward needs: the output once more, for the user may change his in place, and
// what the cell keeps.
template <class T>
static void forward_step(const Step& given, StableIValue* stack) {
  bool training = to<bool>(stack[Step::COUNT]);
  Request<T> request = given.request<T>();
  Layer<T>& layer = request.layer;
  Direction<T>& d = layer.direction[0];
  int64_t B = layer.shape.B, H = layer.shape.H;
  Result results[3];
  for (int k = 0; k < given.cell.states; k++) d.final[k] = results[k].make<T>(given.x, {B, H});
  T* kept = training ? results[2].make<T>(given.x, {B * H + request.kept(B)}) : nullptr;
  request.set_outputs(d.final[0], kept ? kept + B * H : nullptr);
  forward(given.cell, layer);
  if (kept) std::memcpy(kept, d.final[0], (size_t)(B * H) * sizeof(T));
  for (int i = 0; i < 3; i++) results[i].leave(stack[i]);
}

// Gradients in the order x, h, c, w_ih, w_hh, b_ih, b_hh, and of the pre-activations, where the bit of `needs` is set.
template <class T>
static void backward_step(const Step& given, StableIValue* stack) {
  Tensor kept = dense(to<Tensor>(stack[Step::COUNT]));
  std::optional<Tensor> given_ends[2] = {to<std::optional<Tensor>>(stack[Step::COUNT + 1]),
                                         to<std::optional<Tensor>>(stack[Step::COUNT + 2])};
  int64_t needs = to<int64_t>(stack[Step::COUNT + 3]);
  Request<T> request = given.request<T>();
  Layer<T>& layer = request.layer;
  Direction<T>& d = layer.direction[0];
  int64_t B = layer.shape.B, I = layer.shape.I, H = layer.shape.H, GH = given.cell.gates * H;
  expect(kept, {B * H + request.kept(B)}, "what was kept for backward");
  T* outputs = const_cast<T*>(kept.const_data_ptr<T>());
  request.set_outputs(outputs, outputs + B * H);
  std::optional<Tensor> ends[2];
  for (int k = 0; k < given.cell.states; k++) {
    if (!given_ends[k].has_value()) continue;
    expect(*given_ends[k], {B, H}, "the gradient of a state");
    ends[k] = dense(*given_ends[k]);
    d.dfinal[k] = ends[k]->const_data_ptr<T>();
  }
  Result results[8];
  auto wanted = [&](int i, std::initializer_list<int64_t> sizes) {
    return needs >> i & 1 ? results[i].make<T>(given.x, sizes) : nullptr;
  };
  d.dx = given.steps.rows(wanted(0, {B, I}), I);
  for (int k = 0; k < given.cell.states; k++) d.dinitial[k] = wanted(1 + k, {B, H});
  d.dw_ih = wanted(3, {GH, I});
  d.dw_hh = wanted(4, {GH, H});
  if (given.bias) d.db_ih = wanted(5, {GH}), d.db_hh = wanted(6, {GH});
  d.da = wanted(7, {B, given.cell.columns * H});
  std::unique_ptr<T[]> scratch(d.da ? nullptr : new T[(size_t)(B * given.cell.columns * H)]);
  if (!d.da) d.da = scratch.get();
  backward(given.cell, layer);
  for (int i = 0; i < 8; i++) results[i].leave(stack[i]);
}

// The gradients of the weights, summed over the steps of a loop: of each x (B, I), h (B, H), and what its backward gave
// of the pre-activations. In the order w_ih, w_hh, b_ih, b_hh, where the bit of `needs` is set.
template <class T>
static void backward_loop(const CellKernels& cell, const Tensors (&given)[3], int64_t needs, StableIValue* stack) {
  const Tensors &xs = given[0], &hs = given[1], &das = given[2];
  int64_t I = xs[0].size(-1), H = hs[0].size(-1), GH = cell.gates * H, rows = 0;
  for (const Tensor& x : xs) rows += x.size(0);
  std::vector<const T*> at[3];
  for (auto& pointers : at) pointers.reserve((size_t)rows);
  for (size_t t = 0; t < xs.size(); t++) {
    int64_t B = xs[t].size(0);
    expect(xs[t], {B, I}, "an input of the loop");
    expect(hs[t], {B, H}, "a state of the loop");
    expect(das[t], {B, cell.columns * H}, "a gradient of the loop's pre-activations");
    for (int k = 0; k < 3; k++)
      for (int64_t r = 0; r < B; r++) at[k].push_back(given[k][t].const_data_ptr<T>() + r * given[k][t].stride(0));
  }
  Layer<T> layer{};
  layer.shape = {1, rows, I, H, 0, nullptr, nullptr};
  layer.directions = 1;
  layer.parallel = {(int)torch::stable::get_num_threads(), in_threads};
  layer.profile = profile();
  Result results[4];
  auto wanted = [&](int i, std::initializer_list<int64_t> sizes) {
    return needs >> i & 1 ? results[i].make<T>(xs[0], sizes) : nullptr;
  };
  Direction<T>& d = layer.direction[0];
  d.dw_ih = wanted(0, {GH, I}), d.dw_hh = wanted(1, {GH, H});
  d.db_ih = wanted(2, {GH}), d.db_hh = wanted(3, {GH});
  weights(cell, layer, at[0].data(), at[1].data(), at[2].data());
  for (int i = 0; i < 4; i++) results[i].leave(stack[i]);
}

// The weights, packed for many steps.
template <class T>
static Tensor pack_weights(const Step& given) {
  Request<T> request = given.request<T>();
  Tensor packed = fresh(given.x, {pack(given.cell, request.layer)});
  request.layer.packed = packed.mutable_data_ptr<T>();
  pack(given.cell, request.layer);
  return packed;
}

// One step with packed weights: its output, which is the caller's own, and the new states (states, B, H); bit for bit those
// of the same step within a sequence.
template <class T>
static void forward_packed(const CellKernels& cell, const Tensor& packed, const Tensor& x, const Tensor& states, bool bias,
                           StableIValue* stack) {
  STD_TORCH_CHECK(x.dim() == 2 && states.dim() == 3, "packed_step takes x (B, I) and the states (states, B, H)");
  Layer<T> layer{};
  int64_t B = x.size(0), I = x.size(1), H = states.size(2);
  expect(states, {cell.states, B, H}, "the states");
  layer.shape = {1, B, I, H, 0, nullptr, nullptr};
  layer.directions = 1;
  layer.parallel = {(int)torch::stable::get_num_threads(), in_threads};
  layer.profile = profile();
  expect(packed, {pack(cell, layer)}, "what was packed");
  layer.packed = const_cast<T*>(packed.const_data_ptr<T>());
  Direction<T>& d = layer.direction[0];
  d.x = {x.const_data_ptr<T>(), 0, x.stride(0), nullptr, nullptr};
  if (bias) d.b_hh = layer.packed;
  Result results[2];
  d.y = {results[0].make<T>(x, {B, H}), B * H, H, nullptr, nullptr};
  T* final = results[1].make<T>(x, {cell.states, B, H});
  for (int k = 0; k < cell.states; k++) {
    d.initial[k] = states.const_data_ptr<T>() + k * B * H;
    d.final[k] = final + k * B * H;
  }
  forward(cell, layer);
  for (int i = 0; i < 2; i++) results[i].leave(stack[i]);
}

static void packed_step(StableIValue* stack, uint64_t, uint64_t) {
  const CellKernels& cell = numbered(to<int64_t>(stack[0]));
  Tensor packed = to<Tensor>(stack[1]), x = dense_rows(to<Tensor>(stack[2]));
  Tensor states = dense(to<Tensor>(stack[3]));
  auto f = x.scalar_type() == ScalarType::Double ? forward_packed<double> : forward_packed<float>;
  f(cell, packed, x, states, to<bool>(stack[4]), stack);
}

static void pack_step(StableIValue* stack, uint64_t, uint64_t) {
  Step given(stack);
  auto f = given.is_double ? pack_weights<double> : pack_weights<float>;
  stack[0] = torch::stable::detail::from(f(given));
}

// Of a cell: states, numbers that a step keeps for each unit, gates, and columns of the gradients of the pre-activations.
// The fake kernels ask.
static std::tuple<int64_t, int64_t, int64_t, int64_t> numbers(int64_t number) {
  const CellKernels& cell = numbered(number);
  return {cell.states, cell.saved + cell.states, cell.gates, cell.columns};
}

static void step(StableIValue* stack, uint64_t, uint64_t) {
  Step given(stack);
  given.is_double ? forward_step<double>(given, stack) : forward_step<float>(given, stack);
}

static void step_backward(StableIValue* stack, uint64_t, uint64_t) {
  Step given(stack);
  given.is_double ? backward_step<double>(given, stack) : backward_step<float>(given, stack);
}


static void loop_backward(StableIValue* stack, uint64_t, uint64_t) {
  const CellKernels& cell = numbered(to<int64_t>(stack[0]));
  Tensors given[3];
  for (int k = 0; k < 3; k++)
    for (Tensor& t : to<Tensors>(stack[1 + k])) given[k].push_back(k ? dense(t) : dense_rows(t));
  STD_TORCH_CHECK(!given[0].empty() && given[0].size() == given[1].size() && given[0].size() == given[2].size(),
                  "a loop must have as many inputs as states and gradients, and one of each, got ", given[0].size(), ", ",
                  given[1].size(), " and ", given[2].size());
  auto f = given[0][0].scalar_type() == ScalarType::Double ? backward_loop<double> : backward_loop<float>;
  f(cell, given, to<int64_t>(stack[4]), stack);
}

}  // namespace torchrnn

STABLE_TORCH_LIBRARY_FRAGMENT(torchrnn, m) {
  m.def("numbers(int cell) -> (int, int, int, int)");
  m.def(
      "step(int cell, Tensor x, Tensor h, Tensor c, Tensor w_ih, Tensor w_hh, Tensor b_ih, Tensor b_hh, bool bias, "
      "bool training) -> (Tensor, Tensor, Tensor)");
  m.def(
      "step_backward(int cell, Tensor x, Tensor h, Tensor c, Tensor w_ih, Tensor w_hh, Tensor b_ih, Tensor b_hh, "
      "bool bias, Tensor kept, Tensor? dh, Tensor? dc, int needs) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("loop_backward(int cell, Tensor[] x, Tensor[] h, Tensor[] da, int needs) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "pack(int cell, Tensor x, Tensor h, Tensor c, Tensor w_ih, Tensor w_hh, Tensor b_ih, Tensor b_hh, bool bias) "
      "-> Tensor");
  m.def("packed_step(int cell, Tensor packed, Tensor x, Tensor states, bool bias) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(torchrnn, CompositeExplicitAutograd, m) { m.impl("numbers", TORCH_BOX(&torchrnn::numbers)); }

STABLE_TORCH_LIBRARY_IMPL(torchrnn, CPU, m) {
  m.impl("step", &torchrnn::step);
  m.impl("step_backward", &torchrnn::step_backward);
  m.impl("loop_backward", &torchrnn::loop_backward);
  m.impl("pack", &torchrnn::pack_step);
  m.impl("packed_step", &torchrnn::packed_step);
}
