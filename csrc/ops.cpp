// The operators for layers over a whole sequence. With step.cpp, plan.cpp and what they include the only files that
// include torch, and of it only the stable ABI.
#include <torch/csrc/stable/library.h>

#include <cstring>

#include "stack.h"

namespace torchrnn {

using torch::headeronly::ScalarType;

static std::string isa() { return kernels().isa; }

// Whether layers take bfloat16.
static bool takes_bfloat16() { return kernels().narrow; }

static const CellKernels* find(const std::string& name) {
  const Kernels& all = kernels();
  for (int i = 0; i < all.count; i++)
    if (name == all.cells[i].name) return all.cells + i;
  return nullptr;
}

// A cell's place in the table, by which the operators know it; -1 where there is none.
static int64_t number(const std::string& cell) {
  const CellKernels* found = find(cell);
  return found ? found - kernels().cells : -1;
}

// Numbers kept for backward for each step and unit: the fake kernels ask, so that they need no table of their own.
static int64_t saved(int64_t cell, bool plain) { return plain ? numbered(cell).saved : numbered(cell).saved_open; }

// Their names, separated by spaces.
static std::string kept(int64_t cell, bool plain) { return plain ? numbered(cell).kept : numbered(cell).kept_open; }

// The rows of all steps (D, N, H) to those of the input's (D, M, H), zero where a step does not count.
template <class T>
static void spread(const Steps& steps, int64_t D, int64_t H, const T* from, T* to) {
  for (int64_t d = 0; d < D; d++, from += steps.N * H, to += steps.M * H) {
    for (int64_t n = 0; n < steps.N; n++)
      std::memcpy((void*)(to + (steps.place ? steps.place[n] : n) * H), (const void*)(from + n * H), (size_t)H * sizeof(T));
    steps.clear_others(to, H);
  }
}
template <class T>
static void collect(const Steps& steps, int64_t D, int64_t H, const T* from, T* to) {
  for (int64_t d = 0; d < D; d++, from += steps.M * H, to += steps.N * H)
    for (int64_t n = 0; n < steps.N; n++)
      std::memcpy((void*)(to + n * H), (const void*)(from + steps.place[n] * H), (size_t)H * sizeof(T));
}

template <class T>
static void copy_all(const Tensor& from, const Tensor& to) {
  std::memcpy((void*)write<T>(to), (const void*)read<T>(from), (size_t)to.numel() * sizeof(T));
}
template <class T>
static void clear_all(const Tensor& t) { std::memset((void*)write<T>(t), 0, (size_t)t.numel() * sizeof(T)); }

// Output, final states, if asked for the last layer's states after the first at all steps, each (D, M, H), and in
// training what backward needs; a single step has no output beside its states.
template <class T, class Stored>
static Tensors forward_of(const Stack<T, Stored>& stack) {
  const Steps& steps = stack.steps;
  const int S = stack.cell.states;
  const bool planned = steps.kind == Steps::PLANNED, all = stack.said.all;
  const int64_t D = stack.D, L = stack.L, LD = L * D, H = stack.H, width = D * stack.out;
  const int32_t computed = computed_type<T, Stored>(stack.x);
  Tensors results;
  results.reserve((size_t)S * 2 + 2);
  if (!stack.one_step()) results.push_back(stack.fresh_rows(width));
  const size_t first = results.size(), first_all = first + (size_t)S;
  for (int k = 0; k < S; k++) results.push_back(fresh_as(stack.states[(size_t)k]));
  STD_TORCH_CHECK(!all || !stack.one_step(), "the states of all steps are those of a layer");
  for (int k = 1; all && k < S; k++) results.push_back(Tensor(fresh_handle(computed, {D, steps.M, H})));
  T* reserve = nullptr;
  Stored* y = write<Stored>(results[0]);
  std::optional<Tensor> between;
  if (stack.said.training) {
    results.push_back(lent(computed, {stack.reserve_size()}, LARGE_SCRATCH));
    reserve = write<T>(results.back());
  } else if (L > 1) {
    between = lent(type_code(stack.x), {2 * stack.outputs()}, LARGE_SCRATCH);
  }
  std::vector<SegmentStates<Stored>> initial, final;
  for (int k = 0; planned && k < S; k++) {
    initial.emplace_back(steps, LD, D, stack.width(k));
    final.emplace_back(steps, LD, D, stack.width(k));
    initial.back().enter(read<Stored>(stack.states[(size_t)k]));
  }
  std::vector<T> everything(planned && all && !reserve ? (size_t)((S - 1) * D * steps.N * H) : 0);
  Rows<const Stored> from = stack.rows(stack.x);
  for (int64_t l = 0; l < L && steps.N; l++) {
    T* kept = reserve ? reserve + l * stack.kept_layer() : nullptr;
    Stored* to = l == L - 1 ? y : kept ? (Stored*)kept : write<Stored>(*between) + (l & 1) * stack.outputs();
    Request<T, Stored> request = stack.layer(l);
    request.set_input(from);
    request.set_outputs(to, kept ? kept + stack.room() : nullptr);
    for (int k = 0; k < S; k++) {
      request.set_initial(k, stack.of_layer(planned ? (const Stored*)initial[(size_t)k].values.data()
                                                    : read<Stored>(stack.states[(size_t)k]), l, k));
      request.set_final(k, stack.of_layer(planned ? final[(size_t)k].values.data()
                                                  : write<Stored>(results[first + (size_t)k]), l, k));
      if (k && all && !kept && l == L - 1)
        request.set_sequence(k, planned ? everything.data() + (k - 1) * D * steps.N * H
                                        : write<T>(results[first_all + (size_t)k - 1]));
    }
    forward(stack.cell, request.layer);
    // backward reads what was computed, and the user may change his in place, as with torch.nn
    if (kept && l == L - 1) std::memcpy((void*)kept, (const void*)to, (size_t)stack.outputs() * sizeof(Stored));
    for (int k = 1; all && l == L - 1 && k < S && (kept || planned); k++)
      for (int64_t d = 0; d < D; d++)
        spread(steps, 1, H, (const T*)request.layer.direction[d].sequence[k],
               write<T>(results[first_all + (size_t)k - 1]) + d * steps.M * H);
    from = steps.rows((const Stored*)to, width);
  }
  steps.clear_others(y, width);
  for (int k = 0; k < S; k++) {
    Tensor& to = results[first + (size_t)k];
    if (planned) final[(size_t)k].leave(read<Stored>(stack.states[(size_t)k]), write<Stored>(to));
    else if (!steps.N) copy_all<Stored>(stack.states[(size_t)k], to);
    if (k && all && !steps.N) clear_all<T>(results[first_all + (size_t)k - 1]);
  }
  return results;
}

// The gradients that backward begins with.
struct Given {
  std::optional<Tensor> y;                     // of the output
  std::vector<std::optional<Tensor>> final;    // of the final states
  std::vector<std::optional<Tensor>> all;      // of the states at all steps
};

// The lowest layer of which anything is wanted.
static int64_t lowest_wanted(const std::vector<int64_t>& needs, size_t states, int64_t per_layer) {
  for (size_t i = 0; i < needs.size(); i++)
    if (needs[i]) return i <= states ? 0 : ((int64_t)i - 1 - (int64_t)states) / per_layer;
  return (int64_t)needs.size();
}

// Gradients in the order x, states, weights; an empty tensor where `needs` says that nobody asks.
template <class T, class Stored>
static Tensors backward_of(const Stack<T, Stored>& stack, const Tensor& reserve, const Given& given,
                           const std::vector<int64_t>& needs) {
  const Steps& steps = stack.steps;
  const size_t S = (size_t)stack.cell.states, W = stack.weights.size();
  const bool planned = steps.kind == Steps::PLANNED;
  const int64_t D = stack.D, L = stack.L, LD = L * D, H = stack.H, width = D * stack.out;
  Tensor kept = dense(reserve);  // a hook of saved tensors may have brought it back with other strides
  expect(kept, {stack.reserve_size()}, "what was kept for backward");
  STD_TORCH_CHECK(given.final.size() == S && needs.size() == 1 + S + W && (given.all.empty() || given.all.size() == S - 1),
                  "a gradient is missing");
  const int64_t samples = stack.said.samples;
  STD_TORCH_CHECK(!samples || (samples > 0 && steps.B % samples == 0 && steps.N % samples == 0),
                  steps.B, " rows are not those of ", samples, " samples");
  Tensors results, alive;
  results.reserve(1 + S + W);
  for (size_t i = 0; i < 1 + S + W; i++) {
    const Tensor& like = i == 0 ? stack.x : i <= S ? stack.states[i - 1] : stack.weights[i - 1 - S];
    if (!needs[i]) results.push_back(fresh(stack.x, {0}));
    else results.push_back(i > S && samples ? lent_samples(samples, like) : fresh_as(like));
  }
  auto wanted = [&](size_t i) { return needs[i] ? write<Stored>(results[i]) : nullptr; };
  auto held = [&](const Tensor& t) {
    alive.push_back(t);
    return t;
  };
  Rows<const Stored> above{};
  if (given.y.has_value()) {
    stack.expect_rows(*given.y, width, "the gradient of the output");
    alive.push_back(planned ? dense(*given.y) : dense_rows(*given.y));
    above = stack.rows(alive.back());
  }
  std::vector<SegmentStates<Stored>> begins, final, initial;  // states, and gradients
  const Stored* dfinal[MAX_STATES] = {};
  const T* dall[MAX_STATES] = {};
  Stored* dinitial[MAX_STATES] = {};
  std::vector<T> sums[MAX_STATES];  // of gradients of segments that began with the same state
  std::vector<T> everything(planned ? given.all.size() * (size_t)(D * steps.N * H) : 0);
  for (size_t k = 0; k < S; k++) {
    if (given.final[k].has_value()) {
      stack.expect_states(*given.final[k], (int)k, "the gradient of a state");
      dfinal[k] = read<Stored>(held(dense(*given.final[k])));
    }
    dinitial[k] = wanted(1 + k);
    if (planned) {
      begins.emplace_back(steps, LD, D, stack.width((int)k));
      begins[k].enter(read<Stored>(stack.states[k]));
      final.emplace_back(steps, LD, D, stack.width((int)k));
      initial.emplace_back(steps, LD, D, stack.width((int)k));
      if (dinitial[k]) sums[k].resize((size_t)(LD * steps.B * stack.width((int)k)));
      final[k].enter_back(dfinal[k], dinitial[k] ? sums[k].data() : nullptr);
    }
    if (k && !given.all.empty() && given.all[k - 1].has_value()) {
      expect(*given.all[k - 1], {D, steps.M, H}, "the gradient of all states");
      dall[k] = read<T>(held(dense(*given.all[k - 1])));
      if (planned) {
        T* to = everything.data() + (int64_t)(k - 1) * D * steps.N * H;
        collect(steps, D, H, dall[k], to);
        dall[k] = to;
      }
    }
  }
  const int64_t numbers = D * steps.N * (stack.cell.columns * H + stack.P) + (L > 1 ? 2 * stack.outputs() : 0);
  Tensor scratch = lent(type_code(stack.x), {numbers}, LARGE_SCRATCH);
  Stored *da = write<Stored>(scratch), *between = da + D * steps.N * (stack.cell.columns * H + stack.P);
  for (Tensor& t : results)
    if (!steps.N) clear_all<Stored>(t);  // no layer will write it
  const int64_t lowest = !steps.N ? L : lowest_wanted(needs, S, D * stack.per_direction);
  for (int64_t l = L - 1; l >= lowest; l--) {
    T* reserved = const_cast<T*>(read<T>(kept)) + l * stack.kept_layer();
    Stored* dx = l > lowest ? between + (l & 1) * stack.outputs() : l ? nullptr : wanted(0);
    Request<T, Stored> request = stack.layer(l);
    request.layer.samples = samples;
    request.set_input(l ? steps.rows((const Stored*)(reserved - stack.kept_layer()), width) : stack.rows(stack.x));
    request.set_outputs((Stored*)reserved, reserved + stack.room());
    Stored* at = da;
    for (int d = 0; d < D; d++) {
      Direction<T, Stored>& to = request.layer.direction[d];
      to.dy = above;
      if (above.base) to.dy.base += d * stack.out;
      to.dx = steps.rows(dx, l ? width : stack.I);
      to.add_dx = d == 1;
      for (size_t k = 0; k < S; k++) {
        int64_t from = (l * D + d) * request.row((int)k);
        to.dfinal[k] = !dfinal[k] ? nullptr : (planned ? final[k].values.data() : dfinal[k]) + from;
        to.dinitial[k] = !dinitial[k] ? nullptr : (planned ? initial[k].values.data() : dinitial[k]) + from;
        if (dall[k] && l == L - 1) to.dall[k] = dall[k] + d * steps.N * H;
      }
      size_t w = 1 + S + (size_t)((l * D + d) * stack.per_direction);
      to.dw_ih = wanted(w);
      to.dw_hh = wanted(w + 1);
      if (stack.said.bias) to.db_ih = wanted(w + 2), to.db_hh = wanted(w + 3);
      if (stack.P) to.dw_hr = wanted(w + (size_t)stack.per_direction - 1);
      to.da = at;
      at += steps.N * stack.cell.columns * H;
      to.dprojected = at;
      at += steps.N * stack.P;
    }
    for (size_t k = 0; k < S; k++)
      request.set_initial((int)k, stack.of_layer(planned ? (const Stored*)begins[k].values.data()
                                                         : read<Stored>(stack.states[k]), l, (int)k));
    backward(stack.cell, request.layer);
    above = steps.rows((const Stored*)dx, width);
  }
  if (Stored* dx = wanted(0)) steps.clear_others(dx, stack.I);
  for (size_t k = 0; k < S; k++) {
    if (!dinitial[k]) continue;
    if (planned) {
      initial[k].leave_back(sums[k].data());
      std::copy(sums[k].begin(), sums[k].end(), dinitial[k]);
    } else if (!steps.N && dfinal[k]) {
      copy_all<Stored>(dense(*given.final[k]), results[1 + k]);
    }
  }
  return results;
}

static Tensors run_forward(const CellKernels& cell, const Tensor& x, const Tensors& states, const Tensors& weights,
                           const std::optional<Tensor>& numbers, const Said& said) {
  switch (x.scalar_type()) {
    case ScalarType::Double: return forward_of(Stack<double>(cell, x, states, weights, numbers, said));
    case ScalarType::BFloat16: return forward_of(Stack<float, bfloat16>(cell, x, states, weights, numbers, said));
    default: return forward_of(Stack<float>(cell, x, states, weights, numbers, said));
  }
}
static Tensors run_backward(const CellKernels& cell, const Tensor& x, const Tensors& states, const Tensors& weights,
                            const std::optional<Tensor>& numbers, const Said& said, const Tensor& reserve,
                            const Given& given, const std::vector<int64_t>& needs) {
  auto run = [&](auto stack) { return backward_of(stack, reserve, given, needs); };
  switch (x.scalar_type()) {
    case ScalarType::Double: return run(Stack<double>(cell, x, states, weights, numbers, said));
    case ScalarType::BFloat16: return run(Stack<float, bfloat16>(cell, x, states, weights, numbers, said));
    default: return run(Stack<float>(cell, x, states, weights, numbers, said));
  }
}

// Quick to call: cell and options by numbers.
static Tensors stack(int64_t cell, const Tensor& x, const Tensors& states, const Tensors& weights,
                     const std::optional<Tensor>& numbers, int64_t flags, double limit) {
  return run_forward(numbered(cell), x, states, weights, numbers, Said::of(flags, limit));
}
static Tensors stack_backward(int64_t cell, const Tensor& x, const Tensors& states, const Tensors& weights,
                              const std::optional<Tensor>& numbers, int64_t flags, double limit, const Tensor& reserve,
                              const std::optional<Tensor>& dy, const std::vector<std::optional<Tensor>>& dfinal,
                              const std::vector<std::optional<Tensor>>& dall, const std::vector<int64_t>& needs) {
  return run_backward(numbered(cell), x, states, weights, numbers, Said::of(flags, limit), reserve, {dy, dfinal, dall},
                      needs);
}

// The same for graphs, which people and exporters read: by names.
static const CellKernels& known(const std::string& cell) {
  const CellKernels* found = find(cell);
  STD_TORCH_CHECK(found, "torchrnn has no kernel for the cell ", cell);
  return *found;
}
static Said said(const std::optional<Tensor>& batch_sizes, const std::optional<Tensor>& plan, bool bias,
                 bool bidirectional, bool training, const std::string& activation, std::optional<double> limit) {
  STD_TORCH_CHECK(!batch_sizes || !plan, "batch_sizes and plan do not go together");
  static const char* const names[ACTIVATIONS] = {"tanh", "relu", "sigmoid", "linear", "softsign", "elu"};
  int at = 0;
  while (at < ACTIVATIONS && activation != names[at]) at++;
  STD_TORCH_CHECK(at < ACTIVATIONS, "there is no activation ", activation);
  return {bias, training, false, bidirectional, plan.has_value(), options_of(at, limit.value_or(Options().limit))};
}
template <bool training>
static Tensors recurrent(const std::string& cell, const Tensor& x, const Tensors& states, const Tensors& weights,
                         const std::optional<Tensor>& batch_sizes, const std::optional<Tensor>& plan, bool bias,
                         bool bidirectional, const std::string& activation, std::optional<double> limit) {
  return run_forward(known(cell), x, states, weights, plan ? plan : batch_sizes,
                     said(batch_sizes, plan, bias, bidirectional, training, activation, limit));
}
static Tensors recurrent_backward(const std::string& cell, const Tensor& x, const Tensors& states,
                                  const Tensors& weights, const std::optional<Tensor>& batch_sizes,
                                  const std::optional<Tensor>& plan, bool bias, bool bidirectional,
                                  const std::string& activation, std::optional<double> limit, const Tensor& reserve,
                                  const std::optional<Tensor>& dy, const std::vector<std::optional<Tensor>>& dfinal,
                                  const std::vector<int64_t>& needs) {
  return run_backward(known(cell), x, states, weights, plan ? plan : batch_sizes,
                      said(batch_sizes, plan, bias, bidirectional, true, activation, limit), reserve, {dy, dfinal, {}},
                      needs);
}

}  // namespace torchrnn

