// The operators that torch sees; the only file that includes torch, and of it only the stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>

#include "kernels.h"

namespace torchrnn {

using torch::stable::Tensor;

static std::string isa() { return kernels().isa; }

static Tensor add(const Tensor& a, const Tensor& b) {
  Tensor out = torch::stable::empty_like(a);
  kernels().add(a.const_data_ptr<float>(), b.const_data_ptr<float>(), out.mutable_data_ptr<float>(), a.numel());
  return out;
}

}  // namespace torchrnn

STABLE_TORCH_LIBRARY(torchrnn, m) {
  m.def("isa() -> str");
  m.def("add(Tensor a, Tensor b) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(torchrnn, CompositeExplicitAutograd, m) { m.impl("isa", TORCH_BOX(&torchrnn::isa)); }

STABLE_TORCH_LIBRARY_IMPL(torchrnn, CPU, m) { m.impl("add", TORCH_BOX(&torchrnn::add)); }
