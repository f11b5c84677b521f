// Torch's tensors as the operators use them: dense ones, fresh ones, and what is wrong with one.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "bfloat16.h"
#include "memory.h"

#ifdef __linux__
// In the stable ABI from torch 2.11 on; null before.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t dimensions, const int64_t* sizes, const int64_t* strides, int64_t offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* made, int32_t layout, const uint8_t* metadata,
    int64_t metadata_size, void (*deleter)(void* data, void* context), void* context);
#endif

namespace torchrnn {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

inline void in_threads(int64_t tasks, void (*body)(void*, int64_t), void* data) {
  torch::stable::parallel_for(0, tasks, 1, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) body(data, i);
  });
}

// The numbers of a tensor, which must be of that type.
template <class T>
const T* read(const Tensor& t) {
  return t.const_data_ptr<T>();
}
template <class T>
T* write(const Tensor& t) {
  return t.mutable_data_ptr<T>();
}
template <>
inline const bfloat16* read(const Tensor& t) {
  return (const bfloat16*)t.const_data_ptr<torch::headeronly::BFloat16>();
}
template <>
inline bfloat16* write(const Tensor& t) {
  return (bfloat16*)t.mutable_data_ptr<torch::headeronly::BFloat16>();
}

inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
inline Tensor dense_rows(const Tensor& t) { return t.stride(-1) == 1 ? t : torch::stable::contiguous(t); }

inline std::string text(const int64_t* sizes, size_t n) {
  std::string out = "(";
  for (size_t i = 0; i < n; i++) out += (i ? ", " : "") + std::to_string(sizes[i]);
  return out + ")";
}

// A mistake that no check in Python has found is an exception here, never a read of memory that is not ours.
inline void expect(const Tensor& t, std::initializer_list<int64_t> sizes, const char* name) {
  bool fits = t.dim() == (int64_t)sizes.size();
  for (size_t i = 0; fits && i < sizes.size(); i++) fits = t.size((int64_t)i) == sizes.begin()[i];
  if (!fits)
    STD_TORCH_CHECK(false, name, " must be ", text(sizes.begin(), sizes.size()), ", got ",
                    text(t.sizes().data(), (size_t)t.dim()));
}

inline int32_t type_code(const Tensor& t) {
  int32_t code;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &code));
  return code;
}

// Memory that is new to the process comes page by page while it is first written, which for megabytes takes longer than
// the writing: ask for pages of 2 MB where there is room for whole ones. Where the system has none nothing is lost.
inline void in_large_pages(AtenTensorHandle made, int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t PAGE = uintptr_t(1) << 21;
  void* data;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(made, &data));
  uintptr_t begin = ((uintptr_t)data + PAGE - 1) & ~(PAGE - 1), end = ((uintptr_t)data + (uintptr_t)bytes) & ~(PAGE - 1);
  if (end > begin) madvise((void*)begin, end - begin, MADV_HUGEPAGE);
#else
  (void)made, (void)bytes;
#endif
}

// The number of elements.
inline int64_t dense_strides(std::initializer_list<int64_t> sizes, int64_t* strides) {
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0; step *= sizes.begin()[i]) strides[i] = step;
  return step;
}

// A fresh tensor on the CPU by the shortest way: torch's new_empty takes four times as long.
inline AtenTensorHandle fresh_handle(int32_t type, std::initializer_list<int64_t> sizes) {
  int64_t strides[4];
  const int64_t count = dense_strides(sizes, strides);
  AtenTensorHandle made;
  auto make = [&] {
    return aoti_torch_empty_strided((int64_t)sizes.size(), sizes.begin(), strides, type, aoti_torch_device_type_cpu(), 0,
                                    &made);
  };
  AOTITorchError error = make();
  if (error && waiting_memory()) release_memory(), error = make();
  STABLE_TORCH_ERROR_CODE_CHECK(error);
  if (count >= 1 << 20) in_large_pages(made, count * (type == aoti_torch_dtype_bfloat16() ? 2 : 4));
  return made;
}
inline AtenTensorHandle fresh_handle(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return fresh_handle(type_code(like), sizes);
}
inline Tensor fresh(const Tensor& like, std::initializer_list<int64_t> sizes) { return Tensor(fresh_handle(like, sizes)); }
// The type in which is computed what `like` stores.
template <class T, class Stored>
int32_t computed_type(const Tensor& like) {
  return std::is_same_v<T, Stored> ? type_code(like) : aoti_torch_dtype_float32();
}
inline Tensor fresh_as(const Tensor& t) {
  switch (t.dim()) {
    case 1: return fresh(t, {t.size(0)});
    case 2: return fresh(t, {t.size(0), t.size(1)});
    default: return fresh(t, {t.size(0), t.size(1), t.size(2)});
  }
}

// A tensor that nobody resizes: from `large` bytes on it lies in memory that comes back.
inline Tensor lent(int32_t type, std::initializer_list<int64_t> sizes, size_t large) {
#ifdef __linux__
  int64_t strides[4];
  const size_t item = type == aoti_torch_dtype_float64() ? 8 : type == aoti_torch_dtype_bfloat16() ? 2 : 4;
  const size_t bytes = (size_t)dense_strides(sizes, strides) * item;
  if (Block* block = torch_from_blob && bytes >= large ? lend(bytes) : nullptr) {
    AtenTensorHandle made;
    AOTITorchError error = torch_from_blob(
        block->data, (int64_t)sizes.size(), sizes.begin(), strides, 0, type, aoti_torch_device_type_cpu(), -1, &made,
        aoti_torch_layout_strided(), nullptr, 0, [](void*, void* context) { give_back((Block*)context); }, block);
    if (error) give_back(block);
    STABLE_TORCH_ERROR_CODE_CHECK(error);
    return Tensor(made);
  }
#else
  (void)large;
#endif
  return Tensor(fresh_handle(type, sizes));
}
// One for each of n samples of a tensor of at most two dimensions.
inline Tensor lent_samples(int64_t n, const Tensor& t) {
  if (t.dim() == 1) return lent(type_code(t), {n, t.size(0)}, LARGE_RESULT);
  return lent(type_code(t), {n, t.size(0), t.size(1)}, LARGE_RESULT);
}

}  // namespace torchrnn
