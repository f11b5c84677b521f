// Which instruction set runs: the best that this processor has, or the one that TORCHRNN_ISA names.
#include "kernels.h"

#ifdef __x86_64__
#include <cpuid.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace torchrnn {

namespace baseline {
extern const Kernels table;
}
#ifdef __x86_64__
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx512bf16 {
extern const NarrowKernels table[];
}
#endif

static const Kernels& choose() {
#ifdef __x86_64__
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("fma");
  static const Kernels with_narrow = {"avx512bf16", avx512::table.cells, avx512::table.count, avx512bf16::table};
#endif
  const struct {
    bool here;
    const Kernels& table;
  } sets[] = {
#ifdef __x86_64__
      {avx512 && __builtin_cpu_supports("avx512bf16"), with_narrow},
      {avx512, avx512::table},
      {__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), avx2::table},
#endif
      {true, baseline::table},
  };
  const char* variable = std::getenv("TORCHRNN_ISA");
  const std::string wanted = variable ? variable : "";
  std::string names;
  for (const auto& set : sets) {
    if (!set.here) continue;
    if (wanted.empty() || wanted == set.table.isa) return set.table;
    names += (names.empty() ? "" : ", ") + std::string(set.table.isa);
  }
  throw std::runtime_error("TORCHRNN_ISA must be one of those that this processor has (" + names + "), got '" + wanted + "'");
}

bool has_tiles() {
#ifdef __x86_64__
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 22 & 1;
#else
  return false;
#endif
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace torchrnn
