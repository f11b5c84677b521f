// A plan of sequences in one pass over the steps: what torchrnn/plan.py says in some forty small operations.
#include <torch/csrc/stable/library.h>

#include "steps.h"

namespace torchrnn {

static Tensor whole_numbers(int64_t size) {
  int64_t stride = 1;
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, &size, &stride, aoti_torch_dtype_int64(),
                                                         aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

// One number for each row, where they were given.
static const int64_t* of_rows(std::optional<Tensor>& given, int64_t B, const char* name) {
  if (!given.has_value()) return nullptr;
  expect(*given, {B}, name);
  STD_TORCH_CHECK(type_code(*given) == aoti_torch_dtype_int64(), name, " must be int64");
  given = dense(*given);
  return given->const_data_ptr<int64_t>();
}

// One flag for each row and step, in whatever order they lie, where they were given.
struct Flags {
  const bool* at = nullptr;
  int64_t by_row = 0, by_step = 0;
  bool otherwise;

  Flags(const std::optional<Tensor>& given, int64_t B, int64_t T, const char* name, bool otherwise)
      : otherwise(otherwise) {
    if (!given.has_value()) return;
    expect(*given, {B, T}, name);
    STD_TORCH_CHECK(type_code(*given) == aoti_torch_dtype_bool(), name, " must be bool");
    at = given->const_data_ptr<bool>(), by_row = given->stride(0), by_step = given->stride(1);
  }
  bool operator()(int64_t b, int64_t t) const { return at ? at[b * by_row + t * by_step] : otherwise; }
};

struct Segment {
  int64_t start, length;     // among the valid steps
  int64_t source[2];         // by direction: the row whose given state it starts from, or B
  int64_t rank = 0;
};

// Rows of the batch, cut into segments: valid steps in order, segments in order, where each row's begin and end.
struct Batch {
  std::vector<int64_t> steps, first, last;
  std::vector<Segment> segments;

  void add(int64_t b, int64_t begin, int64_t stride, int64_t length, const Flags& valid, const Flags& reset,
           int64_t none) {
    auto open = [&](int64_t source) { segments.push_back({(int64_t)steps.size(), 0, {source, none}}); };
    first[(size_t)b] = (int64_t)segments.size();
    open(length && reset(b, 0) ? none : b);
    for (int64_t t = 0; t < length; t++) {
      if (t && reset(b, t)) open(none);
      if (!valid(b, t)) continue;
      steps.push_back(begin + t * stride);
      segments.back().length++;
    }
    last[(size_t)b] = (int64_t)segments.size() - 1;
    segments.back().source[1] = b;
  }
};

// The rank of each segment, longest first and equal ones in order; gives (segments with steps, longest length).
static std::pair<int64_t, int64_t> order(std::vector<Segment>& segments) {
  int64_t longest = 0;
  for (const Segment& s : segments) longest = s.length > longest ? s.length : longest;
  std::vector<int64_t> longer((size_t)longest + 2);  // how many are longer than, or as long and earlier
  for (const Segment& s : segments) longer[(size_t)s.length]++;
  for (int64_t n = longest, before = 0; n >= 0; n--) {
    int64_t count = longer[(size_t)n];
    longer[(size_t)n] = before;
    before += count;
  }
  int64_t S = longer[0];
  for (Segment& s : segments) s.rank = longer[(size_t)s.length]++;
  return {S, longest};
}

static Tensor plan(int64_t B, int64_t T, int64_t M, bool batch_first, std::optional<Tensor> lengths,
                   std::optional<Tensor> first, std::optional<Tensor> mask, std::optional<Tensor> reset, bool to_zero,
                   int64_t D) {
  STD_TORCH_CHECK(B >= 0 && T >= 0 && M >= 0 && (D == 1 || D == 2), "B, T and M are sizes, D is 1 or 2, got ", B, ", ",
                  T, ", ", M, ", ", D);
  const int64_t *length = of_rows(lengths, B, "lengths"), *begin = of_rows(first, B, "first");
  Flags valid(mask, B, T, "mask", true), begins(reset, B, T, "reset", false);
  int64_t stride = batch_first ? 1 : B;
  Batch rows;
  rows.first.resize((size_t)B), rows.last.resize((size_t)B);
  rows.steps.reserve((size_t)M);
  for (int64_t b = 0; b < B; b++) {
    int64_t n = length ? length[b] : T, from = begin ? begin[b] : batch_first ? b * T : b;
    STD_TORCH_CHECK(n >= 0 && (begin || n <= T), "lengths must be between 0 and T = ", T, ", got lengths[", b, "] = ", n,
                    ": lengths count steps of the padded input");
    STD_TORCH_CHECK(from >= 0 && (!n || from + (n - 1) * stride < M), "row ", b, " has ", n, " steps from ", from,
                    " on, of ", M);
    rows.add(b, from, stride, n, valid, begins, to_zero ? B : b);
  }
  auto [S, longest] = order(rows.segments);
  int64_t N = (int64_t)rows.steps.size();
  const Plan plan{M, B, D};
  Tensor numbers = whole_numbers(plan.size());
  int64_t *p = numbers.mutable_data_ptr<int64_t>(), *step = p + plan.steps(), *running = p + plan.running();
  for (int64_t k = 0; k < longest; k++) running[k] = 0;
  for (const Segment& s : rows.segments)
    if (s.length) running[s.length - 1]++;
  for (int64_t k = longest - 1; k > 0; k--) running[k - 1] += running[k];
  std::vector<int64_t> before((size_t)longest + 1);
  for (int64_t k = 0; k < longest; k++) before[(size_t)k + 1] = before[(size_t)k] + running[k];
  for (const Segment& s : rows.segments) {
    for (int64_t k = 0; k < s.length; k++) step[before[(size_t)k] + s.rank] = rows.steps[(size_t)(s.start + k)];
    if (s.length)
      for (int64_t d = 0; d < D; d++) p[plan.begin(d) + s.rank] = s.source[d];
  }
  bool idle = false;
  for (int64_t d = 0; d < D; d++)
    for (int64_t b = 0; b < B; b++) {
      const Segment& s = rows.segments[(size_t)(d ? rows.first : rows.last)[(size_t)b]];
      p[plan.end(d) + b] = s.length ? s.rank : S + s.source[d];
      idle = idle || !s.length;
    }
  p[Plan::COUNT] = N, p[Plan::SEGMENTS] = S, p[Plan::LONGEST] = longest, p[Plan::IDLE] = idle;
  return numbers;
}

}  // namespace torchrnn

STABLE_TORCH_LIBRARY_FRAGMENT(torchrnn, m) {
  m.def(
      "plan(SymInt B, SymInt T, SymInt M, bool batch_first, Tensor? lengths, Tensor? first, Tensor? mask, Tensor? reset, "
      "bool to_zero, int D) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(torchrnn, CompositeExplicitAutograd, m) { m.impl("plan", TORCH_BOX(&torchrnn::plan)); }
