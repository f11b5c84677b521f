// How the rows of a call stand in its tensors: densely, packed, or by a plan, which is one tensor of numbers.
#pragma once

#include <cstring>

#include "layer.h"
#include "tensors.h"

namespace torchrnn {

// What the numbers of a plan are, one part after another. M steps of the input, B rows of the user, D directions; N steps
// that count, in S segments, longest first. Each part has room for the most that M steps may need, so that the size of
// the tensor follows from theirs.
struct Plan {
  enum Head { COUNT, SEGMENTS, LONGEST, IDLE, HEAD };  // N, S, how many steps the longest has, whether a row's end is none's
  int64_t M, B, D;

  int64_t size() const { return HEAD + M * (2 + D) + D * B; }
  int64_t steps() const { return HEAD; }                             // (N,) the step of the input that each packed one is
  int64_t running() const { return HEAD + M; }                       // (longest,) segments that run at each step
  int64_t begin(int64_t d) const { return HEAD + M * (2 + d); }      // (S,) whose given state each begins with; B: zeros
  int64_t end(int64_t d) const { return HEAD + M * (2 + D) + d * B; }  // (B,) the segment that ends each row, or from S
                                                                     // on whose given state stays; S + B: zeros
};

struct Steps {
  enum Kind { ONE, DENSE, PACKED, PLANNED };
  Kind kind = ONE;
  Shape shape{};         // of the sweep; I, H and P are those of a layer
  int64_t N = 0, M = 0;  // steps that count; rows of the input
  int64_t B = 0;         // rows of the user's states
  const int64_t *place = nullptr, *begin[2] = {}, *end[2] = {};

  void one(int64_t rows) { shape.T = 1, shape.B = N = M = B = rows; }
  void dense(int64_t T, int64_t rows) { kind = DENSE, shape.T = T, shape.B = B = rows, N = M = T * rows; }

  void packed(const Tensor& batch_sizes, int64_t rows, int64_t batch) {
    kind = PACKED, M = rows, B = batch;
    numbers = torchrnn::dense(batch_sizes);
    STD_TORCH_CHECK(type_code(*numbers) == aoti_torch_dtype_int64() && numbers->dim() == 1, "batch_sizes must be int64");
    runs(numbers->const_data_ptr<int64_t>(), numbers->size(0), batch);
    STD_TORCH_CHECK(N == M, "batch_sizes must sum up to ", M, " steps, got ", N);
  }

  void planned(const Tensor& numbers_of_plan, int64_t steps, int64_t batch, int64_t directions) {
    kind = PLANNED, M = steps, B = batch;
    Plan plan{M, B, directions};
    numbers = torchrnn::dense(numbers_of_plan);
    expect(*numbers, {plan.size()}, "a plan");
    STD_TORCH_CHECK(type_code(*numbers) == aoti_torch_dtype_int64(), "a plan must be int64");
    const int64_t* p = numbers->const_data_ptr<int64_t>();
    int64_t S = p[Plan::SEGMENTS];
    auto within = [](const int64_t* from, int64_t n, int64_t most) {
      bool fits = true;
      for (int64_t i = 0; i < n; i++) fits &= from[i] >= 0 && from[i] <= most;
      return fits;
    };
    place = p + plan.steps();
    bool fits = p[Plan::COUNT] <= M && S >= 0 && S <= M && p[Plan::LONGEST] <= M && within(place, p[Plan::COUNT], M - 1);
    for (int64_t d = 0; d < directions && fits; d++) {
      begin[d] = p + plan.begin(d), end[d] = p + plan.end(d);
      fits = within(begin[d], S, B) && within(end[d], B, S + B);
    }
    STD_TORCH_CHECK(fits, "a plan must be what torchrnn::plan has made for ", B, " rows and ", M, " steps");
    runs(p + plan.running(), p[Plan::LONGEST], S);
    STD_TORCH_CHECK(N == p[Plan::COUNT], "a plan must hold ", N, " steps, got ", p[Plan::COUNT]);
  }

  // A tensor (…, width) by its strides.
  template <class T>
  Rows<T> rows(T* base, int64_t step, int64_t row) const { return {base, step, row, shape.first, place}; }
  // The same of a contiguous one.
  template <class T>
  Rows<T> rows(T* base, int64_t width) const { return rows(base, shape.B * width, width); }

