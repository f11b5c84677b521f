// Turning the count of a call's phases on and off, and reading it.
#include "profile.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <chrono>
#include <string>
#include <vector>

namespace torchrnn {

static const char* const PHASE_NAMES = "packing,x-part,sweep forward,sweep backward,weight gradients,input gradients";

static thread_local Profile counted;
static thread_local bool counting = false;

Profile* profile() { return __builtin_expect(counting, false) && torch::stable::get_num_threads() == 1 ? &counted : nullptr; }

static int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void begin(Profile& to) { to.last = now(); }

void lap(Profile& to, Phase phase) {
  int64_t last = to.last;
  to.last = now();
  to.nanoseconds[phase] += to.last - last;
}

static std::string phases() { return PHASE_NAMES; }

// Seconds by phase that the calls of this thread have taken since the last time, and whether to count from now on.
static std::vector<double> count_phases(bool on) {
  std::vector<double> seconds;
  for (int64_t& n : counted.nanoseconds) seconds.push_back((double)n * 1e-9), n = 0;
  counting = on;
  return seconds;
}

}  // namespace torchrnn

STABLE_TORCH_LIBRARY_FRAGMENT(torchrnn, m) {
  m.def("phases() -> str");
  m.def("count_phases(bool on) -> float[]");
}

STABLE_TORCH_LIBRARY_IMPL(torchrnn, CompositeExplicitAutograd, m) {
  m.impl("phases", TORCH_BOX(&torchrnn::phases));
  m.impl("count_phases", TORCH_BOX(&torchrnn::count_phases));
}