STABLE_TORCH_LIBRARY(torchrnn, m) {
  m.def("isa() -> str");
  m.def("takes_bfloat16() -> bool");
  m.def("tiles() -> bool");
  m.def("number(str cell) -> int");
  m.def("saved(int cell, bool plain) -> int");
  m.def("kept(int cell, bool plain) -> str");
  m.def("waiting_memory() -> int");
  m.def("release_memory() -> ()");
  m.def(
      "stack(int cell, Tensor x, Tensor[] states, Tensor[] weights, Tensor? numbers, int flags, float limit) "
      "-> Tensor[]");
  m.def(
      "stack_backward(int cell, Tensor x, Tensor[] states, Tensor[] weights, Tensor? numbers, int flags, float limit, "
      "Tensor reserve, Tensor? dy, Tensor?[] dfinal, Tensor?[] dall, int[] needs) -> Tensor[]");
  for (const char* name : {"recurrent", "recurrent_training"})
    m.def((std::string(name) +
           "(str cell, Tensor x, Tensor[] states, Tensor[] weights, Tensor? batch_sizes, Tensor? plan, bool bias, "
           "bool bidirectional, str activation, float? limit) -> Tensor[]").c_str());
  m.def(
      "recurrent_backward(str cell, Tensor x, Tensor[] states, Tensor[] weights, Tensor? batch_sizes, Tensor? plan, "
      "bool bias, bool bidirectional, str activation, float? limit, Tensor reserve, Tensor? dy, Tensor?[] dfinal, "
      "int[] needs) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(torchrnn, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&torchrnn::isa));
  m.impl("takes_bfloat16", TORCH_BOX(&torchrnn::takes_bfloat16));
  m.impl("tiles", TORCH_BOX(&torchrnn::has_tiles));
  m.impl("number", TORCH_BOX(&torchrnn::number));
  m.impl("saved", TORCH_BOX(&torchrnn::saved));
  m.impl("kept", TORCH_BOX(&torchrnn::kept));
  m.impl("waiting_memory", TORCH_BOX(&torchrnn::waiting_memory));
  m.impl("release_memory", TORCH_BOX(&torchrnn::release_memory));
}

STABLE_TORCH_LIBRARY_IMPL(torchrnn, CPU, m) {
  m.impl("stack", TORCH_BOX(&torchrnn::stack));
  m.impl("stack_backward", TORCH_BOX(&torchrnn::stack_backward));
  m.impl("recurrent", TORCH_BOX(&torchrnn::recurrent<false>));
  m.impl("recurrent_training", TORCH_BOX(&torchrnn::recurrent<true>));
  m.impl("recurrent_backward", TORCH_BOX(&torchrnn::recurrent_backward));
}