  // Zeros for the steps that do not count.
  template <class T>
  void clear_others(T* base, int64_t width) const {
    if (!place || N == M) return;
    std::vector<char> counts((size_t)M);
    for (int64_t n = 0; n < N; n++) counts[(size_t)place[n]] = 1;
    for (int64_t m = 0; m < M; m++)
      if (!counts[(size_t)m]) std::memset((void*)(base + m * width), 0, (size_t)width * sizeof(T));
  }

 private:
  std::optional<Tensor> numbers;  // stays alive
  std::vector<int64_t> first;

  void runs(const int64_t* running, int64_t T, int64_t rows) {
    shape.T = T, shape.B = rows, shape.running = running;
    first.resize((size_t)T + 1);
    for (int64_t t = 0; t < T; t++) {
      first[(size_t)t] = N;
      int64_t most = t ? running[t - 1] : rows;
      STD_TORCH_CHECK(running[t] > 0 && running[t] <= most && (t || running[0] == rows), "batch_sizes must begin with ",
                      rows, " rows and never rise or reach 0, got ", running[t], " at step ", t);
      N += running[t];
    }
    shape.first = first.data();
  }
};

// States of segments, (L·D, S, width), and the user's, (L·D, B, width).
template <class T>
struct SegmentStates {
  const Steps& steps;
  int64_t LD, D, width;
  std::vector<T> values;

  SegmentStates(const Steps& steps, int64_t LD, int64_t D, int64_t width)
      : steps(steps), LD(LD), D(D), width(width), values((size_t)(LD * steps.shape.B * width)) {}

  template <class F>
  void each_begin(const F& f) {  // f(segment's values, row given to it or -1)
    for (int64_t i = 0; i < LD; i++)
      for (int64_t s = 0; s < steps.shape.B; s++) {
        int64_t b = steps.begin[i % D][s];
        f(values.data() + (i * steps.shape.B + s) * width, b < steps.B ? i * steps.B + b : -1);
      }
  }
  template <class F>
  void each_end(const F& f) {  // f(row, its last segment's values or null, the row given in its place or -1)
    int64_t S = steps.shape.B;
    for (int64_t i = 0; i < LD; i++)
      for (int64_t b = 0; b < steps.B; b++) {
        int64_t s = steps.end[i % D][b];
        f(i * steps.B + b, s < S ? values.data() + (i * S + s) * width : nullptr,
          s >= S && s < S + steps.B ? i * steps.B + s - S : -1);
      }
  }

  // Segments begin with the user's states.
  void enter(const T* given) {
    each_begin([&](T* to, int64_t row) { row < 0 ? zero(to) : copy(to, given + row * width); });
  }
  // The user's rows end with those of segments, or as they began.
  void leave(const T* given, T* to) {
    each_end([&](int64_t row, T* from, int64_t kept) {
      if (from) copy(to + row * width, from);
      else if (kept >= 0) copy(to + row * width, given + kept * width);
      else zero(to + row * width);
    });
  }
  // The way back of `leave`: gradients of final states to segments, and to the user's initial states.
  template <class Sum>
  void enter_back(const T* gradient, Sum* to) {
    if (gradient)
      each_end([&](int64_t row, T* segment, int64_t kept) {
        if (segment) copy(segment, gradient + row * width);
        else if (kept >= 0 && to) add(to + kept * width, gradient + row * width);
      });
  }
  // The way back of `enter`.
  template <class Sum>
  void leave_back(Sum* to) {
    each_begin([&](T* from, int64_t row) {
      if (row >= 0) add(to + row * width, from);
    });
  }

 private:
  void zero(T* to) const { std::memset((void*)to, 0, (size_t)width * sizeof(T)); }
  void copy(T* to, const T* from) const { std::memcpy((void*)to, (const void*)from, (size_t)width * sizeof(T)); }
  template <class Sum>
  void add(Sum* to, const T* from) const {
    for (int64_t j = 0; j < width; j++) to[j] += from[j];
  }
};

}  // namespace torchrnn
